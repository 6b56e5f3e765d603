//! Makes what an image of a segment says of itself true, as far as the input wants that: header,
//! chain of blocks, directories, entries and their checksums.

use crate::layout::{add, put, seeded, seeded_for_block, u32_at, u64_at};
use crate::pages::PAGE_BYTES;

pub(super) const BLOCK_HEADER_BYTES: usize = 128;
const LINE_BYTES: usize = 48;
const ENTRY_HEADER_BYTES: usize = 80;
const BATCH_HEADER_BYTES: usize = 64;
const DATA: u8 = 1;

/// What of a block is left as it is. Three bits of the input choose for each block.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Leaves {
    /// Nothing: the block is good unless its lengths contradict each other.
    Nothing,
    /// The payloads.
    Payloads,
    /// The checksum of each entry's header.
    EntryHeaders,
    /// The checksum over the headers of all entries.
    EntriesChecksum,
    /// The checksum of the directory.
    DirectoryChecksum,
    /// What the directory says; checksums are made for what there is.
    Lines,
    /// All but its header, which is good and joins the chain.
    AllButHeader,
    /// All of it.
    All,
}

impl Leaves {
    /// What bits `3 * index` say; the bits are used again and again.
    fn of(choices: u64, index: usize) -> Self {
        match choices >> (3 * (index % 21)) & 7 {
            0 => Self::Nothing,
            1 => Self::Payloads,
            2 => Self::EntryHeaders,
            3 => Self::EntriesChecksum,
            4 => Self::DirectoryChecksum,
            5 => Self::Lines,
            6 => Self::AllButHeader,
            _ => Self::All,
        }
    }
}

/// Where a block is and what comes before it.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) wal: [u8; 16],
    pub(super) generation: u64,
    pub(super) position: u64,
    pub(super) sequence: u64,
    pub(super) prev_crc: u32,
    pub(super) incarnation: u64,
}

/// The header page: magic, version and checksum.
pub(super) fn segment_header(page: &mut [u8]) {
    put(page, 0, b"RQWALSEG");
    put(page, 8, &1_u16.to_le_bytes());
    page[10] = 1 + page[10] % 2;
    let crc = add(seeded(u64_at(page, 40)), &page[..508]);
    put(page, 508, &crc.to_le_bytes());
}

/// The chain of blocks behind the header page.
pub(super) fn chain(image: &mut [u8], choices: u64) {
    let (header, blocks) = image.split_at_mut(PAGE_BYTES);
    let mut place = Place {
        wal: crate::layout::array_at(header, 16),
        generation: u64_at(header, 40),
        position: PAGE_BYTES as u64,
        sequence: u64_at(header, 56),
        prev_crc: u32_at(header, 64),
        incarnation: 0,
    };
    let mut index = 0;
    let mut rest = blocks;
    while !rest.is_empty() {
        let length = block(rest, &place, Leaves::of(choices, index)).min(rest.len());
        place.prev_crc = u32_at(rest, 124);
        place.incarnation = u64_at(rest, 32);
        place.position += length as u64;
        place.sequence = place.sequence.wrapping_add(1);
        rest = &mut rest[length..];
        index += 1;
    }
}

/// One block by itself, repaired as the lowest three bits say.
pub(super) fn alone(block_bytes: &mut [u8], place: &Place, choices: u64) {
    block(block_bytes, place, Leaves::of(choices, 0));
}

/// Repairs the block at the beginning of `bytes`, whole pages; returns its length.
fn block(bytes: &mut [u8], place: &Place, leaves: Leaves) -> usize {
    let length = u32_at(bytes, 64) as usize;
    let sane = length != 0 && length.is_multiple_of(PAGE_BYTES) && length <= bytes.len();
    if leaves == Leaves::All {
        return if sane { length } else { PAGE_BYTES };
    }
    let length = if sane { length } else { PAGE_BYTES };
    let block = &mut bytes[..length];
    put(block, 0, b"RQBK");
    put(block, 4, &1_u16.to_le_bytes());
    put(block, 8, &place.wal);
    put(block, 24, &place.generation.to_le_bytes());
    let incarnation = u64_at(block, 32).max(place.incarnation);
    put(block, 32, &incarnation.to_le_bytes());
    put(block, 40, &place.position.to_le_bytes());
    put(block, 48, &place.sequence.to_le_bytes());
    put(block, 64, &(length as u32).to_le_bytes());
    put(block, 76, &place.prev_crc.to_le_bytes());
    if leaves != Leaves::AllButHeader {
        entries(block, place, leaves);
    }
    let crc = add(seeded(place.generation), &block[..124]);
    put(block, 124, &crc.to_le_bytes());
    length
}

/// The directory, the entries that it names one after another, and both checksums.
fn entries(block: &mut [u8], place: &Place, leaves: Leaves) {
    let count = (u32_at(block, 72) as usize).min((block.len() - BLOCK_HEADER_BYTES) / LINE_BYTES);
    put(block, 72, &(count as u32).to_le_bytes());
    let directory_end = BLOCK_HEADER_BYTES + count * LINE_BYTES;
    let declared = u32_at(block, 68) as usize;
    let fits = declared.is_multiple_of(8) && (directory_end..=block.len()).contains(&declared);
    let start = if fits { declared } else { directory_end.next_multiple_of(8).min(block.len()) };
    put(block, 68, &(start as u32).to_le_bytes());

    let mut entries_crc = seeded_for_block(place.generation, place.sequence);
    let mut end = start;
    for index in 0..count {
        let line = BLOCK_HEADER_BYTES + index * LINE_BYTES;
        let payload = u32_at(block, line + 40) as usize;
        if block.len() < end + ENTRY_HEADER_BYTES + payload {
            break;
        }
        if leaves != Leaves::Lines {
            put(block, line + 36, &(end as u32).to_le_bytes());
        }
        entry(block, line, end, place, leaves);
        entries_crc = add(entries_crc, &block[end..end + ENTRY_HEADER_BYTES]);
        end = (end + ENTRY_HEADER_BYTES + payload).next_multiple_of(8);
    }
    if leaves != Leaves::EntriesChecksum {
        put(block, 84, &entries_crc.to_le_bytes());
    }
    let directory_crc = add(
        seeded_for_block(place.generation, place.sequence),
        &block[BLOCK_HEADER_BYTES..directory_end],
    );
    if leaves != Leaves::DirectoryChecksum {
        put(block, 80, &directory_crc.to_le_bytes());
    }
}

/// The entry at `at` becomes the one that the line names; its payload keeps its bytes, but for the
/// front of a batch.
fn entry(block: &mut [u8], line: usize, at: usize, place: &Place, leaves: Leaves) {
    let named: [u8; LINE_BYTES] = crate::layout::array_at(block, line);
    let payload_bytes = u32_at(&named, 40) as usize;
    let (header, payload) = block[at..].split_at_mut(ENTRY_HEADER_BYTES);
    let payload = &mut payload[..payload_bytes];
    if leaves != Leaves::Lines {
        header[4] = named[20];
        put(header, 8, &place.sequence.to_le_bytes());
        put(header, 16, &named[..20]);
        put(header, 40, &named[24..36]);
        put(header, 52, &named[40..44]);
    }
    if leaves != Leaves::Payloads {
        let is_batch = named[20] == DATA && BATCH_HEADER_BYTES <= payload.len();
        let crc = crc32c::crc32c(if is_batch { &payload[20..] } else { payload });
        put(header, 64, &crc.to_le_bytes());
        if is_batch {
            put(payload, 0, &named[24..32]);
            put(payload, 8, &named[40..44]);
            put(payload, 12, &header[36..40]);
            put(payload, 16, &crc.to_le_bytes());
        }
    }
    if leaves != Leaves::EntryHeaders {
        let crc = add(seeded(place.generation), &header[4..]);
        put(header, 0, &crc.to_le_bytes());
    }
}
