//! Makes what an image of a catalogue file says of itself true, as far as the input wants that; and
//! reads it by other code than the product's.

use crate::layout::{add, put, seeded, seeded_for_block, u16_at, u32_at, u64_at};
use crate::pages::PAGE_BYTES;

const APPEND_HEADER_BYTES: usize = 64;
const SNAPSHOT: u16 = 1;
const RETIRED: u16 = 4;

/// Repairs the header page of a file and the chain of appends behind it. Two bits of `choices` for
/// each append: all of it, all but its records, all but what it says it follows, nothing.
pub(super) fn file(bytes: &mut [u8], letter: u8, choices: u16) {
    // A file that was never written is left so.
    if bytes.len() < PAGE_BYTES || bytes[..512].iter().all(|byte| *byte == 0) {
        return;
    }
    let file_bytes = bytes.len() as u64;
    let (page, appends) = bytes.split_at_mut(PAGE_BYTES);
    put(page, 0, b"RQCATLOG");
    put(page, 8, &1_u16.to_le_bytes());
    page[10] = letter;
    put(page, 32, &file_bytes.to_le_bytes());
    let generation = u64_at(page, 16);
    let crc = add(seeded(generation), &page[..508]);
    put(page, 508, &crc.to_le_bytes());

    let (mut position, mut sequence, mut prev_crc) = (PAGE_BYTES, 1_u64, 0);
    let mut rest = appends;
    while !rest.is_empty() {
        let length = u32_at(rest, 40) as usize;
        let sane = length != 0 && length.is_multiple_of(PAGE_BYTES) && length <= rest.len();
        let length = if sane { length } else { PAGE_BYTES };
        let (append, after) = rest.split_at_mut(length);
        let choice = choices >> (2 * (sequence as usize % 8)) & 3;
        // Pages that were never written are the end, unless something is to be made of them.
        if choice != 3 && append[..APPEND_HEADER_BYTES].iter().any(|byte| *byte != 0) {
            put(append, 0, b"RQCA");
            put(append, 4, &1_u16.to_le_bytes());
            put(append, 8, &generation.to_le_bytes());
            put(append, 16, &(position as u64).to_le_bytes());
            put(append, 40, &(length as u32).to_le_bytes());
            put(append, 24, &sequence.to_le_bytes());
            if choice != 2 {
                put(append, 52, &u32::to_le_bytes(prev_crc));
            }
            if choice != 1 {
                append_records(append, generation);
            }
            let crc = add(seeded(generation), &append[..60]);
            put(append, 60, &crc.to_le_bytes());
        }
        prev_crc = u32_at(append, 60);
        position += length;
        sequence += 1;
        rest = after;
    }
}

/// The lengths of the records fit into the append, and their count and checksum are theirs.
fn append_records(append: &mut [u8], generation: u64) {
    let room = append.len() - APPEND_HEADER_BYTES;
    let bytes = (u32_at(append, 44) as usize).min(room) / 8 * 8;
    put(append, 44, &(bytes as u32).to_le_bytes());
    let (header, records) = append.split_at_mut(APPEND_HEADER_BYTES);
    let records = &mut records[..bytes];
    let (mut at, mut count) = (0, 0_u32);
    while at < bytes {
        let length = (u32_at(records, at) as usize).min(bytes - at - 4);
        put(records, at, &(length as u32).to_le_bytes());
        at += (4 + length).next_multiple_of(8);
        count += 1;
    }
    put(header, 48, &count.to_le_bytes());
    let crc = add(seeded_for_block(generation, u64_at(header, 24)), records);
    put(header, 56, &crc.to_le_bytes());
}

/// What is in a file whose header is good, up to the first append that is not whole or not in its
/// place, or to the retirement.
pub(super) struct Records<'a> {
    pub(super) snapshot: Option<&'a [u8]>,
    pub(super) commands: Vec<&'a [u8]>,
    /// Whether an append behind that says that what is missing was flushed.
    pub(super) is_cut_short: bool,
}

pub(super) fn records(bytes: &[u8]) -> Records<'_> {
    let generation = u64_at(bytes, 16);
    // Behind the end of this use lies what earlier ones left.
    let bytes = match u64_at(bytes, 40) as usize {
        0 => bytes,
        end => &bytes[..end],
    };
    let (mut snapshot, mut commands, mut retired) = (None, Vec::new(), false);
    let (mut position, mut sequence, mut prev_crc) = (PAGE_BYTES, 1_u64, 0);
    while let Some(append) = bytes.get(position..).filter(|rest| !rest.is_empty()) {
        let length = u32_at(append, 40) as usize;
        let records_end = APPEND_HEADER_BYTES + u32_at(append, 44) as usize;
        let is_next = is_header(append, generation, position)
            && u64_at(append, 24) == sequence
            && u32_at(append, 52) == prev_crc;
        let fits = length != 0
            && length.is_multiple_of(PAGE_BYTES)
            && records_end <= length
            && length <= append.len();
        if !is_next || !fits {
            break;
        }
        let records = &append[APPEND_HEADER_BYTES..records_end];
        if u32_at(append, 56) != add(seeded_for_block(generation, sequence), records) {
            break;
        }
        let Some(mut found) = split(records, u32_at(append, 48)) else { break };
        if u16_at(append, 6) & SNAPSHOT != 0 && !found.is_empty() {
            snapshot = Some(found.remove(0));
        }
        commands.append(&mut found);
        retired = u16_at(append, 6) & RETIRED != 0;
        if retired {
            break;
        }
        position += length;
        sequence += 1;
        prev_crc = u32_at(append, 60);
    }
    let behind = bytes.get(position..).unwrap_or_default();
    let later = behind.chunks(PAGE_BYTES).enumerate().skip(1);
    let is_cut_short = !retired
        && later.into_iter().any(|(page, append)| {
            is_header(append, generation, position + page * PAGE_BYTES)
                && sequence < u64_at(append, 32)
        });
    Records { snapshot, commands, is_cut_short }
}

/// A good header of an append, made for this place.
fn is_header(append: &[u8], generation: u64, position: usize) -> bool {
    append.starts_with(b"RQCA")
        && u32_at(append, 60) == add(seeded(generation), &append[..60])
        && u64_at(append, 8) == generation
        && u64_at(append, 16) == position as u64
}

/// `count` records, each a length, so many bytes and up to seven more; nothing may be left.
fn split(mut bytes: &[u8], count: u32) -> Option<Vec<&[u8]>> {
    let mut found = Vec::new();
    for _ in 0..count {
        let length = u32::from_le_bytes(*bytes.first_chunk()?) as usize;
        found.push(bytes.get(4..4 + length)?);
        bytes = bytes.get((4 + length).next_multiple_of(8)..)?;
    }
    bytes.is_empty().then_some(found)
}
