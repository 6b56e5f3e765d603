//! What `rustmq wal verify` and `salvage` do with a segment: they come to an end, and what they save is
//! whole.

use std::collections::BTreeMap;

use rustmq_wal::salvage::Salvage;
use rustmq_wal::verify::{Coverage, Verified, Verify};
use rustmq_wal::{
    BLOCK_ALIGN, BlockSequence, Entry, EntryKind, FooterTrailer, Incarnation,
    SEGMENT_BYTES_DEFAULT, Scan, SegmentHeader, Slot,
};

use crate::pages::PAGE_BYTES;

/// Generations that a salvaged segment may have; any will do.
const GENERATIONS_FROM: u64 = 0xfeed_0000_0000_0000;

/// Verifies the image of a segment, and salvages what is whole of it.
pub(super) fn run(image: &[u8], header: &SegmentHeader, durable_end: BlockSequence) {
    let mut entries = Vec::new();
    let verified = verified(image, header, durable_end, |entry| {
        entries.push((entry.header, entry.payload.to_vec()));
    });
    let mut coverage = Coverage::default();
    coverage.add(&verified);
    for (_, range) in coverage.missing() {
        assert!(range.start < range.end, "something is missing");
    }
    for finding in &verified.findings {
        assert!(finding.position <= finding.end);
        assert!(!finding.what.to_string().is_empty() && !finding.lost.to_string().is_empty());
    }
    let mut generation = GENERATIONS_FROM;
    let draw = || {
        generation += 1;
        generation
    };
    // The one after the last there is would have none to follow it; nobody counts that far.
    let after = verified.end.next.incarnation.min(Incarnation(Incarnation::NEVER.0 - 2));
    let mut salvage = Salvage::new(header.wal, SEGMENT_BYTES_DEFAULT, after, draw);
    let mut taken = 0;
    for (entry, payload) in &entries {
        let is_data = entry.kind == EntryKind::Data;
        taken += usize::from(salvage.take(entry, payload) && is_data);
    }
    verified.findings.iter().for_each(|finding| salvage.leave_out(finding));
    for (_, range) in salvage.finish() {
        assert!(range.start <= range.end, "behind the last offset nothing can be lost");
    }
    let mut files: BTreeMap<Slot, Vec<u8>> = BTreeMap::new();
    for write in salvage.take_writes() {
        let file = files.entry(write.slot).or_default();
        let (at, end) = (write.position as usize, write.position as usize + write.bytes.len());
        // Footers lie at the end; nothing of them is asked here.
        if at < SEGMENT_BYTES_DEFAULT as usize / 2 {
            file.resize(file.len().max(end), 0);
            file[at..end].copy_from_slice(&write.bytes);
        }
    }
    let saved: usize = files.into_values().map(entries_in).sum();
    assert_eq!(saved, taken, "what was taken is there");
}

/// The verdict on the image, and the whole entries of it.
fn verified(
    image: &[u8],
    header: &SegmentHeader,
    durable_end: BlockSequence,
    mut on_entry: impl FnMut(&Entry<'_>),
) -> Verified {
    let mut verify = Verify::new(header, durable_end, image.len() as u64);
    let mut reads_left = 2 * image.len() / PAGE_BYTES;
    while let Some(read) = verify.next_read() {
        reads_left = reads_left.checked_sub(1).expect("it comes to its end");
        let bytes = &image[read.start as usize..read.end as usize];
        verify.feed(read.start, bytes, |_, entry| on_entry(entry));
    }
    let footer = image.len().checked_sub(BLOCK_ALIGN).and_then(|at| {
        let trailer = FooterTrailer::decode(&image[at..], header).ok()?;
        Some((trailer.footer_start, image.get(trailer.footer_start as usize..)?))
    });
    verify.finish(footer, false)
}

/// Batches in a salvaged segment, in which nothing is wrong.
fn entries_in(mut file: Vec<u8>) -> usize {
    file.resize(file.len().next_multiple_of(PAGE_BYTES) + PAGE_BYTES, 0);
    let header = SegmentHeader::decode(&file).expect("a salvaged segment has a header");
    let header = SegmentHeader { segment_bytes: file.len() as u64, ..header };
    let mut scan = Scan::new(&header, BlockSequence::FIRST);
    let mut batches = 0;
    while let Some(read) = scan.next_read() {
        let bytes = &file[read.start as usize..read.end as usize];
        let fed = scan.feed(read.start, bytes, |_, entry| {
            batches += usize::from(entry.header.kind == EntryKind::Data);
        });
        fed.expect("a salvaged segment is whole");
    }
    batches
}
