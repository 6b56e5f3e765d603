//! Group commit: when the entries that wait are closed into a block.

use crate::mean::RunningMean;
use crate::returns::Returns;

/// What an acknowledgement of the leader stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FlushPolicy {
    /// Every block is flushed before its entries are acknowledged.
    Always,
    /// Blocks are written, acknowledged, and flushed at most so much later.
    Interval {
        /// Nanoseconds from the first unflushed write to the flush.
        ns: u64,
    },
}

/// What the writer does next. The last three are begun when they are returned, and end with
/// [`GroupCommit::handle_written`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Commit {
    /// Nothing, until an append arrives or what is in flight ends.
    Idle,
    /// Nothing until then, unless an append arrives.
    WaitUntil(u64),
    /// Close the oldest block and write it; under [`FlushPolicy::Always`] also flush.
    Close,
    /// Flush what was written. Only under [`FlushPolicy::Interval`].
    Flush,
    /// Write and flush an empty block that records the durable end.
    IdleMark,
}

/// Pause after the last flush until an idle mark records it: within the 100 ms in which a crash may
/// leave the very last block in doubt, with room for a late timer.
pub const IDLE_MARK_NS: u64 = 50_000_000;

/// Longest wait for stragglers, however slow the disk: 1 ms. Above it a client would notice.
pub const STRAGGLER_WAIT_NS_MAX: u64 = 1_000_000;

/// A producer is active for so long after its last append: 10 ms, some dozens of round trips.
pub const PRODUCER_ACTIVE_NS: u64 = 10_000_000;

/// Waits in a row that may bring nobody before waiting is given up.
const WAITS_IN_VAIN_MAX: u32 = 4;

/// Blocks closed without a wait after that, until waiting is tried again.
const BLOCKS_UNTIL_RETRY: u32 = 64;

/// Producers are waited for while those who are answered append again within two flushes, or two
/// of the longest waits. One flush would be just the round trip of a few on a fast disk.
const RETURN_FLUSHES: u64 = 2;

/// Decides when a block closes. One per WAL, on its shard.
///
/// One write is in flight at a time; what arrives meanwhile is the next block. An idle WAL closes a
/// block at once. With more than one active producer, and fewer appends waiting than there were in
/// the last block and beside it, it waits for stragglers: half a flush for the next of them and a
/// flush for all, as long as that brings some, and as those who are answered come back so soon.
/// Times are nanoseconds of one monotonic clock.
#[derive(Clone, Debug)]
pub struct GroupCommit {
    policy: FlushPolicy,
    in_flight: Option<InFlight>,
    /// Appends in the block that is open.
    waiting: u32,
    /// Since when the open block could have been closed.
    waiting_since: u64,
    /// The last time that an append came since then.
    latest_append_at: u64,
    /// Appends that may come together: those in the block that was closed last, and those that
    /// waited when its write ended.
    expected: u32,
    /// Appends wait for room in the open block.
    crowded: bool,
    /// Appends that waited when a wait began.
    waiting_at_wait: Option<u32>,
    waits_in_vain: u32,
    blocks_until_retry: u32,
    flush: RunningMean,
    latest_producer: Option<(u64, u64)>,
    /// The last time another producer than the latest one appended.
    other_producer_at: Option<u64>,
    returns: Returns,
    unflushed_since: Option<u64>,
    unmarked_since: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum InFlight {
    Block,
    Flush,
    Mark,
}

impl GroupCommit {
    /// Begins with nothing written.
    #[must_use]
    pub fn new(policy: FlushPolicy) -> Self {
        Self {
            policy,
            in_flight: None,
            waiting: 0,
            waiting_since: 0,
            latest_append_at: 0,
            expected: 0,
            crowded: false,
            waiting_at_wait: None,
            waits_in_vain: 0,
            blocks_until_retry: 0,
            flush: RunningMean::default(),
            latest_producer: None,
            other_producer_at: None,
            returns: Returns::default(),
            unflushed_since: None,
            unmarked_since: None,
        }
    }

    /// An entry was pushed into the open block. `producer` tells producers apart (a session, say);
    /// the same number means the same one.
    pub fn handle_append(&mut self, now_ns: u64, producer: u64) {
        if self.waiting == 0 {
            self.waiting_since = now_ns;
        }
        self.latest_append_at = now_ns;
        self.waiting += 1;
        if let Some((latest, at)) = self.latest_producer
            && latest != producer
        {
            self.other_producer_at = Some(at);
        }
        self.latest_producer = Some((producer, now_ns));
        self.returns.handle_append(now_ns, producer);
    }

    /// An append found no room in the open block and waits for the next one: no straggler is waited
    /// for.
    pub fn handle_crowded(&mut self) {
        self.crowded = self.waiting != 0;
    }

    /// What to do at `now_ns`.
    pub fn poll(&mut self, now_ns: u64) -> Commit {
        if self.in_flight.is_some() {
            return Commit::Idle;
        }
        if self.flush_due().is_some_and(|due| due <= now_ns) {
            self.in_flight = Some(InFlight::Flush);
            return Commit::Flush;
        }
        if self.waiting != 0 {
            return self.poll_waiting(now_ns);
        }
        if let Some(due) = self.flush_due() {
            return Commit::WaitUntil(due);
        }
        let Some(since) = self.unmarked_since else { return Commit::Idle };
        if now_ns < since + IDLE_MARK_NS {
            return Commit::WaitUntil(since + IDLE_MARK_NS);
        }
        self.in_flight = Some(InFlight::Mark);
        Commit::IdleMark
    }

    /// What was in flight is done: written, and flushed in `flush_ns` if a flush was part of it.
    pub fn handle_written(&mut self, now_ns: u64, flush_ns: Option<u64>) {
        let ended = self.in_flight.take().expect("only what was begun can end");
        if let Some(measured) = flush_ns {
            self.flush.add(measured);
        }
        match (ended, self.policy) {
            (InFlight::Block, FlushPolicy::Always) => {
                self.unmarked_since = Some(now_ns);
                self.returns.handle_ended(now_ns);
                // Whoever is answered now may append again at once, beside those who came meanwhile.
                // Without this, producers that wait for each answer split into two halves that take
                // turns, each with a flush of its own.
                self.expected += self.waiting;
            }
            (InFlight::Block, FlushPolicy::Interval { .. }) => {
                self.unflushed_since.get_or_insert(now_ns);
            }
            (InFlight::Flush, _) => {
                self.unflushed_since = None;
                self.unmarked_since = Some(now_ns);
            }
            (InFlight::Mark, _) => self.unmarked_since = None,
        }
        // Appends that came during the write were not held back by a decision.
        self.waiting_since = now_ns;
    }

    /// Whether a block's entries may be acknowledged only after its flush.
    #[must_use]
    pub fn flushes_each_block(&self) -> bool {
        self.policy == FlushPolicy::Always
    }

    /// The flush time that waits are measured by, once there was a flush.
    #[must_use]
    pub fn flush_ns(&self) -> Option<u64> {
        self.flush.ns()
    }

    fn poll_waiting(&mut self, now_ns: u64) -> Commit {
        if let Some(until) = self.straggler_wait(now_ns)
            && now_ns < until
        {
            self.waiting_at_wait.get_or_insert(self.waiting);
            return Commit::WaitUntil(until);
        }
        if let Some(before) = self.waiting_at_wait.take() {
            if before < self.waiting {
                self.waits_in_vain = 0;
            } else {
                self.waits_in_vain += 1;
                if self.waits_in_vain == WAITS_IN_VAIN_MAX {
                    self.blocks_until_retry = BLOCKS_UNTIL_RETRY;
                    self.waits_in_vain = 0;
                }
            }
        } else {
            self.blocks_until_retry = self.blocks_until_retry.saturating_sub(1);
        }
        self.expected = self.waiting;
        self.waiting = 0;
        self.crowded = false;
        self.returns.handle_closed();
        self.in_flight = Some(InFlight::Block);
        Commit::Close
    }

    /// Until when it may pay to hold the open block back.
    fn straggler_wait(&self, now_ns: u64) -> Option<u64> {
        let flush_ns = self.flush.ns()?;
        let wait_max_ns = flush_ns.min(STRAGGLER_WAIT_NS_MAX);
        let pays = self.policy == FlushPolicy::Always
            && !self.crowded
            && self.blocks_until_retry == 0
            && self.waiting < self.expected
            && self.returns.mean_ns().is_none_or(|mean| mean < RETURN_FLUSHES * wait_max_ns)
            && self.other_producer_at.is_some_and(|at| now_ns < at + PRODUCER_ACTIVE_NS);
        let since = self.latest_append_at.max(self.waiting_since);
        let next = since + (flush_ns / 2).min(STRAGGLER_WAIT_NS_MAX);
        pays.then(|| next.min(self.waiting_since + wait_max_ns))
    }

    fn flush_due(&self) -> Option<u64> {
        match self.policy {
            FlushPolicy::Always => None,
            FlushPolicy::Interval { ns } => Some(self.unflushed_since? + ns),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLUSH_NS: u64 = 40_000;

    /// A policy of always that has just written a block of `appends` from as many producers.
    fn after_block(appends: u64) -> GroupCommit {
        let mut commit = GroupCommit::new(FlushPolicy::Always);
        for producer in 0..appends {
            commit.handle_append(0, producer);
        }
        assert_eq!(commit.poll(0), Commit::Close);
        commit.handle_written(FLUSH_NS, Some(FLUSH_NS));
        commit
    }

    #[test]
    fn nothing_waiting_does_nothing() {
        assert_eq!(GroupCommit::new(FlushPolicy::Always).poll(5), Commit::Idle);
    }

    #[test]
    fn an_idle_wal_closes_a_block_at_once() {
        let mut commit = after_block(1);
        for turn in 1..100 {
            let now = turn * 1_000_000;
            commit.handle_append(now, 0);
            assert_eq!(commit.poll(now), Commit::Close, "one producer never waits");
            commit.handle_written(now + FLUSH_NS, Some(FLUSH_NS));
        }
    }

    #[test]
    fn one_write_is_in_flight_and_what_arrives_meanwhile_is_the_next_block() {
        let mut commit = GroupCommit::new(FlushPolicy::Always);
        commit.handle_append(0, 1);
        assert_eq!(commit.poll(0), Commit::Close);
        commit.handle_append(1, 1);
        commit.handle_append(2, 1);
        assert_eq!(commit.poll(3), Commit::Idle);
        commit.handle_written(10, Some(10));
        assert_eq!(commit.poll(10), Commit::Close);
        assert_eq!(commit.poll(11), Commit::Idle);
    }

    #[test]
    fn with_several_producers_it_waits_for_each_of_as_many_as_last_time() {
        let mut commit = after_block(3);
        let now = FLUSH_NS + 100;
        commit.handle_append(now, 0);
        assert_eq!(commit.poll(now), Commit::WaitUntil(now + FLUSH_NS / 2));
        commit.handle_append(now + 10, 1);
        assert_eq!(commit.poll(now + 10), Commit::WaitUntil(now + 10 + FLUSH_NS / 2));
        commit.handle_append(now + 20, 2);
        assert_eq!(commit.poll(now + 20), Commit::Close, "all are here: no further wait");
    }

    #[test]
    fn stragglers_that_keep_coming_are_waited_for_no_longer_than_a_flush() {
        let mut commit = after_block(100);
        let begun = FLUSH_NS + 100;
        let mut now = begun;
        commit.handle_append(now, 0);
        while let Commit::WaitUntil(until) = commit.poll(now) {
            assert!(now < until && until <= begun + FLUSH_NS);
            now += FLUSH_NS / 4;
            commit.handle_append(now, now);
        }
        assert_eq!(now, begun + FLUSH_NS);
    }

    #[test]
    fn a_wait_ends_at_its_deadline() {
        let mut commit = after_block(3);
        let now = FLUSH_NS + 100;
        commit.handle_append(now, 0);
        let Commit::WaitUntil(until) = commit.poll(now) else { panic!("waits") };
        assert_eq!(commit.poll(until), Commit::Close);
    }

    #[test]
    fn a_block_that_others_wait_to_see_closed_is_not_held_back() {
        let mut commit = after_block(3);
        commit.handle_crowded();
        commit.handle_append(FLUSH_NS, 0);
        assert!(matches!(commit.poll(FLUSH_NS), Commit::WaitUntil(_)), "nobody waited yet");
        commit.handle_crowded();
        assert_eq!(commit.poll(FLUSH_NS), Commit::Close);
    }

    #[test]
    fn a_slow_disk_does_not_make_the_wait_long() {
        let mut commit = after_block(3);
        commit.handle_append(FLUSH_NS, 0);
        assert_eq!(commit.poll(FLUSH_NS + STRAGGLER_WAIT_NS_MAX), Commit::Close);
        commit.handle_written(FLUSH_NS, Some(u64::from(u32::MAX)));
        commit.expected = 3;
        commit.handle_append(FLUSH_NS, 1);
        assert_eq!(commit.poll(FLUSH_NS), Commit::WaitUntil(FLUSH_NS + STRAGGLER_WAIT_NS_MAX));
    }

    #[test]
    fn a_producer_that_went_away_is_not_waited_for() {
        let mut commit = after_block(2);
        let now = FLUSH_NS + 2 * PRODUCER_ACTIVE_NS;
        commit.handle_append(now, 0);
        commit.handle_append(now, 0);
        commit.expected = 5;
        assert_eq!(commit.poll(now + 1), Commit::Close);
    }

    #[test]
    fn waiting_that_brings_nobody_is_given_up_and_tried_again_later() {
        let mut commit = after_block(3);
        let mut now = FLUSH_NS;
        let mut waits = 0;
        for _ in 0..WAITS_IN_VAIN_MAX + BLOCKS_UNTIL_RETRY + 1 {
            now += 1_000;
            commit.expected = 3;
            commit.handle_append(now, 0);
            commit.other_producer_at = Some(now);
            if let Commit::WaitUntil(until) = commit.poll(now) {
                waits += 1;
                now = until;
                assert_eq!(commit.poll(now), Commit::Close);
            }
            commit.handle_written(now, Some(FLUSH_NS));
        }
        assert_eq!(waits, WAITS_IN_VAIN_MAX + 1);
    }

    #[test]
    fn producers_that_wait_for_answers_end_up_in_one_block() {
        let mut commit = GroupCommit::new(FlushPolicy::Always);
        let (flush_ns, mut now) = (1_000_000, 0);
        let round_trip_ns = 100_000;
        // Four of eight producers append; the others come while their block is written.
        let mut block: Vec<u64> = (0..4).collect();
        let mut meanwhile: Vec<u64> = (4..8).collect();
        let mut sizes = Vec::new();
        for producer in &block {
            commit.handle_append(now, *producer);
        }
        assert_eq!(commit.poll(now), Commit::Close);
        for _ in 0..4 {
            for producer in &meanwhile {
                commit.handle_append(now + 1, *producer);
            }
            now += flush_ns;
            commit.handle_written(now, Some(flush_ns));
            // Those who were answered append again a round trip later.
            let mut next = meanwhile.clone();
            if let Commit::WaitUntil(until) = commit.poll(now) {
                assert!(now + round_trip_ns <= until, "a round trip is less than a quarter flush");
                now += round_trip_ns;
                for producer in &block {
                    commit.handle_append(now, *producer);
                }
                next.append(&mut block);
                assert_eq!(commit.poll(now), Commit::Close);
                meanwhile.clear();
            } else {
                std::mem::swap(&mut block, &mut meanwhile);
            }
            sizes.push(next.len());
            block = next;
        }
        assert_eq!(sizes, [8, 8, 8, 8]);
    }

    #[test]
    fn producers_that_send_at_their_own_pace_are_not_waited_for() {
        let mut commit = GroupCommit::new(FlushPolicy::Always);
        let (mut now, mut waits) = (0, 0);
        // Eight producers append in turn, one each half flush: each long after its answer.
        for append in 0..1_000 {
            now += FLUSH_NS / 2;
            if commit.in_flight.is_some() && append % 2 == 0 {
                commit.handle_written(now, Some(FLUSH_NS));
            }
            commit.handle_append(now, append % 8);
            waits += u32::from(matches!(commit.poll(now), Commit::WaitUntil(_)));
        }
        assert!(waits < 20, "{waits} waits: those at the beginning, until it is known");
    }

    #[test]
    fn a_pause_gets_one_idle_mark_within_100_ms() {
        const { assert!(IDLE_MARK_NS < 100_000_000) };
        let mut commit = after_block(1);
        assert_eq!(commit.poll(FLUSH_NS), Commit::WaitUntil(FLUSH_NS + IDLE_MARK_NS));
        let now = FLUSH_NS + IDLE_MARK_NS;
        assert_eq!(commit.poll(now), Commit::IdleMark);
        assert_eq!(commit.poll(now), Commit::Idle, "it is in flight");
        commit.handle_written(now, Some(FLUSH_NS));
        assert_eq!(commit.poll(now * 10), Commit::Idle, "a mark is not marked");
    }

    #[test]
    fn interval_flushes_once_per_interval_even_under_load() {
        let mut commit = GroupCommit::new(FlushPolicy::Interval { ns: 1_000 });
        commit.handle_append(0, 0);
        assert_eq!(commit.poll(0), Commit::Close);
        commit.handle_written(10, None);
        assert_eq!(commit.poll(10), Commit::WaitUntil(1_010));
        commit.handle_append(500, 0);
        assert_eq!(commit.poll(500), Commit::Close);
        commit.handle_append(600, 0);
        commit.handle_written(1_020, None);
        assert_eq!(commit.poll(1_020), Commit::Flush, "a flush that is due goes first");
        commit.handle_written(1_050, Some(30));
        assert_eq!(commit.poll(1_050), Commit::Close);
    }
}
