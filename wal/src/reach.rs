//! How far into the active segment blocks may lie, so that a start need not look at the rest.
//!
//! The last page of a segment is its footer's trailer; until then it may hold this mark. A block is
//! written only below a mark that is durable, so behind the mark there is none, and whoever looks for
//! proof that a bad block was flushed may stop there. Without a valid mark all of the file is looked at,
//! and where a block lies behind it the mark is not believed: the device lost a later one.

use crate::block::BLOCK_ALIGN;
use crate::bytes::{put, u16_at, u32_at, u64_at, wal_at};
use crate::checksum::Checksum;
use crate::segment::SegmentHeader;

/// Bytes of a mark: one page.
pub const REACH_BYTES: usize = BLOCK_ALIGN;

/// A mark allows for an eighth of the segment more than there is: of 64 MiB a start reads 4 MiB too many
/// on average, and one write in 8 MiB is a mark.
const REACH_PART: u64 = 8;

/// The next mark is written beside the block that comes this near to the last one, so none waits for
/// it: a quarter of what a mark allows for.
const REACH_MARGIN_PART: u64 = 4;

const MAGIC: &[u8; 8] = b"RQWALRCH";
const VERSION: u16 = 1;
const CRC_AT: usize = 508;

/// Where the mark lies in a segment's file.
#[must_use]
pub fn reach_position(segment_bytes: u64) -> u64 {
    segment_bytes - REACH_BYTES as u64
}

/// The mark to write with a block that ends at `end`, if the one that is durable is too near or behind.
#[must_use]
pub fn next_reach(segment_bytes: u64, durable: u64, end: u64) -> Option<u64> {
    let step = step(segment_bytes);
    (durable < end + step / REACH_MARGIN_PART)
        .then(|| (end + step).next_multiple_of(step).min(reach_position(segment_bytes)))
        .filter(|next| durable < *next)
}

fn step(segment_bytes: u64) -> u64 {
    (segment_bytes / REACH_PART).next_multiple_of(BLOCK_ALIGN as u64)
}

/// Writes a mark.
///
/// ```text
///  0 magic "RQWALRCH" | 8 version u16 | 10 zero ×2 | 12 slot u32 | 16 wal uuid | 32 sequence u64
/// 40 generation u64 | 48 reach u64 | 56 zero | 508 crc u32 | 512 zero to the end of the page
/// ```
pub fn encode_reach(segment: &SegmentHeader, reach: u64, page: &mut [u8; REACH_BYTES]) {
    page.fill(0);
    put(page, 0, MAGIC);
    put(page, 8, &VERSION.to_le_bytes());
    put(page, 12, &segment.slot.0.to_le_bytes());
    put(page, 16, &segment.wal.0);
    put(page, 32, &segment.sequence.0.to_le_bytes());
    put(page, 40, &segment.generation.0.to_le_bytes());
    put(page, 48, &reach.to_le_bytes());
    let crc = Checksum::new(segment.generation).add(&page[..CRC_AT]).value();
    put(page, CRC_AT, &crc.to_le_bytes());
}

/// Reads the mark of `segment` from the last page of its file. `None`: there is none that is whole and
/// of this use of the file, and of a version that this program knows.
#[must_use]
pub fn decode_reach(page: &[u8], segment: &SegmentHeader) -> Option<u64> {
    let page = page.first_chunk::<REACH_BYTES>()?;
    let is_whole = page[..8] == *MAGIC
        && u32_at(page, CRC_AT) == Checksum::new(segment.generation).add(&page[..CRC_AT]).value();
    let names_segment = u16_at(page, 8) == VERSION
        && u32_at(page, 12) == segment.slot.0
        && wal_at(page, 16) == segment.wal
        && u64_at(page, 32) == segment.sequence.0
        && u64_at(page, 40) == segment.generation.0;
    let reach = u64_at(page, 48);
    let is_sane =
        reach <= reach_position(segment.segment_bytes) && reach.is_multiple_of(BLOCK_ALIGN as u64);
    (is_whole && names_segment && is_sane).then_some(reach)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{BlockSequence, Generation, SegmentSequence, Slot, WalId};
    use crate::segment::SegmentState;

    const SEGMENT: SegmentHeader = SegmentHeader {
        state: SegmentState::Active,
        slot: Slot(3),
        wal: WalId([7; 16]),
        sequence: SegmentSequence(9),
        generation: Generation(0x1234),
        segment_bytes: 64 << 20,
        first_block: BlockSequence(100),
        prev_crc: 5,
    };

    #[test]
    fn a_mark_is_believed_only_of_its_own_segment_and_whole() {
        let mut page = [0xff; REACH_BYTES];
        assert_eq!(decode_reach(&page, &SEGMENT), None);
        encode_reach(&SEGMENT, 8 << 20, &mut page);
        assert_eq!(decode_reach(&page, &SEGMENT), Some(8 << 20));
        for other in [
            SegmentHeader { generation: Generation(1), ..SEGMENT },
            SegmentHeader { slot: Slot(4), ..SEGMENT },
            SegmentHeader { sequence: SegmentSequence(10), ..SEGMENT },
            SegmentHeader { wal: WalId([8; 16]), ..SEGMENT },
            SegmentHeader { segment_bytes: 4 << 20, ..SEGMENT },
        ] {
            assert_eq!(decode_reach(&page, &other), None, "{other:?}");
        }
        for byte in 0..CRC_AT + 4 {
            page[byte] ^= 1;
            assert_eq!(decode_reach(&page, &SEGMENT), None, "byte {byte}");
            page[byte] ^= 1;
        }
    }

    #[test]
    fn marks_stay_ahead_of_blocks_and_are_few() {
        for segment_bytes in [128 << 10, 64 << 20, 2 << 30_u64] {
            let (mut durable, mut marks) = (0, 0);
            let end = reach_position(segment_bytes);
            let block = (segment_bytes / 256).next_multiple_of(BLOCK_ALIGN as u64);
            for block_end in (block..=end).step_by(block as usize) {
                if let Some(next) = next_reach(segment_bytes, durable, block_end) {
                    assert!(durable < next && next <= end);
                    (durable, marks) = (next, marks + 1);
                }
                assert!(block_end <= durable, "{block_end} of {durable}");
            }
            assert!(marks <= 11, "{marks} marks in {segment_bytes}");
        }
    }
}
