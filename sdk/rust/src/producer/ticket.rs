//! What a program holds while a record is on its way.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use rustmq_protocol::{FlushMode, Offset, PartitionId, TimestampMs};

use crate::error::ClientError;

/// Where a record is in the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecordMetadata {
    /// Its partition.
    pub partition: PartitionId,
    /// Its offset; [`RecordMetadata::OFFSET_UNKNOWN`] with
    /// [`Acks::None`](rustmq_protocol::Acks::None).
    pub offset: Offset,
    /// When the leader appended it, by the leader's clock; -1 with
    /// [`Acks::None`](rustmq_protocol::Acks::None).
    pub timestamp: TimestampMs,
    /// Whether it was on the device before it was acknowledged, or will be within an interval until
    /// which a crash of the broker's host may lose it; `None` with
    /// [`Acks::None`](rustmq_protocol::Acks::None).
    pub flush: Option<FlushMode>,
}

impl RecordMetadata {
    /// The broker was not asked to say where the record is.
    pub const OFFSET_UNKNOWN: Offset = Offset(u64::MAX);
}

/// A future of the fate of one record. Dropping it does not take the record back.
#[derive(Debug)]
pub struct Ticket {
    outcome: Arc<BatchOutcome>,
    /// Which record of its batch.
    index: u32,
    /// The waker that was left with the batch.
    waker: Option<Waker>,
}

impl Ticket {
    pub(super) fn new(outcome: Arc<BatchOutcome>, index: u32) -> Ticket {
        Ticket { outcome, index, waker: None }
    }

    /// The partition that the record goes to.
    pub fn partition(&self) -> PartitionId {
        self.outcome.partition
    }
}

impl Future for Ticket {
    type Output = Result<RecordMetadata, ClientError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let ticket = &mut *self;
        let polled = ticket.outcome.poll(&mut ticket.waker, context);
        polled.map(|result| {
            result.map(|ack| RecordMetadata {
                partition: ticket.outcome.partition,
                offset: ack.offset_of(ticket.index),
                timestamp: ack.timestamp,
                flush: ack.flush,
            })
        })
    }
}

/// What the broker said about a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct BatchAck {
    pub(super) base_offset: Option<Offset>,
    pub(super) timestamp: TimestampMs,
    pub(super) flush: Option<FlushMode>,
}

impl BatchAck {
    /// Nobody said anything, as nobody was asked to.
    pub(super) const NONE: BatchAck =
        BatchAck { base_offset: None, timestamp: TimestampMs(-1), flush: None };

    fn offset_of(self, index: u32) -> Offset {
        let offset = self.base_offset.and_then(|base| base.checked_add(u64::from(index)));
        offset.unwrap_or(RecordMetadata::OFFSET_UNKNOWN)
    }
}

/// The fate of one batch, shared by the tickets of its records. Set once, by the task that delivers
/// it.
#[derive(Debug)]
pub(super) struct BatchOutcome {
    partition: PartitionId,
    state: Mutex<OutcomeState>,
}

#[derive(Debug)]
enum OutcomeState {
    /// At most one waker for each ticket and flush that waits.
    Waiting(Vec<Waker>),
    Done(Result<BatchAck, ClientError>),
}

impl BatchOutcome {
    pub(super) fn new(partition: PartitionId) -> BatchOutcome {
        BatchOutcome { partition, state: Mutex::new(OutcomeState::Waiting(Vec::new())) }
    }

    pub(super) fn set(&self, result: Result<BatchAck, ClientError>) {
        let before = std::mem::replace(&mut *self.lock(), OutcomeState::Done(result));
        match before {
            OutcomeState::Waiting(wakers) => wakers.into_iter().for_each(Waker::wake),
            OutcomeState::Done(_) => panic!("a batch has one fate"),
        }
    }

    /// Waits for the fate of the batch.
    pub(super) async fn wait(&self) -> Result<(), ClientError> {
        let mut left = None;
        std::future::poll_fn(|context| self.poll(&mut left, context)).await.map(drop)
    }

    fn poll(
        &self,
        left: &mut Option<Waker>,
        context: &Context<'_>,
    ) -> Poll<Result<BatchAck, ClientError>> {
        match &mut *self.lock() {
            OutcomeState::Done(result) => Poll::Ready(result.clone()),
            OutcomeState::Waiting(wakers) => {
                let known = left.as_ref().is_some_and(|left| left.will_wake(context.waker()));
                if !known {
                    wakers.push(context.waker().clone());
                    *left = Some(context.waker().clone());
                }
                Poll::Pending
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, OutcomeState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::task::Wake;

    use super::*;

    struct Quiet;

    impl Wake for Quiet {
        fn wake(self: Arc<Self>) {}
    }

    #[test]
    fn a_ticket_leaves_one_waker_however_often_it_is_polled() {
        let outcome = Arc::new(BatchOutcome::new(PartitionId(3)));
        let mut ticket = Ticket::new(Arc::clone(&outcome), 0);
        let waker = Waker::from(Arc::new(Quiet));
        let mut context = Context::from_waker(&waker);
        assert!(Pin::new(&mut ticket).poll(&mut context).is_pending());
        assert!(Pin::new(&mut ticket).poll(&mut context).is_pending());
        let OutcomeState::Waiting(wakers) = &*outcome.lock() else { panic!("nothing was set") };
        assert_eq!(wakers.len(), 1);
    }

    #[test]
    fn a_ticket_is_ready_once_the_batch_has_its_fate() {
        let outcome = Arc::new(BatchOutcome::new(PartitionId(3)));
        let mut ticket = Ticket::new(Arc::clone(&outcome), 2);
        let mut context = Context::from_waker(Waker::noop());
        assert!(Pin::new(&mut ticket).poll(&mut context).is_pending());
        let (timestamp, flush) = (TimestampMs(7), Some(FlushMode::Interval { ms: 100 }));
        outcome.set(Ok(BatchAck { base_offset: Some(Offset(40)), timestamp, flush }));
        let Poll::Ready(Ok(metadata)) = Pin::new(&mut ticket).poll(&mut context) else {
            panic!("the batch has its fate")
        };
        let (partition, offset) = (PartitionId(3), Offset(42));
        assert_eq!(metadata, RecordMetadata { partition, offset, timestamp, flush });
    }

    #[test]
    fn an_offset_that_nobody_told_is_unknown() {
        assert_eq!(BatchAck::NONE.offset_of(3), RecordMetadata::OFFSET_UNKNOWN);
    }
}
