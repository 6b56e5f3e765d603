//! Header page and append of a catalogue file.

use crate::block::{BLOCK_ALIGN, correct_bit};
use crate::bytes::{Reader, put, round_up, u16_at, u32_at, u64_at};
use crate::checksum::Checksum;
use crate::ids::{BlockSequence, Generation};

/// Size of each catalogue file unless configured: 16 MiB, a snapshot of some 50,000 partitions.
pub const CATALOGUE_BYTES_DEFAULT: usize = 16 << 20;

/// Smallest catalogue file. For tests.
pub const CATALOGUE_BYTES_MIN: usize = 64 << 10;

/// Largest catalogue file: opening reads both into memory.
pub const CATALOGUE_BYTES_MAX: usize = 1 << 30;

/// Version of the catalogue layout this crate writes, and the newest it reads.
pub const CATALOGUE_VERSION: u16 = 1;

pub(super) const PAGE_BYTES: usize = BLOCK_ALIGN;
pub(super) const APPEND_HEADER_BYTES: usize = 64;

const FILE_MAGIC: &[u8; 8] = b"RQCATLOG";
const FILE_CRC_AT: usize = 508;
const SECTOR_BYTES: usize = 512;
const APPEND_MAGIC: u32 = u32::from_le_bytes(*b"RQCA");
const APPEND_CRC_AT: usize = APPEND_HEADER_BYTES - 4;
const RECORD_LENGTH_BYTES: usize = 4;
const RECORD_ALIGN: usize = 8;

/// The append's first record is the snapshot.
pub(super) const SNAPSHOT: u16 = 1;
/// An empty append that records the durable end.
pub(super) const MARK: u16 = 2;
/// The last append of its file: the other file goes on.
pub(super) const RETIRED: u16 = 4;

/// Uses of both files together: no switch comes after the last, so that its number is never past what can
/// be read.
pub(super) const USES_MAX: u64 = u64::MAX - 1;

/// One of the two files.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum CatalogueFile {
    /// The first; a new catalogue begins in it.
    A = 1,
    /// The second.
    B = 2,
}

impl CatalogueFile {
    /// The other one.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    /// Name of the file in the data directory.
    #[must_use]
    pub fn file_name(self) -> &'static str {
        match self {
            Self::A => "catalogue-a.log",
            Self::B => "catalogue-b.log",
        }
    }
}

/// Header page of a catalogue file.
///
/// ```text
///  0 magic "RQCATLOG" | 8 version u16 | 10 file u8 | 11 zero ×5 | 16 generation u64 | 24 use u64
/// 32 file_bytes u64 | 40 end u64, 0: file_bytes | 48 zero | 508 crc u32 | 512 zero to the end of the page
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct FileHeader {
    pub(super) file: CatalogueFile,
    pub(super) generation: Generation,
    /// Counts the switches: the file with the higher number is the newer one.
    pub(super) use_number: u64,
    pub(super) file_bytes: u64,
    /// Where this use of the file ends: nothing is ever appended from here on.
    pub(super) end: u64,
}

pub(super) enum HeaderRead {
    Blank,
    Unreadable,
    NewerVersion(u16),
    Header(FileHeader),
}

impl FileHeader {
    pub(super) fn encode(&self, page: &mut [u8]) {
        put(page, 0, FILE_MAGIC);
        put(page, 8, &CATALOGUE_VERSION.to_le_bytes());
        page[10] = self.file as u8;
        put(page, 16, &self.generation.0.to_le_bytes());
        put(page, 24, &self.use_number.to_le_bytes());
        put(page, 32, &self.file_bytes.to_le_bytes());
        put(page, 40, &self.end.to_le_bytes());
        let crc = Checksum::new(self.generation).add(&page[..FILE_CRC_AT]).value();
        put(page, FILE_CRC_AT, &crc.to_le_bytes());
    }

    /// Reads the header of the file that is known as `file` and is `file_bytes` long, from its
    /// beginning. One wrong bit is corrected: the checksum tells which, and the file is written anew by
    /// every opening.
    pub(super) fn read(file: CatalogueFile, page: &[u8], file_bytes: usize) -> HeaderRead {
        match (Self::decode(file, page, file_bytes), page.first_chunk::<SECTOR_BYTES>()) {
            (HeaderRead::Unreadable, Some(sector)) => {
                let corrected =
                    correct_bit(&mut sector.clone(), |sector| {
                        match Self::decode_sector(file, sector, file_bytes) {
                            HeaderRead::Header(header) => Some(header),
                            _ => None,
                        }
                    });
                corrected.map_or(HeaderRead::Unreadable, HeaderRead::Header)
            }
            (read, _) => read,
        }
    }

    /// The same, but a wrong bit is not corrected.
    pub(super) fn decode(file: CatalogueFile, bytes: &[u8], file_bytes: usize) -> HeaderRead {
        let Some(sector) = bytes.first_chunk::<SECTOR_BYTES>() else {
            return if bytes.is_empty() { HeaderRead::Blank } else { HeaderRead::Unreadable };
        };
        if sector.iter().all(|byte| *byte == 0) {
            return HeaderRead::Blank;
        }
        Self::decode_sector(file, sector, file_bytes)
    }

    fn decode_sector(file: CatalogueFile, sector: &[u8], file_bytes: usize) -> HeaderRead {
        let generation = Generation(u64_at(sector, 16));
        let crc = Checksum::new(generation).add(&sector[..FILE_CRC_AT]).value();
        if sector[..8] != *FILE_MAGIC || crc != u32_at(sector, FILE_CRC_AT) {
            return HeaderRead::Unreadable;
        }
        let version = u16_at(sector, 8);
        if version != CATALOGUE_VERSION {
            return HeaderRead::NewerVersion(version);
        }
        let file_end = u64_at(sector, 32);
        let header = Self {
            file,
            generation,
            use_number: u64_at(sector, 24),
            file_bytes: file_end,
            // Programs before this field left zeroes.
            end: Some(u64_at(sector, 40)).filter(|end| *end != 0).unwrap_or(file_end),
        };
        let is_one = sector[10] == file as u8
            && header.file_bytes == file_bytes as u64
            && is_file_size(file_bytes)
            && header.end <= header.file_bytes
            && header.end.is_multiple_of(PAGE_BYTES as u64)
            && header.use_number <= USES_MAX;
        if is_one { HeaderRead::Header(header) } else { HeaderRead::Unreadable }
    }
}

/// Header of an append.
///
/// ```text
///  0 magic "RQCA" | 4 version u16 | 6 flags u16 | 8 generation u64 | 16 position u64 | 24 sequence u64
/// 32 durable_end u64 | 40 length u32 | 44 records_bytes u32 | 48 record_count u32 | 52 prev_crc u32
/// 56 records_crc u32 | 60 crc u32
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct AppendHeader {
    pub(super) flags: u16,
    pub(super) generation: Generation,
    pub(super) position: u64,
    pub(super) sequence: BlockSequence,
    pub(super) durable_end: BlockSequence,
    pub(super) length: u32,
    pub(super) records_bytes: u32,
    pub(super) record_count: u32,
    pub(super) prev_crc: u32,
    pub(super) records_crc: u32,
    pub(super) crc: u32,
}

impl AppendHeader {
    /// Writes the header; computes its checksum and returns it.
    pub(super) fn encode(&self, bytes: &mut [u8]) -> u32 {
        put(bytes, 0, &APPEND_MAGIC.to_le_bytes());
        put(bytes, 4, &CATALOGUE_VERSION.to_le_bytes());
        put(bytes, 6, &self.flags.to_le_bytes());
        put(bytes, 8, &self.generation.0.to_le_bytes());
        put(bytes, 16, &self.position.to_le_bytes());
        put(bytes, 24, &self.sequence.0.to_le_bytes());
        put(bytes, 32, &self.durable_end.0.to_le_bytes());
        put(bytes, 40, &self.length.to_le_bytes());
        put(bytes, 44, &self.records_bytes.to_le_bytes());
        put(bytes, 48, &self.record_count.to_le_bytes());
        put(bytes, 52, &self.prev_crc.to_le_bytes());
        put(bytes, 56, &self.records_crc.to_le_bytes());
        let crc = Checksum::new(self.generation).add(&bytes[..APPEND_CRC_AT]).value();
        put(bytes, APPEND_CRC_AT, &crc.to_le_bytes());
        crc
    }

    /// A whole append header of this generation, made for this place; `Err` is a newer version.
    pub(super) fn decode(
        bytes: &[u8],
        generation: Generation,
        position: u64,
    ) -> Result<Option<Self>, u16> {
        let Some(bytes) = bytes.first_chunk::<APPEND_HEADER_BYTES>() else { return Ok(None) };
        let crc = Checksum::new(generation).add(&bytes[..APPEND_CRC_AT]).value();
        let ours = u32_at(bytes, 0) == APPEND_MAGIC
            && u64_at(bytes, 8) == generation.0
            && u32_at(bytes, APPEND_CRC_AT) == crc;
        if !ours {
            return Ok(None);
        }
        let version = u16_at(bytes, 4);
        if version != CATALOGUE_VERSION {
            return Err(version);
        }
        let header = Self {
            flags: u16_at(bytes, 6),
            generation,
            position: u64_at(bytes, 16),
            sequence: BlockSequence(u64_at(bytes, 24)),
            durable_end: BlockSequence(u64_at(bytes, 32)),
            length: u32_at(bytes, 40),
            records_bytes: u32_at(bytes, 44),
            record_count: u32_at(bytes, 48),
            prev_crc: u32_at(bytes, 52),
            records_crc: u32_at(bytes, 56),
            crc,
        };
        Ok((header.position == position).then_some(header))
    }

    /// The records of this append, if they are all there and whole. `append` begins at its header.
    pub(super) fn records<'a>(&self, append: &'a [u8]) -> Option<Vec<&'a [u8]>> {
        let length = self.length as usize;
        let end = APPEND_HEADER_BYTES + self.records_bytes as usize;
        if length == 0 || !length.is_multiple_of(PAGE_BYTES) || length < end {
            return None;
        }
        let bytes = append.get(..length)?.get(APPEND_HEADER_BYTES..end)?;
        let crc = Checksum::for_block(self.generation, self.sequence).add(bytes).value();
        if crc != self.records_crc {
            return None;
        }
        let mut records = Vec::new();
        let mut reader = Reader(bytes);
        for _ in 0..self.record_count {
            let length = reader.u32()? as usize;
            records.push(reader.take(length)?);
            reader.take(record_bytes(length) - RECORD_LENGTH_BYTES - length)?;
        }
        reader.0.is_empty().then_some(records)
    }
}

/// Whether a catalogue file may have this size.
pub(super) fn is_file_size(bytes: usize) -> bool {
    (CATALOGUE_BYTES_MIN..=CATALOGUE_BYTES_MAX).contains(&bytes) && bytes.is_multiple_of(PAGE_BYTES)
}

/// Bytes a record of this length takes in an append.
pub(super) fn record_bytes(length: usize) -> usize {
    round_up(RECORD_LENGTH_BYTES + length, RECORD_ALIGN)
}

/// Bytes of an append with records of these lengths.
pub(super) fn append_bytes(lengths: impl IntoIterator<Item = usize>) -> usize {
    let records: usize = lengths.into_iter().map(record_bytes).sum();
    round_up(APPEND_HEADER_BYTES + records, PAGE_BYTES)
}

/// Adds a record behind what `out` holds.
pub(super) fn push_record(out: &mut Vec<u8>, record: &[u8]) {
    let length = u32::try_from(record.len()).expect("a record fits in its file");
    let end = out.len() + record_bytes(record.len());
    out.extend(length.to_le_bytes());
    out.extend(record);
    out.resize(end, 0);
}
