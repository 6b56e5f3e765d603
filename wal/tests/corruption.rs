//! Damage to a WAL, everywhere: every byte of a small image of several segments is changed in turn,
//! and what a start makes of it is held against what was written. A record is served as it was
//! written, or it is named, or the start is refused; never anything else.

mod support;

use std::collections::BTreeMap;
use std::ops::Range;

use rustmq_protocol::{BatchHeader, Offset, TopicPartition};
use rustmq_wal::recovery::{
    Activation, FileClues, check_join, headless, judge_newest, missing_records, plan, rebuild,
    was_in_use,
};
use rustmq_wal::salvage::Salvage;
use rustmq_wal::verify::{Lost, Verify, footer_start, points_in};
use rustmq_wal::{
    BLOCK_ALIGN, BlockFlags, BlockSequence, EntryExpect, EntryKind, FOOTER_TRAILER_BYTES,
    FooterTrailer, PartitionCheckpoint, SEGMENT_BYTES_MIN, SEGMENT_HEADER_BYTES, Scan, ScanEnd,
    ScanError, SegmentEnd, SegmentHeader, SegmentIndex, SegmentSequence, Slot, WAL_ITSELF,
    decode_entry,
};
use support::{Files, WAL, Writer, partition};

const SEED: u64 = 0xfeed_0000_0000_0077;

/// What a partition's entries add up to, as a start replays them.
#[derive(Default, Clone)]
struct Replayed {
    begun: bool,
    log_start: u64,
    log_end: u64,
    doubt: bool,
    named: Vec<Range<u64>>,
}

/// All partitions, and whether something is lost that names nobody.
#[derive(Default, Clone)]
struct State {
    partitions: BTreeMap<TopicPartition, Replayed>,
    doubt: bool,
}

impl State {
    fn of(&mut self, id: TopicPartition) -> &mut Replayed {
        let doubt = self.doubt;
        self.partitions.entry(id).or_insert_with(|| Replayed { doubt, ..Replayed::default() })
    }
}

/// A record that can be read: its bytes, by partition and offset of its batch.
type Served = BTreeMap<(TopicPartition, Offset), Vec<u8>>;

/// What a start makes of a directory.
#[derive(Default)]
struct Start {
    served: Served,
    /// Offsets that are refused, by name.
    named: BTreeMap<TopicPartition, Vec<Range<u64>>>,
    /// The extent of a loss is known only up to here: offsets at or past it are in doubt.
    doubtful: BTreeMap<TopicPartition, u64>,
    /// Partitions that nothing names may have had records.
    doubt_unnamed: bool,
}

struct Seen {
    header: SegmentHeader,
    end: Option<SegmentEnd>,
    points: BTreeMap<TopicPartition, Vec<(Offset, Offset, u32, u32)>>,
}

/// The steps of a start, on files in memory. `Err`: it is refused.
fn start(files: &Files) -> Result<Start, String> {
    let page = |file: &[u8], at: usize| file[at..at + BLOCK_ALIGN].to_vec();
    let mut clues: Vec<FileClues> = files
        .iter()
        .map(|(slot, file)| {
            let last = page(file, file.len() - BLOCK_ALIGN);
            FileClues::new(*slot, &page(file, 0), &page(file, SEGMENT_HEADER_BYTES), &last)
        })
        .collect();
    rebuild(WAL, SEGMENT_BYTES_MIN, &mut clues);
    start_by(files, &mut clues)
}

fn start_by(files: &Files, clues: &mut [FileClues]) -> Result<Start, String> {
    let order = plan(WAL, SEGMENT_BYTES_MIN, clues.iter().map(|file| (file.slot, file.header)))
        .map_err(|error| error.to_string())?;
    let mut headers = order.segments;
    let newest = headers.pop().ok_or("nothing is in use")?;
    let mut state = State::default();
    let mut tail_end = scan(files, &newest, BlockSequence::FIRST, &mut state)?;
    if tail_end.sealed.is_none() {
        for header in headless(&newest, &tail_end.next, clues) {
            let behind = scan(files, &header, BlockSequence::FIRST, &mut State::default())?;
            if was_in_use(&header, &behind) {
                let file = clues.iter_mut().find(|file| file.slot == header.slot);
                file.expect("every file was looked at").header = Ok(header);
                return start_by(files, clues);
            }
            if tail_end.next.sequence < behind.durable_end {
                state = State::default();
                tail_end = scan(files, &newest, behind.durable_end, &mut state)?;
            }
        }
    }
    let mut tail = newest;
    let mut seen = Vec::new();
    if let Some(before) = headers.pop() {
        let mut of_before = State::default();
        let (mut first, end) = see(files, &before, tail_end.durable_end, &mut of_before)?;
        if first.end.is_none()
            && end.as_ref().is_some_and(|end| end.corrupt)
            && newest.first_block <= tail_end.durable_end
        {
            first.end = Some(SegmentEnd {
                blocks_end: 0,
                next_block: newest.first_block,
                prev_crc: newest.prev_crc,
                incarnation: tail_end.next.incarnation,
                next: newest.as_next(),
            });
        }
        let judged = judge_newest(Some(first.end), &newest, &tail_end);
        match judged.map_err(|error| error.to_string())? {
            Activation::Activated => seen.push(first),
            Activation::Never => {
                (tail, state) = (before, of_before);
                tail_end = end.expect("it has no footer");
            }
        }
    } else if judge_newest(None, &newest, &tail_end).map_err(|error| error.to_string())?
        == Activation::Never
    {
        return Err("the first segment was never used".to_owned());
    }
    let mut next = seen.last().map_or(tail, |seen: &Seen| seen.header);
    while let Some(header) = headers.pop() {
        let (found, _) = see(files, &header, next.first_block, &mut State::default())?;
        if let Some(end) = found.end
            && header.sequence.next() == next.sequence
        {
            check_join(&end, &next).map_err(|error| error.to_string())?;
        }
        next = header;
        seen.push(found);
    }
    if !tail_end.checkpoint_complete {
        state = replay_from_older(files, &seen, &tail, &tail_end)?;
    }
    seen.reverse();
    seen.push(Seen { header: tail, end: None, points: points_of(&tail_end.index) });
    Ok(serve(files, &seen, &state))
}

fn replay_from_older(
    files: &Files,
    older: &[Seen],
    tail: &SegmentHeader,
    tail_end: &ScanEnd,
) -> Result<State, String> {
    let mut next = *tail;
    let mut from = Vec::new();
    for seen in older.iter().take_while(|seen| seen.header.sequence < tail.sequence) {
        from.push((seen.header, next.first_block));
        let end = scan(files, &seen.header, next.first_block, &mut State::default())?;
        if end.checkpoint_complete {
            let mut state = State::default();
            for (header, durable_end) in from.iter().rev() {
                scan(files, header, *durable_end, &mut state)?;
            }
            scan(files, tail, tail_end.durable_end, &mut state)?;
            return Ok(state);
        }
        next = seen.header;
    }
    Err("no whole checkpoint".to_owned())
}

fn serve(files: &Files, seen: &[Seen], state: &State) -> Start {
    let mut start = Start { doubt_unnamed: state.doubt, ..Start::default() };
    for (id, replayed) in &state.partitions {
        let named = start.named.entry(*id).or_default();
        named.extend(replayed.named.iter().cloned());
        if replayed.doubt {
            start.doubtful.insert(*id, replayed.log_end);
        }
        let held = seen.iter().filter_map(|seen| {
            let points = seen.points.get(id)?;
            Some(points.first()?.0..points.last()?.1)
        });
        let (from, to) = (Offset(replayed.log_start), Offset(replayed.log_end));
        named.extend(missing_records(from, to, held).iter().map(|r| r.start.0..r.end.0));
    }
    for segment in seen {
        let file = &files[&segment.header.slot];
        for (id, points) in &segment.points {
            let mut end: Option<Offset> = None;
            for (base_offset, end_offset, position, length) in points {
                // What lies between two entries of a segment is refused when it is asked for.
                let named = start.named.entry(*id).or_default();
                if let Some(end) = end
                    && end < *base_offset
                {
                    named.push(end.0..base_offset.0);
                }
                end = Some(*end_offset);
                let expect = EntryExpect {
                    generation: segment.header.generation,
                    partition: *id,
                    base_offset: *base_offset,
                };
                let bytes = &file[*position as usize..(*position + *length) as usize];
                match decode_entry(bytes, &expect) {
                    Ok((_, payload)) => {
                        start.served.insert((*id, *base_offset), payload.to_vec());
                    }
                    Err(_) => named.push(base_offset.0..end_offset.0),
                }
            }
        }
    }
    start
}

fn points_of(index: &SegmentIndex) -> BTreeMap<TopicPartition, Vec<(Offset, Offset, u32, u32)>> {
    let with_points = index.partitions().map(|summary| {
        let points = index.points(summary.partition).iter();
        let points = points.map(|p| (p.base_offset, p.end_offset(), p.position, p.length));
        (summary.partition, points.collect::<Vec<_>>())
    });
    with_points.filter(|(_, points)| !points.is_empty()).collect()
}

/// A sealed segment by its footer, or by a scan if that is not whole.
fn see(
    files: &Files,
    header: &SegmentHeader,
    durable_end: BlockSequence,
    state: &mut State,
) -> Result<(Seen, Option<ScanEnd>), String> {
    if let Some((end, points)) = footer(&files[&header.slot], header) {
        return Ok((Seen { header: *header, end: Some(end), points }, None));
    }
    let end = scan(files, header, durable_end, state)?;
    let points = points_of(&end.index);
    Ok((Seen { header: *header, end: end.segment_end(), points }, Some(end)))
}

type Points = BTreeMap<TopicPartition, Vec<(Offset, Offset, u32, u32)>>;

/// The whole footer: a start reads its table and a fetch its points, and both scan if they are bad.
fn footer(file: &[u8], header: &SegmentHeader) -> Option<(SegmentEnd, Points)> {
    let trailer = FooterTrailer::decode(&file[file.len() - FOOTER_TRAILER_BYTES..], header).ok()?;
    let bytes = |range: Range<u64>| &file[range.start as usize..range.end as usize];
    let lines = trailer.decode_table(bytes(trailer.table_range()), header.generation).ok()?;
    let mut points = BTreeMap::new();
    for line in lines {
        let range = trailer.points_range(&line);
        let held = line.decode_points(bytes(range), header.generation).ok()?;
        let held: Vec<_> =
            held.iter().map(|p| (p.base_offset, p.end_offset(), p.position, p.length)).collect();
        if !held.is_empty() {
            points.insert(line.summary.partition, held);
        }
    }
    Some((trailer.end, points))
}

fn scan(
    files: &Files,
    header: &SegmentHeader,
    durable_end: BlockSequence,
    state: &mut State,
) -> Result<ScanEnd, String> {
    let file = &files[&header.slot];
    let mut scan = Scan::new(header, durable_end);
    while let Some(range) = scan.next_read() {
        let bytes = &file[range.start as usize..range.end as usize];
        let fed = scan.feed(range.start, bytes, |_, entry| {
            if entry.header.partition == WAL_ITSELF {
                return;
            }
            let of = state.of(entry.header.partition);
            match entry.header.kind {
                EntryKind::Data => {
                    assert!(of.log_end <= entry.header.base_offset.0, "offsets grow");
                    of.log_end = entry.header.end_offset().0;
                    of.doubt = false;
                }
                EntryKind::Checkpoint => {
                    let checkpoint = PartitionCheckpoint::decode(entry.payload).expect("whole");
                    if !of.begun {
                        (of.begun, of.log_start) = (true, checkpoint.log_start.0);
                    }
                    of.log_end = of.log_end.max(checkpoint.log_end.0);
                    of.doubt = false;
                }
                EntryKind::LogStart | EntryKind::EpochStart => {}
            }
        });
        match fed {
            Ok(()) => {}
            Err(ScanError::Corruption(bad)) => {
                match &bad.named {
                    Some(lines) => {
                        for line in lines.iter().filter(|line| line.kind == 1) {
                            let end = line.base_offset.0 + u64::from(line.record_count);
                            let of = state.of(line.partition);
                            of.named.push(line.base_offset.0..end);
                            of.log_end = of.log_end.max(end);
                            of.doubt = false;
                        }
                    }
                    None => {
                        state.doubt = true;
                        state.partitions.values_mut().for_each(|of| of.doubt = true);
                    }
                }
                if !scan.skip_corruption() {
                    break;
                }
            }
            Err(error) => return Err(error.to_string()),
        }
    }
    Ok(scan.finish())
}

/// Three sealed segments, one of them in a recycled file, and a tail with marks; every block of
/// them was flushed and is known to have been.
fn image() -> (Writer, Files) {
    let mut writer = Writer::create(SEGMENT_BYTES_MIN, 4, SEED);
    for round in 0..6_u8 {
        for number in 0..3 {
            writer.append(partition(number), &[&[round; 300], &[number; 20]]);
        }
        writer.commit(BlockFlags::NONE, true);
        writer.append(partition(round % 3), &[&[round ^ 0xff; 5000]]);
        writer.append(partition(3), &[&[7; 10]]);
        writer.commit(BlockFlags::NONE, true);
        if round < 5 {
            if 3 <= round {
                writer.free();
            }
            writer.rotate();
        }
    }
    writer.commit(BlockFlags::IDLE, true);
    writer.commit(BlockFlags::CLEAN, true);
    let files = writer.disk.files();
    (writer, files)
}

/// Every written record that is still in a live segment is served as it was, or named.
fn check(
    files: &Files,
    writer: &Writer,
    first: SegmentSequence,
    what: &dyn Fn() -> String,
) -> Told {
    let found = match start(files) {
        Ok(found) => found,
        Err(why) => {
            assert!(!why.is_empty(), "{}", what());
            return Told::Refused;
        }
    };
    let mut told = Told::Nothing;
    let mut known = 0;
    for entry in writer.written.iter().filter(|entry| first <= entry.segment) {
        if let Some(bytes) = found.served.get(&(entry.partition, entry.base_offset)) {
            assert!(*bytes == entry.payload, "{}: other bytes are served", what());
            known += 1;
            continue;
        }
        told = Told::Named;
        let end = BatchHeader::decode(&entry.payload).expect("a good batch").last_offset().0 + 1;
        let range = entry.base_offset.0..end;
        let named = found.named.get(&entry.partition);
        let is_named = named.is_some_and(|named| {
            range.clone().all(|offset| named.iter().any(|range| range.contains(&offset)))
        });
        let is_doubtful = match found.doubtful.get(&entry.partition) {
            Some(from) => *from <= range.start,
            None => found.doubt_unnamed && named.is_none(),
        };
        assert!(
            is_named || is_doubtful,
            "{}: {:?} {range:?} is lost in silence",
            what(),
            entry.partition
        );
    }
    let older = found.served.keys().filter(|(id, offset)| {
        writer.written.iter().any(|entry| {
            entry.segment < first && entry.partition == *id && entry.base_offset == *offset
        })
    });
    assert_eq!(found.served.len(), known + older.count(), "{}: nobody wrote that", what());
    told
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
enum Told {
    Nothing,
    Named,
    Refused,
}

/// The parts of each file that hold anything.
fn regions(files: &Files) -> Vec<(Slot, Range<usize>)> {
    let mut regions = Vec::new();
    for (slot, file) in files {
        let pages: Vec<usize> = (0..file.len())
            .step_by(BLOCK_ALIGN)
            .filter(|at| file[*at..*at + BLOCK_ALIGN].iter().any(|byte| *byte != 0))
            .collect();
        regions.extend(pages.into_iter().map(|at| (*slot, at..at + BLOCK_ALIGN)));
    }
    regions
}

fn first_live(files: &Files) -> SegmentSequence {
    let headers = files.values().filter_map(|file| SegmentHeader::decode(file).ok());
    let live = headers.filter(|header| header.state == rustmq_wal::SegmentState::Active);
    live.map(|header| header.sequence).min().expect("segments are live")
}

#[test]
fn every_turned_bit_is_made_good_named_or_refused() {
    let (writer, mut files) = image();
    let first = first_live(&files);
    assert_eq!(check(&files, &writer, first, &|| "whole".to_owned()), Told::Nothing);
    let mut counts = BTreeMap::new();
    // One bit of each byte, another one from byte to byte; all eight with `RUSTMQ_EVERY_BIT`.
    let bits: u32 = if std::env::var_os("RUSTMQ_EVERY_BIT").is_some() { 8 } else { 1 };
    for (slot, range) in regions(&files) {
        for at in range {
            for bit in 0..bits {
                let mask = 1_u8 << ((at as u32 * 5 + bit) % 8);
                files.get_mut(&slot).expect("a file")[at] ^= mask;
                let what = || format!("{} byte {at} mask {mask:#x}", slot.file_name());
                let told = check(&files, &writer, first, &what);
                *counts.entry(told).or_insert(0_u64) += 1;
                assert!(told != Told::Refused, "{}: one bit refuses nothing", what());
                files.get_mut(&slot).expect("a file")[at] ^= mask;
            }
        }
    }
    println!("turned bits: {counts:?}");
    assert!(1000 < counts[&Told::Named], "payloads cannot be made up: {counts:?}");
}

#[test]
fn zeroed_sectors_pages_and_swapped_pages_are_made_good_named_or_refused() {
    let (writer, files) = image();
    let first = first_live(&files);
    let regions = regions(&files);
    let mut counts = BTreeMap::new();
    for (slot, range) in &regions {
        let sectors = range.clone().step_by(512).map(|at| at..at + 512);
        for damaged in sectors.chain([range.clone()]) {
            for fill in [0, 0xff] {
                let mut files = files.clone();
                files.get_mut(slot).expect("a file")[damaged.clone()].fill(fill);
                let what = || format!("{} {damaged:?} filled with {fill}", slot.file_name());
                *counts.entry(check(&files, &writer, first, &what)).or_insert(0_u64) += 1;
            }
        }
    }
    for (slot, range) in &regions {
        for (other_slot, other) in &regions {
            if (slot, range.start) >= (other_slot, other.start) || range.start % 3 != 0 {
                continue;
            }
            let mut swapped = files.clone();
            let one = files[slot][range.clone()].to_vec();
            let two = files[other_slot][other.clone()].to_vec();
            swapped.get_mut(slot).expect("a file")[range.clone()].copy_from_slice(&two);
            swapped.get_mut(other_slot).expect("a file")[other.clone()].copy_from_slice(&one);
            let what = || format!("{slot:?} {range:?} swapped with {other_slot:?} {other:?}");
            *counts.entry(check(&swapped, &writer, first, &what)).or_insert(0_u64) += 1;
        }
    }
    println!("zeroed and swapped: {counts:?}");
    assert!(counts[&Told::Nothing] < counts.values().sum(), "{counts:?}");
}

#[test]
fn a_file_that_is_gone_is_named_or_refused() {
    let (writer, files) = image();
    let first = first_live(&files);
    for slot in files.keys() {
        let mut files = files.clone();
        let file = files.remove(slot).expect("a file");
        let was_live = SegmentHeader::decode(&file)
            .is_ok_and(|header| header.state == rustmq_wal::SegmentState::Active);
        let told = check(&files, &writer, first, &|| format!("{} is gone", slot.file_name()));
        assert_eq!(told != Told::Nothing, was_live, "{}", slot.file_name());
    }
}

/// What salvage makes of a directory: the new files, and whether anything was given up.
fn salvaged(files: &Files) -> (Files, bool) {
    let mut live: Vec<_> = files
        .iter()
        .filter_map(|(slot, file)| Some((*slot, SegmentHeader::decode(file).ok()?)))
        .filter(|(_, header)| header.state == rustmq_wal::SegmentState::Active)
        .collect();
    live.sort_by_key(|(_, header)| header.sequence);
    let mut generation = SEED;
    let draw = || {
        generation = generation.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(7);
        generation
    };
    let mut salvage = Salvage::new(WAL, SEGMENT_BYTES_MIN, rustmq_wal::Incarnation(9), draw);
    let mut lost = false;
    for (index, (slot, header)) in live.iter().enumerate() {
        let next = live.get(index + 1);
        let durable_end = next.map_or(BlockSequence::FIRST, |(_, next)| next.first_block);
        let file = &files[slot];
        let mut verify = Verify::new(header, durable_end, file.len() as u64);
        while let Some(range) = verify.next_read() {
            let bytes = &file[range.start as usize..range.end as usize];
            let known = verify.findings().len();
            verify.feed(range.start, bytes, |_, entry| {
                assert!(salvage.take(&entry.header, entry.payload), "whole entries make sense");
            });
            if known == verify.findings().len() {
                continue;
            }
            let damaged = verify.findings()[known].position..verify.findings()[known].end;
            let last = &file[file.len() - FOOTER_TRAILER_BYTES..];
            let Some(start) = footer_start(header, last) else { continue };
            let points = points_in(header, start, &file[start as usize..], damaged);
            let decode = |id, point: &rustmq_wal::IndexPoint| {
                let (generation, base_offset) = (header.generation, point.base_offset);
                let expect = EntryExpect { generation, partition: id, base_offset };
                decode_entry(&file[point.position as usize..], &expect)
            };
            let points = points.unwrap_or_default().into_iter();
            let found = points.map(|(id, point)| (id, point, decode(id, &point).is_ok()));
            for (id, point) in verify.rescue(found) {
                let (entry, payload) = decode(id, &point).expect("just seen");
                assert!(salvage.take(&entry, payload), "whole entries make sense");
            }
        }
        for finding in verify.finish(None, false).findings {
            match finding.lost {
                Lost::Nothing | Lost::State => {}
                Lost::Records(records) => {
                    lost = true;
                    for (partition, range) in records {
                        salvage.lose_records(partition, range.end);
                    }
                }
                Lost::Unknown => {
                    lost = true;
                    salvage.lose(finding.end - finding.position);
                }
            }
        }
    }
    salvage.finish();
    let mut made = Files::new();
    for write in salvage.take_writes() {
        let file = made.entry(write.slot).or_insert_with(|| vec![0; SEGMENT_BYTES_MIN as usize]);
        let at = write.position as usize;
        file[at..at + write.bytes.len()].copy_from_slice(&write.bytes);
    }
    (made, lost)
}

#[test]
fn what_is_salvaged_is_all_that_was_whole_and_opens() {
    let (writer, files) = image();
    let first = first_live(&files);
    let served = |found: &Start| found.served.clone();
    let whole = start(&files).expect("it is whole");
    let (made, lost) = salvaged(&files);
    assert!(!lost);
    assert_eq!(served(&start(&made).expect("it opens")), served(&whole));
    // Every page in turn, but headers: a start makes those up, and salvage is given them.
    let mut given_up = 0;
    for (slot, range) in regions(&files) {
        if range.start == 0 {
            continue;
        }
        for damage in [range.clone(), range.start + 600..range.start + 601] {
            let mut files = files.clone();
            files.get_mut(&slot).expect("a file")[damage.clone()].fill(0x55);
            let (made, lost) = salvaged(&files);
            given_up += u32::from(lost);
            let what = || format!("{} {damage:?} salvaged", slot.file_name());
            let found = start(&made).unwrap_or_else(|why| panic!("{}: {why}", what()));
            for (key, bytes) in &found.served {
                assert!(whole.served.get(key) == Some(bytes), "{}: {key:?}", what());
            }
            assert!(lost || found.served.len() == whole.served.len(), "{}", what());
            let before = start(&files).expect("the rest is served");
            assert!(before.served.len() <= found.served.len(), "{}: fewer than before", what());
        }
    }
    assert!(10 < given_up, "{given_up} losses");
    assert_eq!(check(&files, &writer, first, &|| "as it was".to_owned()), Told::Nothing);
}
