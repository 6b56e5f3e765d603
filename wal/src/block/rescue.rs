//! What is whole in a damaged block, and the one bit that may be wrong in a header.

use super::{BlockHeader, DirectoryLine, Entry, entry_at};
use crate::bytes::round_up;
use crate::checksum::Checksum;
use crate::entry::{ENTRY_ALIGN, ENTRY_HEADER_BYTES, EntryError, EntryHeader};

/// What is whole in a damaged block.
pub(crate) struct Rescued<'a> {
    /// Entries of which every byte was checked.
    pub(crate) entries: Vec<Entry<'a>>,
    /// The others; `None`: there may be any others.
    pub(crate) lost: Option<Vec<DirectoryLine>>,
    /// An entry is whole and of a kind that this version does not know.
    pub(crate) unknown_kind: Option<u8>,
}

/// Finds what is whole in a damaged block whose header is good. `bytes` begin with it and may end
/// early. Which entries there were is told by the directory, unless it contradicts itself, else by
/// the entry headers themselves, whose checksum is in the block's header. In the order in which they
/// lie there.
pub(crate) fn rescue_block<'a>(header: &BlockHeader, bytes: &'a [u8]) -> Rescued<'a> {
    let bytes = bytes.get(..header.length as usize).unwrap_or(bytes);
    let mut rescued = Rescued { entries: Vec::new(), lost: None, unknown_kind: None };
    let directory = header.directory(bytes).filter(|lines| lie_in_order(header, lines));
    let Some(lines) = directory.or_else(|| walk(header, bytes)) else {
        return rescued;
    };
    let mut lost = Vec::new();
    for line in lines {
        match entry_at(header, bytes, &line) {
            Ok((entry, payload)) if entry.check_payload(payload).is_ok() => {
                let position = header.position + u64::from(line.position);
                rescued.entries.push(Entry { header: entry, position, payload });
            }
            Err(EntryError::UnknownKind { kind }) => rescued.unknown_kind = Some(kind),
            Ok(_) | Err(_) => lost.push(line),
        }
    }
    rescued.lost = Some(lost);
    rescued
}

/// Do lines name entries that lie one after another from where the first begins, as writers leave
/// them?
fn lie_in_order(header: &BlockHeader, lines: &[DirectoryLine]) -> bool {
    let mut end = header.entries_start as usize;
    lines.iter().all(|line| {
        let begin = end;
        end = round_up(begin + ENTRY_HEADER_BYTES + line.payload_length as usize, ENTRY_ALIGN);
        line.position as usize == begin
    })
}

/// The directory that a block must have had, from its entry headers, if these are all whole.
fn walk(header: &BlockHeader, bytes: &[u8]) -> Option<Vec<DirectoryLine>> {
    let mut crc = Checksum::for_block(header.generation, header.sequence);
    let mut at = header.entries_start as usize;
    let mut lines = Vec::new();
    for _ in 0..header.entry_count {
        let entry_bytes = bytes.get(at..at + ENTRY_HEADER_BYTES)?;
        let entry = EntryHeader::decode(entry_bytes, header.generation).ok()?;
        crc = crc.add(entry_bytes);
        lines.push(DirectoryLine {
            partition: entry.partition,
            kind: entry.kind as u8,
            base_offset: entry.base_offset,
            record_count: entry.record_count,
            position: u32::try_from(at).ok()?,
            payload_length: entry.payload_length,
        });
        at = round_up(at + entry.entry_bytes(), ENTRY_ALIGN);
    }
    (crc.value() == header.entries_crc).then_some(lines)
}

/// Turns each bit in turn until `decode` takes the bytes.
pub(crate) fn correct_bit<T>(
    bytes: &mut [u8],
    mut decode: impl FnMut(&[u8]) -> Option<T>,
) -> Option<T> {
    for bit in 0..bytes.len() * 8 {
        bytes[bit / 8] ^= 1 << (bit % 8);
        if let Some(decoded) = decode(bytes) {
            return Some(decoded);
        }
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
    None
}
