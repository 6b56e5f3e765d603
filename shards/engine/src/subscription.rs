//! What a consumer that has subscribed to a partition is sent next.

use rustmq_protocol::limits::{CREDIT_BYTES_MAX, FETCH_BYTES_MAX};
use rustmq_protocol::{LeaderEpoch, Offset};

/// How far one consumer has been sent one partition, and how much more it takes for now.
///
/// Lives on the core of the partition's leader and is driven by its shell: [`Self::poll_next`] decides,
/// the shell reads and sends, [`Self::handle_sent`] tells what went out. It begins with the
/// consumer's request and ends when either side says so.
///
/// Invariants: `next_offset` only rises; credit is at most [`CREDIT_BYTES_MAX`], and nothing is sent
/// while it is zero or less.
#[derive(Clone, Copy, Debug)]
pub struct Subscription {
    leader_epoch: LeaderEpoch,
    next_offset: Offset,
    /// Below zero by as much as the last batch was larger than what was left.
    credit_bytes: i64,
    answer_bytes_max: usize,
}

/// What a subscription waits for, or may be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Batches from the next offset on: so many bytes of them, or one.
    Send {
        /// Bytes of the answer, but for a single larger batch; at least 1.
        bytes_max: usize,
    },
    /// For records: it has all that may be read.
    Records,
    /// For credit.
    Credit,
}

/// A grant would give more credit than [`CREDIT_BYTES_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooMuchCredit;

impl Subscription {
    /// A subscription from `offset` on, which the caller has checked, in answers of at most
    /// `answer_bytes_max`.
    pub fn open(
        leader_epoch: LeaderEpoch,
        offset: Offset,
        credit_bytes: u32,
        answer_bytes_max: u32,
    ) -> Result<Self, TooMuchCredit> {
        let answer_bytes_max = (answer_bytes_max as usize).clamp(1, FETCH_BYTES_MAX);
        let mut subscription =
            Self { leader_epoch, next_offset: offset, credit_bytes: 0, answer_bytes_max };
        subscription.grant(credit_bytes)?;
        Ok(subscription)
    }

    /// The consumer takes so many bytes more. At the limit nothing of it counts.
    pub fn grant(&mut self, bytes: u32) -> Result<(), TooMuchCredit> {
        let credit_bytes = self.credit_bytes + i64::from(bytes);
        if i64::from(CREDIT_BYTES_MAX) < credit_bytes {
            return Err(TooMuchCredit);
        }
        self.credit_bytes = credit_bytes;
        Ok(())
    }

    /// What comes next, when records below `high_watermark` may be read. Credit is asked for only
    /// where there is something to send.
    pub fn poll_next(&self, high_watermark: Offset) -> Next {
        if high_watermark <= self.next_offset {
            return Next::Records;
        }
        match usize::try_from(self.credit_bytes) {
            Ok(credit) if 0 < credit => Next::Send { bytes_max: credit.min(self.answer_bytes_max) },
            _ => Next::Credit,
        }
    }

    /// Batches up to `end_offset` went out.
    pub fn handle_sent(&mut self, end_offset: Offset, bytes: usize) {
        assert!(self.next_offset < end_offset, "an answer brings something new");
        self.next_offset = end_offset;
        self.credit_bytes -= bytes as i64;
    }

    /// The epoch in which it was opened.
    pub fn leader_epoch(&self) -> LeaderEpoch {
        self.leader_epoch
    }

    /// The first offset that was not sent.
    pub fn next_offset(&self) -> Offset {
        self.next_offset
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subscription(credit: u32, bytes_max: u32) -> Subscription {
        Subscription::open(LeaderEpoch(1), Offset(10), credit, bytes_max).unwrap()
    }

    #[test]
    fn what_may_be_read_is_sent_while_there_is_credit() {
        let mut subscription = subscription(150, 100);
        assert_eq!(subscription.poll_next(Offset(10)), Next::Records);
        assert_eq!(subscription.poll_next(Offset(20)), Next::Send { bytes_max: 100 });
        subscription.handle_sent(Offset(13), 100);
        assert_eq!(subscription.poll_next(Offset(20)), Next::Send { bytes_max: 50 });
        subscription.handle_sent(Offset(14), 50);
        assert_eq!(subscription.poll_next(Offset(20)), Next::Credit);
        assert_eq!(
            subscription.poll_next(Offset(14)),
            Next::Records,
            "no credit is needed for nothing"
        );
        subscription.grant(1).unwrap();
        assert_eq!(subscription.poll_next(Offset(20)), Next::Send { bytes_max: 1 });
        assert_eq!(subscription.next_offset(), Offset(14));
    }

    #[test]
    fn a_batch_beyond_the_credit_is_made_up_for_by_the_next_grants() {
        let mut subscription = subscription(10, 100);
        subscription.handle_sent(Offset(11), 1000);
        subscription.grant(900).unwrap();
        assert_eq!(subscription.poll_next(Offset(20)), Next::Credit);
        subscription.grant(90).unwrap();
        assert_eq!(subscription.poll_next(Offset(20)), Next::Credit, "none is left");
        subscription.grant(5).unwrap();
        assert_eq!(subscription.poll_next(Offset(20)), Next::Send { bytes_max: 5 });
    }

    #[test]
    fn credit_has_a_limit_and_a_grant_beyond_it_counts_nothing() {
        let open = |credit| Subscription::open(LeaderEpoch(1), Offset(0), credit, 1);
        assert_eq!(open(CREDIT_BYTES_MAX + 1).unwrap_err(), TooMuchCredit);
        let mut subscription = open(CREDIT_BYTES_MAX - 1).unwrap();
        assert_eq!(subscription.grant(2), Err(TooMuchCredit));
        assert_eq!(subscription.grant(1), Ok(()));
        assert_eq!(subscription.grant(u32::MAX), Err(TooMuchCredit));
    }

    #[test]
    fn an_answer_of_no_bytes_still_takes_a_batch() {
        let subscription = subscription(1 << 20, 0);
        assert_eq!(subscription.poll_next(Offset(20)), Next::Send { bytes_max: 1 });
        let most = Subscription::open(LeaderEpoch(1), Offset(0), 1 << 30, u32::MAX).unwrap();
        assert_eq!(most.poll_next(Offset(1)), Next::Send { bytes_max: FETCH_BYTES_MAX });
    }
}
