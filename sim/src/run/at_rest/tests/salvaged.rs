//! What salvage makes of a damaged log: a broker starts on it and serves all that was whole.

use std::path::{Path, PathBuf};

use rustmq_sys::sim::disk::{FileId, PAGE_BYTES};
use rustmq_wal::salvage::Salvage;
use rustmq_wal::verify::{Finding, Lost, Verify, footer_start, points_in};
use rustmq_wal::{
    BlockSequence, EntryExpect, FOOTER_TRAILER_BYTES, Incarnation, IndexPoint, SegmentHeader,
    SegmentState, Slot, decode_entry,
};

use super::*;
use crate::harm::Place;
use crate::scenario::SEGMENT_BYTES;
use crate::verify::Reading;

/// More openings than a broker of a simulation has.
const INCARNATION: Incarnation = Incarnation(1_000);

/// A file of a log.
struct SegmentFile {
    name: PathBuf,
    file: FileId,
    bytes: Vec<u8>,
}

fn segment_files(disk: &Disk) -> Vec<SegmentFile> {
    let segments = disk.files().into_iter().filter(|(_, _, bytes)| *bytes == SEGMENT_BYTES);
    let read = |(name, file, bytes)| {
        let bytes = disk.bytes_at(file, 0, bytes as usize);
        SegmentFile { name, file, bytes }
    };
    segments.map(read).collect()
}

/// Puts what salvage makes of each log in its place. Is anything given up?
fn salvage(disk: &mut Disk) -> bool {
    let files = segment_files(disk);
    let mut folders: Vec<&Path> = files.iter().filter_map(|file| file.name.parent()).collect();
    folders.dedup();
    let mut lost = false;
    for folder in folders {
        let of_log = files.iter().filter(|file| file.name.parent() == Some(folder));
        lost |= salvage_log(disk, &of_log.collect::<Vec<_>>());
    }
    lost
}

fn salvage_log(disk: &mut Disk, files: &[&SegmentFile]) -> bool {
    let mut live: Vec<(SegmentHeader, &[u8])> = files
        .iter()
        .filter_map(|file| Some((SegmentHeader::decode(&file.bytes).ok()?, &file.bytes[..])))
        .filter(|(header, _)| header.state == SegmentState::Active)
        .collect();
    live.sort_by_key(|(header, _)| header.sequence);
    let wal = live.first().expect("a log has a segment").0.wal;
    let mut generation = SEED;
    let draw = || {
        generation = generation.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(7);
        generation
    };
    let mut salvage = Salvage::new(wal, SEGMENT_BYTES, INCARNATION, draw);
    let mut lost = false;
    for (index, (header, file)) in live.iter().enumerate() {
        let next = live.get(index + 1);
        let durable_end = next.map_or(BlockSequence::FIRST, |(next, _)| next.first_block);
        lost |= take_segment(&mut salvage, header, file, durable_end);
    }
    salvage.finish();
    for file in files {
        disk.overwrite(file.file, 0, &vec![0; SEGMENT_BYTES as usize]);
    }
    for write in salvage.take_writes() {
        let is_its = |file: &&&SegmentFile| {
            let name = file.name.file_name().expect("a file has a name").to_string_lossy();
            Slot::from_file_name(&name) == Some(write.slot)
        };
        let to = files.iter().find(is_its).expect("no more files than before");
        disk.overwrite(to.file, write.position, &write.bytes);
    }
    lost
}

/// Hands everything whole in a segment to salvage. Is anything lost?
fn take_segment<G: FnMut() -> u64>(
    salvage: &mut Salvage<G>,
    header: &SegmentHeader,
    file: &[u8],
    durable_end: BlockSequence,
) -> bool {
    let mut verify = Verify::new(header, durable_end, file.len() as u64);
    let mut told = 0;
    while let Some(range) = verify.next_read() {
        let bytes = &file[range.start as usize..range.end as usize];
        verify.feed(range.start, bytes, |_, entry| {
            assert!(salvage.take(&entry.header, entry.payload), "whole entries make sense");
        });
        if told < verify.findings().len() {
            rescue(salvage, header, file, &mut verify, told);
        }
        verify.findings()[told..].iter().for_each(|finding| salvage.leave_out(finding));
        told = verify.findings().len();
    }
    let verified = verify.finish(None, false);
    verified.findings[told..].iter().for_each(|finding| salvage.leave_out(finding));
    let is_loss = |finding: &Finding| !matches!(finding.lost, Lost::Nothing | Lost::State);
    verified.findings.iter().any(is_loss)
}

/// Hands it the entries in a damaged part that the footer leads to.
fn rescue<G: FnMut() -> u64>(
    salvage: &mut Salvage<G>,
    header: &SegmentHeader,
    file: &[u8],
    verify: &mut Verify,
    finding: usize,
) {
    let damaged = verify.findings()[finding].position..verify.findings()[finding].end;
    let last = &file[file.len() - FOOTER_TRAILER_BYTES..];
    let Some(start) = footer_start(header, last) else { return };
    let points = points_in(header, start, &file[start as usize..], damaged);
    let decode = |partition, point: &IndexPoint| {
        let (generation, base_offset) = (header.generation, point.base_offset);
        let expect = EntryExpect { generation, partition, base_offset };
        decode_entry(&file[point.position as usize..], &expect)
    };
    let points = points.unwrap_or_default().into_iter();
    let found = points.map(|(id, point)| (id, point, decode(id, &point).is_ok()));
    for (id, point) in verify.rescue(found) {
        let (entry, payload) = decode(id, &point).expect("just seen");
        assert!(salvage.take(&entry, payload), "whole entries make sense");
    }
}

/// What a broker serves on this disk.
fn served(simulator: &mut Simulator, at_rest: &AtRest, disk: Disk, what: &str) -> Reading {
    let mut workload = at_rest.workload.clone();
    let told = simulator.within(disk, 1, &mut Tally::default(), |simulator, world, _| {
        simulator.ask_all(world, &mut workload, &at_rest.scenario, false)
    });
    match told {
        Ok(Told::Served(reading)) => reading,
        Ok(_) => panic!("{what}: it does not start"),
        Err((failure, _)) => panic!("{what}: {failure}"),
    }
}

#[test]
fn what_is_salvaged_is_all_that_was_whole_and_opens() {
    let mut simulator = simulator();
    let at_rest = simulator.rest(SEED).expect("it comes to rest");
    let whole = served(&mut simulator, &at_rest, at_rest.disk.clone(), "as it was");
    let mut copied = at_rest.disk.clone();
    assert!(!salvage(&mut copied), "nothing is damaged");
    let copied = served(&mut simulator, &at_rest, copied, "salvaged without need");
    assert_eq!((copied.bytes, copied.damaged), (whole.bytes, 0));
    // Every page in turn, but headers: a start makes those up, and salvage is given them.
    let mut given_up = 0;
    for SegmentFile { name, file, bytes } in segment_files(&at_rest.disk) {
        let pages = (PAGE_BYTES..bytes.len()).step_by(PAGE_BYTES);
        for position in pages.filter(|at| bytes[*at..*at + PAGE_BYTES].iter().any(|b| *b != 0)) {
            for (at, bytes) in [(position, PAGE_BYTES), (position + 600, 1)] {
                let what = format!("{} from {at}, {bytes} bytes", name.display());
                let mut disk = at_rest.disk.clone();
                let place = Place { file, position: at as u64 };
                let harm = Harm::Wiped { place, bytes, with: 0x55 };
                assert!(harm.apply(&mut disk));
                let before = served(&mut simulator, &at_rest, disk.clone(), &what);
                let lost = salvage(&mut disk);
                given_up += u32::from(lost);
                let after = served(&mut simulator, &at_rest, disk, &what);
                assert!(lost || after.bytes == whole.bytes, "{what}: less, and nothing is lost");
                assert!(before.bytes <= after.bytes, "{what}: fewer than before");
            }
        }
    }
    assert!(10 < given_up, "{given_up} losses");
}
