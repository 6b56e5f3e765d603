//! Which parts of a segment are read for the batches that a consumer asks for.

use std::ops::Range;

use crate::block::BLOCK_ALIGN;
use crate::index::IndexPoint;
use rustmq_protocol::Offset;

/// Bytes of other partitions that a read carries along rather than end: 16 KiB take a device and the
/// shard less time than another read.
pub const GAP_BYTES_MAX: u64 = 16 << 10;

/// A read that carries others' bytes along has at most so many times its own; beyond, small batches
/// that lie apart are read one by one.
pub const GAP_FACTOR_MAX: u64 = 6;

/// Reads of one plan, all in flight at once: what a device needs to be busy.
pub const PIECES_MAX: usize = 32;

/// What is wanted of a partition's points in a segment.
#[derive(Clone, Copy, Debug)]
pub struct Want {
    /// Only batches that end here or before.
    pub until: Offset,
    /// Bytes of entries, but for a single larger one.
    pub bytes_max: usize,
    /// Bytes of memory for all reads, but for a single larger entry.
    pub memory_bytes_max: usize,
}

/// One read: whole pages, and the points in them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Positions in the segment.
    pub pages: Range<u64>,
    /// Which of the points that the plan was made of.
    pub points: Range<usize>,
}

/// The reads that bring the first of `points`, in order and without a hole in their offsets. Empty
/// only if the first may not be read.
#[must_use]
pub fn plan(points: &[IndexPoint], want: &Want) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = Vec::new();
    // Entries in bytes; pages of the pieces before the last; entries of the last piece.
    let (mut bytes, mut memory, mut own) = (0, 0, 0);
    for (index, point) in points.iter().enumerate() {
        let pages = pages_of(point);
        let length = u64::from(point.length);
        bytes += point.length as usize;
        let joins = index == 0 || points[index - 1].end_offset() == point.base_offset;
        if want.until < point.end_offset() || !joins || 0 < index && want.bytes_max < bytes {
            break;
        }
        if let Some(last) = pieces.last_mut() {
            let joined = last.pages.start..last.pages.end.max(pages.end);
            let gap = pages.start.saturating_sub(last.pages.end);
            let carried = gap == 0 || size(&joined) <= GAP_FACTOR_MAX * (own + length);
            if gap <= GAP_BYTES_MAX && carried && fits(memory + size(&joined), want) {
                last.pages = joined;
                last.points.end = index + 1;
                own += length;
                continue;
            }
            let with_it = memory + size(&last.pages) + size(&pages);
            if pieces.len() == PIECES_MAX || !fits(with_it, want) {
                break;
            }
        }
        memory += pieces.last().map_or(0, |last| size(&last.pages));
        own = length;
        pieces.push(Piece { pages, points: index..index + 1 });
    }
    pieces
}

fn pages_of(point: &IndexPoint) -> Range<u64> {
    const PAGE: u64 = BLOCK_ALIGN as u64;
    let start = u64::from(point.position);
    start - start % PAGE..(start + u64::from(point.length)).next_multiple_of(PAGE)
}

fn size(range: &Range<u64>) -> u64 {
    range.end - range.start
}

fn fits(memory: u64, want: &Want) -> bool {
    memory <= want.memory_bytes_max as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustmq_protocol::TimestampMs;

    const KIB: u32 = 1 << 10;

    /// Entries of one record and so many bytes, at even distances.
    fn points(count: u32, length: u32, stride: u32) -> Vec<IndexPoint> {
        (0..count)
            .map(|index| IndexPoint {
                base_offset: Offset(u64::from(index)),
                record_count: 1,
                position: 4096 + 512 + index * stride,
                length,
                max_timestamp: TimestampMs(0),
            })
            .collect()
    }

    fn want(bytes_max: usize) -> Want {
        Want { until: Offset(1 << 40), bytes_max, memory_bytes_max: 1 << 20 }
    }

    fn read(pieces: &[Piece]) -> u64 {
        pieces.iter().map(|piece| size(&piece.pages)).sum()
    }

    /// Whatever the plan: whole pages in order, each point in the piece that names it.
    fn check(points: &[IndexPoint], pieces: &[Piece]) {
        let mut next = 0;
        for piece in pieces {
            assert_eq!(piece.points.start, next);
            assert!(piece.points.start < piece.points.end);
            next = piece.points.end;
            assert!(piece.pages.start.is_multiple_of(4096) && piece.pages.end.is_multiple_of(4096));
            for point in &points[piece.points.clone()] {
                let own = pages_of(point);
                assert!(piece.pages.start <= own.start && own.end <= piece.pages.end);
            }
        }
        assert!(pieces.len() <= PIECES_MAX);
    }

    #[test]
    fn a_partition_alone_is_read_in_one_go() {
        let points = points(100, 65 * KIB, 70 * KIB);
        let pieces = plan(&points, &want(usize::MAX));
        check(&points, &pieces);
        assert_eq!(pieces.len(), 1);
        assert_eq!(pieces[0].points.end, 14, "as many as memory holds");
        assert!(read(&pieces) <= 1 << 20);
    }

    #[test]
    fn no_more_is_read_than_is_asked_for_but_for_one_batch() {
        let points = points(100, 65 * KIB, 70 * KIB);
        let count = |bytes_max| plan(&points, &want(bytes_max)).last().unwrap().points.end;
        assert_eq!([count(0), count(65 << 10), count(130 << 10)], [1, 1, 2]);
        let until = Want { until: Offset(3), ..want(usize::MAX) };
        assert_eq!(plan(&points, &until)[0].points, 0..3);
        assert_eq!(plan(&points, &Want { until: Offset(0), ..until }), []);
        let large = Want { memory_bytes_max: 4096, ..want(usize::MAX) };
        assert_eq!(plan(&points, &large)[0].points, 0..1);
    }

    #[test]
    fn small_batches_far_apart_are_read_side_by_side_and_little_with_them() {
        for (length, stride) in [(1200, 120_000), (1200, 12_000), (11_000, 110_000), (1200, 5000)] {
            let points = points(100, length, stride);
            let pieces = plan(&points, &want(usize::MAX));
            check(&points, &pieces);
            let own = u64::from(length) * pieces.last().unwrap().points.end as u64;
            assert!(read(&pieces) <= 7 * own, "{length} at {stride}: {} of {own}", read(&pieces));
            assert_eq!(pieces.len() == PIECES_MAX, 8192 < stride, "{length} at {stride}");
        }
    }

    #[test]
    fn the_headers_of_blocks_do_not_cut_a_read() {
        let points = points(10, 60 * KIB, 70 * KIB);
        assert_eq!(plan(&points, &want(usize::MAX)).len(), 1);
    }

    #[test]
    fn a_hole_in_the_offsets_ends_the_plan() {
        let mut points = points(10, 1200, 1200);
        points.remove(4);
        assert_eq!(plan(&points, &want(usize::MAX))[0].points, 0..4);
    }
}
