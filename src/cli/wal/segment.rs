//! One segment, read from its front to its footer.

use anyhow::Result;
use rustmq_wal::verify::{Finding, Verified, Verify, What, footer_start, points_in};
use rustmq_wal::{
    BLOCK_ALIGN, BlockHeader, BlockSequence, Entry, EntryExpect, EntryHeader, IndexPoint,
    SegmentHeader, decode_entry,
};

use super::source::Source;

/// What is met in a segment, in its order.
pub(super) enum Met<'a> {
    /// An entry that is whole.
    Entry(&'a EntryHeader, &'a [u8]),
    /// Something that is wrong. What is whole of it was handed out before.
    Finding(&'a Finding),
}

/// Checks one segment and hands out what is met.
pub(super) fn check(
    source: &mut Source,
    header: &SegmentHeader,
    durable_end: BlockSequence,
    must_have_footer: bool,
    mut on_met: impl FnMut(Met<'_>),
) -> Result<Verified> {
    let mut verify = Verify::new(header, durable_end, source.bytes());
    let mut told = 0;
    while let Some(range) = verify.next_read() {
        verify.feed(range.start, source.get(range)?, |_, entry| {
            on_met(Met::Entry(&entry.header, entry.payload));
        });
        if told < verify.findings().len() {
            rescue(source, header, &mut verify, &mut on_met)?;
        }
        verify.findings()[told..].iter().for_each(|finding| on_met(Met::Finding(finding)));
        told = verify.findings().len();
    }
    let mut footer = None;
    if source.bytes() == header.segment_bytes {
        let end = header.segment_bytes;
        let last = source.get(end - BLOCK_ALIGN as u64..end)?;
        footer = footer_start(header, last);
    }
    let verified = match footer {
        Some(start) => {
            let bytes = source.get(start..header.segment_bytes)?;
            verify.finish(Some((start, bytes)), must_have_footer)
        }
        None => verify.finish(None, must_have_footer),
    };
    verified.findings[told..].iter().for_each(|finding| on_met(Met::Finding(finding)));
    Ok(verified)
}

/// Checks one segment by itself and hands out its blocks.
pub(super) fn blocks(
    source: &mut Source,
    header: &SegmentHeader,
    mut on_entry: impl FnMut(&BlockHeader, &Entry<'_>),
) -> Result<Verified> {
    let mut verify = Verify::new(header, BlockSequence::FIRST, source.bytes());
    while let Some(range) = verify.next_read() {
        verify.feed(range.start, source.get(range)?, &mut on_entry);
    }
    Ok(verify.finish(None, false))
}

/// Hands out the entries of the damaged part that the footer leads to, as a fetch would find them.
fn rescue(
    source: &Source,
    header: &SegmentHeader,
    verify: &mut Verify,
    on_met: &mut impl FnMut(Met<'_>),
) -> Result<()> {
    let end = header.segment_bytes;
    let Some(Finding { position, end: damage_end, what: What::Block(_), .. }) =
        verify.findings().last()
    else {
        return Ok(());
    };
    let damaged = *position..*damage_end;
    if source.bytes() != end {
        return Ok(());
    }
    let last = source.out_of_turn(end - BLOCK_ALIGN as u64..end)?;
    let Some(start) = footer_start(header, &last) else { return Ok(()) };
    let footer = source.out_of_turn(start..end)?;
    let Some(points) = points_in(header, start, &footer, damaged) else { return Ok(()) };
    let read = |point: &IndexPoint| -> Result<(Vec<u8>, usize)> {
        let page = BLOCK_ALIGN as u64;
        let first = u64::from(point.position) / page * page;
        let behind = u64::from(point.position) + u64::from(point.length);
        let bytes = source.out_of_turn(first..behind.next_multiple_of(page))?;
        let at = u64::from(point.position) - first;
        Ok((bytes, at as usize))
    };
    let mut found = Vec::new();
    for (partition, point) in points {
        let expect = EntryExpect {
            generation: header.generation,
            partition,
            base_offset: point.base_offset,
        };
        let (bytes, at) = read(&point)?;
        let is_whole = decode_entry(&bytes[at..], &expect).is_ok();
        found.push((partition, point, is_whole));
    }
    for (partition, point) in verify.rescue(found) {
        let expect = EntryExpect {
            generation: header.generation,
            partition,
            base_offset: point.base_offset,
        };
        let (bytes, at) = read(&point)?;
        if let Ok((entry, payload)) = decode_entry(&bytes[at..], &expect) {
            on_met(Met::Entry(&entry, payload));
        }
    }
    Ok(())
}
