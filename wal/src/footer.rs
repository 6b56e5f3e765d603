//! The end of a sealed segment: its index, so that a start and a read need not scan it.
//!
//! Body and trailer are the last pages of the file, written at once after the seal block is flushed.
//! A segment without a valid footer is scanned: the footer only saves work.

use core::fmt;

use crate::block::{BLOCK_ALIGN, ChainPoint};
use crate::bytes::{Reader, put, put_partition, round_up, u16_at, u32_at, u64_at, wal_at};
use crate::checksum::Checksum;
use crate::ids::{
    BlockSequence, Generation, Incarnation, NextSegment, SegmentSequence, Slot, WalId,
};
use crate::index::{IndexPoint, PartitionRange, PartitionSummary, SegmentIndex};
use crate::segment::{SegmentHeader, SegmentState};
use rustmq_protocol::{Offset, TimestampMs, TopicPartition};

/// Bytes of the trailer, the last page of the segment.
pub const FOOTER_TRAILER_BYTES: usize = BLOCK_ALIGN;

/// Bytes of one line of the footer's partition table.
pub const FOOTER_LINE_BYTES: usize = 80;

/// Bytes of one point of the footer's index.
pub const FOOTER_POINT_BYTES: usize = 32;

/// Version of the footer this crate writes, and the newest it reads.
pub const FOOTER_VERSION: u16 = 1;

const FOOTER_MAGIC: &[u8; 8] = b"RQWALFTR";
const FOOTER_CRC_AT: usize = 508;

/// Bytes of the footer of a segment that names so many partitions and holds so many data entries:
/// what a writer keeps free at the end of the active segment.
#[must_use]
pub const fn footer_bytes(partition_count: usize, point_count: usize) -> usize {
    let body = partition_count * FOOTER_LINE_BYTES + point_count * FOOTER_POINT_BYTES;
    round_up(body, BLOCK_ALIGN) + FOOTER_TRAILER_BYTES
}

/// The trailer: where the footer begins, and how the segment ended.
///
/// ```text
///  0 magic "RQWALFTR" | 8 version u16 | 10 zero ×2 | 12 slot u32 | 16 wal uuid | 32 sequence u64
/// 40 generation u64 | 48 footer_start u64 | 56 partition_count u32 | 60 point_count u32
/// 64 table_crc u32 | 68 prev_crc u32 | 72 blocks_end u64 | 80 next block sequence u64
/// 88 incarnation u64 | 96 next segment sequence u64 | 104 next generation u64 | 112 next slot u32
/// 116 zero | 508 crc u32 | 512 zero to the end of the page
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FooterTrailer {
    /// Where in the file the partition table begins.
    pub footer_start: u64,
    /// Lines in the table.
    pub partition_count: u32,
    /// Points after it.
    pub point_count: u32,
    /// Seeded checksum of the table.
    pub table_crc: u32,
    /// How the chain goes on in the next segment: sequence, previous checksum, incarnation.
    pub end: SegmentEnd,
}

/// How a segment's blocks ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentEnd {
    /// Where in this segment the next block would have begun.
    pub blocks_end: u64,
    /// Sequence of the block after the seal.
    pub next_block: BlockSequence,
    /// Checksum of the seal block.
    pub prev_crc: u32,
    /// Incarnation of the seal block.
    pub incarnation: Incarnation,
    /// The segment it names.
    pub next: NextSegment,
}

impl SegmentEnd {
    /// The end of a segment whose seal block was just sealed: `point` is where the chain stood
    /// after that block, in the sealed segment.
    #[must_use]
    pub fn of(point: &ChainPoint, next: NextSegment) -> Self {
        Self {
            blocks_end: point.position,
            next_block: point.sequence,
            prev_crc: point.prev_crc,
            incarnation: point.incarnation,
            next,
        }
    }

    /// Header of the segment that comes next: all of it is known from how this one ended.
    #[must_use]
    pub fn next_header(&self, wal: WalId, segment_bytes: u64) -> SegmentHeader {
        SegmentHeader {
            state: SegmentState::Active,
            slot: self.next.slot,
            wal,
            sequence: self.next.sequence,
            generation: self.next.generation,
            segment_bytes,
            first_block: self.next_block,
            prev_crc: self.prev_crc,
        }
    }

    /// Whether `header` is the segment that comes next, joined to this one.
    #[must_use]
    pub fn joins(&self, header: &SegmentHeader) -> bool {
        self.next == header.as_next()
            && self.next_block == header.first_block
            && self.prev_crc == header.prev_crc
    }
}

/// Writes a footer into `out`, whose length must be [`footer_bytes`] of this index; it goes to the
/// last `out.len()` bytes of the segment.
pub fn encode_footer(
    index: &SegmentIndex,
    segment: &SegmentHeader,
    end: &SegmentEnd,
    out: &mut [u8],
) {
    let bytes = footer_bytes(index.partition_count(), index.point_count());
    assert!(out.len() == bytes, "the footer fills the bytes it was given");
    let footer_start = segment.segment_bytes - bytes as u64;
    assert!(end.blocks_end <= footer_start, "the writer kept room for the footer");
    out.fill(0);

    let (mut line_at, mut point_at) = (0, index.partition_count() * FOOTER_LINE_BYTES);
    let mut points_start = 0;
    for summary in index.partitions() {
        let points = index.points(summary.partition);
        let points_from = point_at;
        for point in points {
            put(out, point_at, &encode_point(point));
            point_at += FOOTER_POINT_BYTES;
        }
        let line = FooterLine {
            summary,
            point_count: count(points.len()),
            points_start,
            points_crc: Checksum::new(segment.generation).add(&out[points_from..point_at]).value(),
        };
        put(out, line_at, &line.encode());
        line_at += FOOTER_LINE_BYTES;
        points_start += line.point_count;
    }

    let trailer = FooterTrailer {
        footer_start,
        partition_count: count(index.partition_count()),
        point_count: count(index.point_count()),
        table_crc: Checksum::new(segment.generation).add(&out[..line_at]).value(),
        end: *end,
    };
    let page = out.last_chunk_mut::<FOOTER_TRAILER_BYTES>().expect("a footer ends in its trailer");
    trailer.encode(segment, page);
}

impl FooterTrailer {
    fn encode(&self, segment: &SegmentHeader, page: &mut [u8; FOOTER_TRAILER_BYTES]) {
        put(page, 0, FOOTER_MAGIC);
        put(page, 8, &FOOTER_VERSION.to_le_bytes());
        put(page, 12, &segment.slot.0.to_le_bytes());
        put(page, 16, &segment.wal.0);
        put(page, 32, &segment.sequence.0.to_le_bytes());
        put(page, 40, &segment.generation.0.to_le_bytes());
        put(page, 48, &self.footer_start.to_le_bytes());
        put(page, 56, &self.partition_count.to_le_bytes());
        put(page, 60, &self.point_count.to_le_bytes());
        put(page, 64, &self.table_crc.to_le_bytes());
        put(page, 68, &self.end.prev_crc.to_le_bytes());
        put(page, 72, &self.end.blocks_end.to_le_bytes());
        put(page, 80, &self.end.next_block.0.to_le_bytes());
        put(page, 88, &self.end.incarnation.0.to_le_bytes());
        put(page, 96, &self.end.next.sequence.0.to_le_bytes());
        put(page, 104, &self.end.next.generation.0.to_le_bytes());
        put(page, 112, &self.end.next.slot.0.to_le_bytes());
        let crc = Checksum::new(segment.generation).add(&page[..FOOTER_CRC_AT]).value();
        put(page, FOOTER_CRC_AT, &crc.to_le_bytes());
    }

    /// Reads the trailer of `segment`: the last [`FOOTER_TRAILER_BYTES`] of its file.
    ///
    /// # Errors
    /// What it is instead. Anything but a newer version means: scan the segment.
    pub fn decode(page: &[u8], segment: &SegmentHeader) -> Result<Self, FooterError> {
        let Some(page) = page.first_chunk::<FOOTER_TRAILER_BYTES>() else {
            return Err(FooterError::Short { needed: FOOTER_TRAILER_BYTES, available: page.len() });
        };
        if page[..8] != *FOOTER_MAGIC {
            return Err(FooterError::Absent);
        }
        let found = u32_at(page, FOOTER_CRC_AT);
        let computed = Checksum::new(segment.generation).add(&page[..FOOTER_CRC_AT]).value();
        if found != computed {
            // Of an older use of the file, or damaged: neither can be told from the other.
            return Err(FooterError::Crc { found, computed });
        }
        let version = u16_at(page, 8);
        if version != FOOTER_VERSION {
            return Err(FooterError::NewerVersion { found: version, supported: FOOTER_VERSION });
        }
        let names_segment = wal_at(page, 16) == segment.wal
            && u32_at(page, 12) == segment.slot.0
            && u64_at(page, 32) == segment.sequence.0
            && u64_at(page, 40) == segment.generation.0;
        if !names_segment {
            return Err(FooterError::Absent);
        }
        let trailer = Self {
            footer_start: u64_at(page, 48),
            partition_count: u32_at(page, 56),
            point_count: u32_at(page, 60),
            table_crc: u32_at(page, 64),
            end: SegmentEnd {
                prev_crc: u32_at(page, 68),
                blocks_end: u64_at(page, 72),
                next_block: BlockSequence(u64_at(page, 80)),
                incarnation: Incarnation(u64_at(page, 88)),
                next: NextSegment {
                    sequence: SegmentSequence(u64_at(page, 96)),
                    generation: Generation(u64_at(page, 104)),
                    slot: Slot(u32_at(page, 112)),
                },
            },
        };
        if trailer.extents_are_sane(segment) { Ok(trailer) } else { Err(FooterError::Extents) }
    }

    /// Reads the trailer of a segment whose header says nothing: which segment the file holds, by
    /// its footer. `None`: there is no whole footer of this WAL and slot.
    #[must_use]
    pub fn decode_alone(
        page: &[u8],
        wal: WalId,
        slot: Slot,
        segment_bytes: u64,
    ) -> Option<(SegmentHeader, Self)> {
        let bytes = page.first_chunk::<FOOTER_TRAILER_BYTES>()?;
        let segment = SegmentHeader {
            state: SegmentState::Active,
            slot,
            wal,
            sequence: SegmentSequence(u64_at(bytes, 32)),
            generation: Generation(u64_at(bytes, 40)),
            segment_bytes,
            first_block: BlockSequence(0),
            prev_crc: 0,
        };
        Some((segment, Self::decode(page, &segment).ok()?))
    }

    fn extents_are_sane(&self, segment: &SegmentHeader) -> bool {
        let lines = u64::from(self.partition_count) * FOOTER_LINE_BYTES as u64;
        let points = u64::from(self.point_count) * FOOTER_POINT_BYTES as u64;
        let body_end = segment.segment_bytes - FOOTER_TRAILER_BYTES as u64;
        self.footer_start.is_multiple_of(BLOCK_ALIGN as u64)
            && self.footer_start <= body_end
            && lines + points <= body_end - self.footer_start
            && self.end.blocks_end <= self.footer_start
    }

    /// Where in the file the partition table lies. Read from the page it begins on.
    #[must_use]
    pub fn table_range(&self) -> core::ops::Range<u64> {
        let lines = u64::from(self.partition_count) * FOOTER_LINE_BYTES as u64;
        self.footer_start..self.footer_start + lines
    }

    /// Where in the file the points of one line of the table lie.
    #[must_use]
    pub fn points_range(&self, line: &FooterLine) -> core::ops::Range<u64> {
        let start =
            self.table_range().end + u64::from(line.points_start) * FOOTER_POINT_BYTES as u64;
        start..start + u64::from(line.point_count) * FOOTER_POINT_BYTES as u64
    }

    /// Reads the partition table from the bytes of [`table_range`](Self::table_range).
    ///
    /// # Errors
    /// The bytes are not that table: scan the segment.
    pub fn decode_table(
        &self,
        bytes: &[u8],
        generation: Generation,
    ) -> Result<Vec<FooterLine>, FooterError> {
        let needed = self.partition_count as usize * FOOTER_LINE_BYTES;
        let Some(bytes) = bytes.get(..needed) else {
            return Err(FooterError::Short { needed, available: bytes.len() });
        };
        let computed = Checksum::new(generation).add(bytes).value();
        if computed != self.table_crc {
            return Err(FooterError::Crc { found: self.table_crc, computed });
        }
        let mut lines = Vec::with_capacity(self.partition_count as usize);
        for bytes in bytes.chunks_exact(FOOTER_LINE_BYTES) {
            let line = FooterLine::decode(bytes).ok_or(FooterError::Extents)?;
            let points_end = u64::from(line.points_start) + u64::from(line.point_count);
            if u64::from(self.point_count) < points_end {
                return Err(FooterError::Extents);
            }
            lines.push(line);
        }
        Ok(lines)
    }
}

/// One partition in a footer's table.
///
/// ```text
///  0 topic | 16 partition u32 | 20 point_count u32 | 24 first u64 | 32 end u64 | 40 append_time_max i64
/// 48 timestamp_max i64 | 56 bytes u64 | 64 points_start u32 (in points) | 68 points_crc u32 | 72 zero ×8
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FooterLine {
    /// What the segment holds of the partition.
    pub summary: PartitionSummary,
    /// Its data entries. 0: the segment only names it.
    pub point_count: u32,
    /// Its first point's place among all points of the footer.
    pub points_start: u32,
    /// Seeded checksum of its points.
    pub points_crc: u32,
}

impl FooterLine {
    fn encode(&self) -> [u8; FOOTER_LINE_BYTES] {
        let mut bytes = [0; FOOTER_LINE_BYTES];
        put_partition(&mut bytes, 0, self.summary.partition);
        put(&mut bytes, 20, &self.point_count.to_le_bytes());
        if let Some(range) = &self.summary.range {
            put(&mut bytes, 24, &range.first.0.to_le_bytes());
            put(&mut bytes, 32, &range.end.0.to_le_bytes());
            put(&mut bytes, 40, &range.append_time_max.0.to_le_bytes());
            put(&mut bytes, 48, &range.timestamp_max.0.to_le_bytes());
            put(&mut bytes, 56, &range.bytes.to_le_bytes());
        }
        put(&mut bytes, 64, &self.points_start.to_le_bytes());
        put(&mut bytes, 68, &self.points_crc.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        let partition = reader.partition()?;
        let point_count = reader.u32()?;
        let range = PartitionRange {
            first: Offset(reader.u64()?),
            end: Offset(reader.u64()?),
            append_time_max: TimestampMs(reader.i64()?),
            timestamp_max: TimestampMs(reader.i64()?),
            bytes: reader.u64()?,
        };
        let range = (point_count != 0).then_some(range);
        let summary = PartitionSummary { partition, range };
        Some(Self { summary, point_count, points_start: reader.u32()?, points_crc: reader.u32()? })
    }

    /// Reads this partition's points from the bytes of [`FooterTrailer::points_range`].
    ///
    /// # Errors
    /// The bytes are not those points: the file was recycled or is damaged.
    pub fn decode_points(
        &self,
        bytes: &[u8],
        generation: Generation,
    ) -> Result<Vec<IndexPoint>, FooterError> {
        let needed = self.point_count as usize * FOOTER_POINT_BYTES;
        let Some(bytes) = bytes.get(..needed) else {
            return Err(FooterError::Short { needed, available: bytes.len() });
        };
        let computed = Checksum::new(generation).add(bytes).value();
        if computed != self.points_crc {
            return Err(FooterError::Crc { found: self.points_crc, computed });
        }
        let points = bytes.chunks_exact(FOOTER_POINT_BYTES).map(decode_point);
        points.collect::<Option<_>>().ok_or(FooterError::Extents)
    }
}

/// Looks a partition up in a footer's table, which is in order.
#[must_use]
pub fn find_line(table: &[FooterLine], partition: TopicPartition) -> Option<&FooterLine> {
    let index = table.binary_search_by_key(&partition, |line| line.summary.partition).ok()?;
    table.get(index)
}

/// `0 base_offset u64 | 8 max_timestamp i64 | 16 record_count u32 | 20 position u32 | 24 length u32 | 28 zero ×4`
fn encode_point(point: &IndexPoint) -> [u8; FOOTER_POINT_BYTES] {
    let mut bytes = [0; FOOTER_POINT_BYTES];
    put(&mut bytes, 0, &point.base_offset.0.to_le_bytes());
    put(&mut bytes, 8, &point.max_timestamp.0.to_le_bytes());
    put(&mut bytes, 16, &point.record_count.to_le_bytes());
    put(&mut bytes, 20, &point.position.to_le_bytes());
    put(&mut bytes, 24, &point.length.to_le_bytes());
    bytes
}

fn decode_point(bytes: &[u8]) -> Option<IndexPoint> {
    let mut reader = Reader(bytes);
    Some(IndexPoint {
        base_offset: Offset(reader.u64()?),
        max_timestamp: TimestampMs(reader.i64()?),
        record_count: reader.u32()?,
        position: reader.u32()?,
        length: reader.u32()?,
    })
}

fn count(items: usize) -> u32 {
    u32::try_from(items).expect("a segment of 2 GiB holds less than 2^32 entries")
}

/// Why bytes are not the footer of a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FooterError {
    /// The bytes end before the part does.
    Short {
        /// Bytes of the part.
        needed: usize,
        /// Bytes there are.
        available: usize,
    },
    /// No footer of this segment.
    Absent,
    /// A part is damaged or of another use of the file.
    Crc {
        /// Checksum written down.
        found: u32,
        /// Checksum of the bytes.
        computed: u32,
    },
    /// A whole trailer of a later version.
    NewerVersion {
        /// Its version.
        found: u16,
        /// The newest this program reads.
        supported: u16,
    },
    /// Lengths contradict each other.
    Extents,
}

impl fmt::Display for FooterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Short { needed, available } => {
                write!(f, "footer part needs {needed} bytes, {available} are there")
            }
            Self::Absent => f.write_str("segment has no footer"),
            Self::Crc { found, computed } => {
                write!(f, "footer says checksum {found:#010x}, its bytes have {computed:#010x}")
            }
            Self::NewerVersion { found, supported } => {
                write!(f, "footer has version {found}, this program reads up to {supported}")
            }
            Self::Extents => f.write_str("lengths in the footer contradict each other"),
        }
    }
}

impl std::error::Error for FooterError {}

#[cfg(test)]
mod tests;
