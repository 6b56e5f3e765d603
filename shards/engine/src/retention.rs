//! What may be forgotten, and when the clock may be trusted to say so.

use rustmq_protocol::{Offset, TimestampMs};

use crate::limits::CLOCK_STEP_MS_MAX;

/// How long and how much of a partition is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Records older than this may go; `None` keeps them for ever.
    pub retention_ms: Option<i64>,
    /// The oldest records may go while more than this is kept; `None` sets no bound.
    pub retention_bytes: Option<u64>,
}

/// One partition's part of one sealed segment, oldest segment first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentPart {
    /// One past the partition's last record in the segment.
    pub end_offset: Offset,
    /// The append time of that record.
    pub append_time_max: TimestampMs,
    /// Bytes that the partition holds in the segment.
    pub bytes: u64,
}

/// The offset up to which a partition may be forgotten, if any.
///
/// `parts` are the sealed segments only, so the newest records always stay; `open_bytes` is what
/// the partition holds in the open segment. `now` is `None` while the clock is not trusted:
/// retention by size goes on then, retention by time waits.
pub fn log_start_after(
    policy: Policy,
    parts: impl Iterator<Item = SegmentPart> + Clone,
    open_bytes: u64,
    now: Option<TimestampMs>,
) -> Option<Offset> {
    let mut bytes_held: u64 = open_bytes + parts.clone().map(|part| part.bytes).sum::<u64>();
    let mut log_start = None;
    for part in parts {
        let old = match (policy.retention_ms, now) {
            (Some(ms), Some(now)) => part.append_time_max.0 < now.0.saturating_sub(ms),
            _ => false,
        };
        let over = policy.retention_bytes.is_some_and(|max| max < bytes_held);
        if !old && !over {
            break;
        }
        log_start = Some(part.end_offset);
        bytes_held -= part.bytes;
    }
    log_start
}

/// Compares the wall clock with the monotonic one and withdraws its trust after a jump.
///
/// Trust comes back when a later reading agrees again with where the clock was first trusted, or
/// when the process restarts: an operator who has set the clock right on purpose restarts.
#[derive(Debug)]
pub struct ClockGuard {
    /// Wall clock minus monotonic clock when the clock was first read.
    base_ms: Option<i64>,
}

impl ClockGuard {
    /// A guard that trusts its first reading.
    pub fn new() -> Self {
        Self { base_ms: None }
    }

    /// Reads both clocks, in milliseconds; gives the wall clock back when it is trusted.
    pub fn observe(&mut self, wall_ms: i64, monotonic_ms: i64) -> Option<TimestampMs> {
        let offset = wall_ms.saturating_sub(monotonic_ms);
        let base = *self.base_ms.get_or_insert(offset);
        let step = offset.saturating_sub(base).saturating_abs();
        if step <= CLOCK_STEP_MS_MAX {
            // Slow drift is followed, so that years of it never look like a jump.
            self.base_ms = Some(offset);
            return Some(TimestampMs(wall_ms));
        }
        None
    }
}

impl Default for ClockGuard {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(end: u64, time: i64, bytes: u64) -> SegmentPart {
        SegmentPart { end_offset: Offset(end), append_time_max: TimestampMs(time), bytes }
    }

    const PARTS: [(u64, i64, u64); 3] = [(10, 100, 50), (20, 200, 50), (30, 300, 50)];

    fn start(policy: Policy, now: Option<i64>) -> Option<u64> {
        let parts = PARTS.iter().map(|(end, time, bytes)| part(*end, *time, *bytes));
        log_start_after(policy, parts, 10, now.map(TimestampMs)).map(|offset| offset.0)
    }

    #[test]
    fn records_older_than_the_retention_time_go() {
        let policy = Policy { retention_ms: Some(100), retention_bytes: None };
        assert_eq!(start(policy, Some(199)), None);
        assert_eq!(start(policy, Some(201)), Some(10));
        assert_eq!(start(policy, Some(1000)), Some(30));
    }

    #[test]
    fn an_untrusted_clock_suspends_retention_by_time_but_not_by_size() {
        let policy = Policy { retention_ms: Some(100), retention_bytes: None };
        assert_eq!(start(policy, None), None);
        let policy = Policy { retention_ms: Some(100), retention_bytes: Some(120) };
        assert_eq!(start(policy, None), Some(10));
    }

    #[test]
    fn size_counts_the_open_segment() {
        let policy = Policy { retention_ms: None, retention_bytes: Some(159) };
        assert_eq!(start(policy, Some(0)), Some(10));
        let policy = Policy { retention_ms: None, retention_bytes: Some(160) };
        assert_eq!(start(policy, Some(0)), None);
    }

    #[test]
    fn a_jump_of_the_wall_clock_withdraws_trust_and_its_return_gives_it_back() {
        let mut guard = ClockGuard::new();
        assert!(guard.observe(1_000_000, 0).is_some());
        assert!(guard.observe(1_060_000, 60_000).is_some());
        assert!(guard.observe(1_061_000 + CLOCK_STEP_MS_MAX + 1, 61_000).is_none());
        assert!(guard.observe(1_062_000, 62_000).is_some());
    }
}
