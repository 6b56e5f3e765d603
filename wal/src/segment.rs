//! The first page of a segment file: whose it is, which use of it this is, and what it follows.

use core::fmt;

use crate::block::{BLOCK_ALIGN, ChainPoint, correct_bit};
use crate::bytes::{put, u16_at, u32_at, u64_at, wal_at};
use crate::checksum::Checksum;
use crate::ids::{
    BlockSequence, Generation, Incarnation, NextSegment, SegmentSequence, Slot, WalId,
};

/// Bytes of the header page; the first block begins after it.
pub const SEGMENT_HEADER_BYTES: usize = BLOCK_ALIGN;

/// Segment size unless configured: 64 MiB, so that 8 segments are half a gibibyte and a footer
/// stays readable in one go.
pub const SEGMENT_BYTES_DEFAULT: u64 = 64 << 20;

/// Smallest segment: below it header, checkpoint and footer leave no room. For simulations; brokers
/// are configured with no less than 1 MiB.
pub const SEGMENT_BYTES_MIN: u64 = 128 << 10;

/// Largest segment: positions in a footer are 32 bits.
pub const SEGMENT_BYTES_MAX: u64 = 2 << 30;

/// Version of the segment layout this crate writes, and the newest it reads.
pub const SEGMENT_VERSION: u16 = 1;

const SEGMENT_MAGIC: &[u8; 8] = b"RQWALSEG";
/// All fields are in the first sector: devices write one sector whole or not at all.
const SECTOR_BYTES: usize = 512;
const SEGMENT_CRC_AT: usize = SECTOR_BYTES - 4;

/// Whether a segment file is in use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum SegmentState {
    /// Free to be used; its bytes mean nothing.
    Spare = 1,
    /// Holds blocks.
    Active = 2,
}

/// The header of a segment file.
///
/// ```text
///  0 magic "RQWALSEG" | 8 version u16 | 10 state u8 | 11 zero | 12 slot u32 | 16 wal uuid
/// 32 sequence u64 | 40 generation u64 | 48 segment_bytes u64 | 56 first block sequence u64
/// 64 prev_crc u32 | 68 zero | 508 crc u32 | 512 zero to the end of the page
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentHeader {
    /// Whether the file is in use.
    pub state: SegmentState,
    /// Slot of the file: a copied file is noticed.
    pub slot: Slot,
    /// The WAL.
    pub wal: WalId,
    /// Its place among the segments; of a spare, the place it had when last used, 0 if never.
    pub sequence: SegmentSequence,
    /// Random bits of this use of the file.
    pub generation: Generation,
    /// Size of the file.
    pub segment_bytes: u64,
    /// Sequence of its first block.
    pub first_block: BlockSequence,
    /// Checksum of the block before that: the seal of the segment before, 0 in a WAL's first.
    pub prev_crc: u32,
}

impl SegmentHeader {
    /// Header of a file that was made, zeroed and never used.
    #[must_use]
    pub fn spare(wal: WalId, slot: Slot, segment_bytes: u64) -> Self {
        Self {
            state: SegmentState::Spare,
            slot,
            wal,
            sequence: SegmentSequence(0),
            generation: Generation(0),
            segment_bytes,
            first_block: BlockSequence(0),
            prev_crc: 0,
        }
    }

    /// This segment as its predecessor's seal block names it.
    #[must_use]
    pub fn as_next(&self) -> NextSegment {
        NextSegment { sequence: self.sequence, slot: self.slot, generation: self.generation }
    }

    /// The same file given back: what is written before it may be used again.
    #[must_use]
    pub fn freed(&self) -> Self {
        Self { state: SegmentState::Spare, ..*self }
    }

    /// The header in a page of which one bit is wrong: the checksum tells any three wrong bits from
    /// none at this length, so no other bit makes the page right. `None`: more is wrong.
    #[must_use]
    pub fn correct(bytes: &[u8]) -> Option<Self> {
        let mut sector = *bytes.first_chunk::<SECTOR_BYTES>()?;
        correct_bit(&mut sector, |sector| Self::decode(sector).ok())
    }

    /// What the segment's first block must be.
    #[must_use]
    pub fn chain_start(&self) -> ChainPoint {
        ChainPoint {
            wal: self.wal,
            generation: self.generation,
            incarnation: Incarnation(0),
            position: SEGMENT_HEADER_BYTES as u64,
            sequence: self.first_block,
            prev_crc: self.prev_crc,
        }
    }

    /// Writes the header page.
    pub fn encode(&self, page: &mut [u8; SEGMENT_HEADER_BYTES]) {
        page.fill(0);
        put(page, 0, SEGMENT_MAGIC);
        put(page, 8, &SEGMENT_VERSION.to_le_bytes());
        page[10] = self.state as u8;
        put(page, 12, &self.slot.0.to_le_bytes());
        put(page, 16, &self.wal.0);
        put(page, 32, &self.sequence.0.to_le_bytes());
        put(page, 40, &self.generation.0.to_le_bytes());
        put(page, 48, &self.segment_bytes.to_le_bytes());
        put(page, 56, &self.first_block.0.to_le_bytes());
        put(page, 64, &self.prev_crc.to_le_bytes());
        let crc = Checksum::new(self.generation).add(&page[..SEGMENT_CRC_AT]).value();
        put(page, SEGMENT_CRC_AT, &crc.to_le_bytes());
    }

    /// Reads the header page of a segment file.
    ///
    /// # Errors
    /// What it is instead. [`SegmentHeaderError::Blank`] is a file that was never used.
    pub fn decode(bytes: &[u8]) -> Result<Self, SegmentHeaderError> {
        let Some(bytes) = bytes.first_chunk::<SECTOR_BYTES>() else {
            return Err(SegmentHeaderError::Short { available: bytes.len() });
        };
        if bytes.iter().all(|byte| *byte == 0) {
            return Err(SegmentHeaderError::Blank);
        }
        if bytes[..8] != *SEGMENT_MAGIC {
            return Err(SegmentHeaderError::NotASegment);
        }
        let generation = Generation(u64_at(bytes, 40));
        let found = u32_at(bytes, SEGMENT_CRC_AT);
        let computed = Checksum::new(generation).add(&bytes[..SEGMENT_CRC_AT]).value();
        if found != computed {
            return Err(SegmentHeaderError::Crc { found, computed });
        }
        let version = u16_at(bytes, 8);
        if version != SEGMENT_VERSION {
            return Err(SegmentHeaderError::NewerVersion {
                found: version,
                supported: SEGMENT_VERSION,
            });
        }
        let state = match bytes[10] {
            1 => SegmentState::Spare,
            2 => SegmentState::Active,
            found => return Err(SegmentHeaderError::UnknownState { found }),
        };
        let segment_bytes = u64_at(bytes, 48);
        if !(SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&segment_bytes)
            || !segment_bytes.is_multiple_of(BLOCK_ALIGN as u64)
        {
            return Err(SegmentHeaderError::Size { found: segment_bytes });
        }
        Ok(Self {
            state,
            slot: Slot(u32_at(bytes, 12)),
            wal: wal_at(bytes, 16),
            sequence: SegmentSequence(u64_at(bytes, 32)),
            generation,
            segment_bytes,
            first_block: BlockSequence(u64_at(bytes, 56)),
            prev_crc: u32_at(bytes, 64),
        })
    }
}

/// Why a file does not begin with a segment header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SegmentHeaderError {
    /// The file is shorter than a sector.
    Short {
        /// Bytes there are.
        available: usize,
    },
    /// Zeroes: the file was made and never used.
    Blank,
    /// Some other file.
    NotASegment,
    /// The header is damaged.
    Crc {
        /// Checksum in the header.
        found: u32,
        /// Checksum of the header's bytes.
        computed: u32,
    },
    /// A whole header of a later version.
    NewerVersion {
        /// Its version.
        found: u16,
        /// The newest this program reads.
        supported: u16,
    },
    /// A state this version does not know.
    UnknownState {
        /// Its number.
        found: u8,
    },
    /// A size no segment has.
    Size {
        /// The size in the header.
        found: u64,
    },
}

impl fmt::Display for SegmentHeaderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Short { available } => {
                write!(f, "segment header needs {SECTOR_BYTES} bytes, {available} are there")
            }
            Self::Blank => f.write_str("segment was never used"),
            Self::NotASegment => f.write_str("not a segment file"),
            Self::Crc { found, computed } => write!(
                f,
                "segment header says checksum {found:#010x}, its bytes have {computed:#010x}"
            ),
            Self::NewerVersion { found, supported } => {
                write!(f, "segment has version {found}, this program reads up to {supported}")
            }
            Self::UnknownState { found } => {
                write!(f, "segment state {found} is unknown; 1 is spare, 2 is active")
            }
            Self::Size { found } => write!(
                f,
                "segment size {found} is not a multiple of {BLOCK_ALIGN} in \
                 {SEGMENT_BYTES_MIN}..={SEGMENT_BYTES_MAX}"
            ),
        }
    }
}

impl std::error::Error for SegmentHeaderError {}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> SegmentHeader {
        SegmentHeader {
            state: SegmentState::Active,
            slot: Slot(3),
            wal: WalId([7; 16]),
            sequence: SegmentSequence(9),
            generation: Generation(0x0123_4567_89ab_cdef),
            segment_bytes: SEGMENT_BYTES_MIN,
            first_block: BlockSequence(77),
            prev_crc: 0xdead_beef,
        }
    }

    fn page(header: &SegmentHeader) -> [u8; SEGMENT_HEADER_BYTES] {
        let mut page = [0xff; SEGMENT_HEADER_BYTES];
        header.encode(&mut page);
        page
    }

    #[test]
    fn a_header_is_read_as_it_was_written() {
        let spare = SegmentHeader::spare(WalId([7; 16]), Slot(4), SEGMENT_BYTES_MIN);
        for header in [header(), header().freed(), spare] {
            assert_eq!(SegmentHeader::decode(&page(&header)), Ok(header));
        }
    }

    #[test]
    fn every_flipped_bit_of_the_sector_is_noticed() {
        let page = page(&header());
        for bit in 0..SECTOR_BYTES * 8 {
            let mut page = page;
            page[bit / 8] ^= 1 << (bit % 8);
            assert!(SegmentHeader::decode(&page).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn one_wrong_bit_is_corrected_and_two_are_not() {
        let page = page(&header());
        for bit in (0..SECTOR_BYTES * 8).step_by(37) {
            let mut page = page;
            page[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(SegmentHeader::correct(&page), Some(header()), "bit {bit}");
            page[(bit / 8 + 9) % SECTOR_BYTES] ^= 4;
            assert_eq!(SegmentHeader::correct(&page), None, "bit {bit} and another");
        }
        assert_eq!(SegmentHeader::correct(&[0; SECTOR_BYTES]), None);
    }

    #[test]
    fn a_zeroed_file_is_blank_and_not_damaged() {
        assert_eq!(SegmentHeader::decode(&[0; 4096]), Err(SegmentHeaderError::Blank));
        assert_eq!(SegmentHeader::decode(&[1; 4096]), Err(SegmentHeaderError::NotASegment));
        assert_eq!(
            SegmentHeader::decode(&[0; 100]),
            Err(SegmentHeaderError::Short { available: 100 })
        );
    }

    #[test]
    fn a_newer_version_says_so() {
        let mut page = page(&header());
        put(&mut page, 8, &2_u16.to_le_bytes());
        let crc = Checksum::new(header().generation).add(&page[..SEGMENT_CRC_AT]).value();
        put(&mut page, SEGMENT_CRC_AT, &crc.to_le_bytes());
        assert_eq!(
            SegmentHeader::decode(&page),
            Err(SegmentHeaderError::NewerVersion { found: 2, supported: 1 })
        );
    }
}
