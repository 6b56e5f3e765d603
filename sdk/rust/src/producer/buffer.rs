//! Records of one partition, from the moment they are submitted until they are acknowledged. Pure:
//! no clock, no I/O.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustmq_protocol::{BatchBuilder, PartitionId, PushError, Record};

use super::ticket::{BatchOutcome, Ticket};
use super::window::{Window, WindowEffect};

/// The growing batch of a partition and the window of those that are sealed.
///
/// A batch is sealed when it is full, or, if nothing is on its way, when it has waited for the
/// linger time: so a single record leaves at once, and while a batch is on its way the next one
/// gathers.
#[derive(Debug)]
pub(super) struct PartitionBuffer {
    partition: PartitionId,
    builder: BatchBuilder,
    /// Of the batch that grows; `None` while it is empty.
    growing: Option<Growing>,
    pub(super) window: Window<Sealed>,
    linger: Duration,
    delivery_timeout: Duration,
    records_max: u32,
    /// Seal without lingering, until the buffer is empty.
    flushing: bool,
}

#[derive(Debug)]
struct Growing {
    outcome: Arc<BatchOutcome>,
    begun_at: Instant,
    charged_bytes: usize,
}

/// What goes with a sealed batch.
#[derive(Debug)]
pub(super) struct Sealed {
    pub(super) outcome: Arc<BatchOutcome>,
    /// Bytes of the producer's buffer that its records hold.
    pub(super) charged_bytes: usize,
}

/// How batches of a partition are made.
#[derive(Clone, Copy, Debug)]
pub(super) struct BatchLimits {
    pub(super) bytes: usize,
    pub(super) records: u32,
    pub(super) linger: Duration,
    pub(super) delivery_timeout: Duration,
}

impl PartitionBuffer {
    pub(super) fn new(
        partition: PartitionId,
        limits: BatchLimits,
        window: Window<Sealed>,
    ) -> PartitionBuffer {
        PartitionBuffer {
            partition,
            builder: BatchBuilder::new(limits.bytes),
            growing: None,
            window,
            linger: limits.linger,
            delivery_timeout: limits.delivery_timeout,
            records_max: limits.records,
            flushing: false,
        }
    }

    /// Adds a record that holds so many bytes of the producer's buffer. `Full` is never returned.
    pub(super) fn append(
        &mut self,
        record: &Record<'_>,
        charged_bytes: usize,
        now: Instant,
    ) -> Result<Ticket, PushError> {
        if self.builder.record_count() == self.records_max {
            self.seal();
        }
        match self.builder.try_push(record) {
            Err(PushError::Full) => {
                self.seal();
                self.builder.try_push(record)?;
            }
            result => result?,
        }
        let growing = self.growing.get_or_insert_with(|| Growing {
            outcome: Arc::new(BatchOutcome::new(self.partition)),
            begun_at: now,
            charged_bytes: 0,
        });
        growing.charged_bytes += charged_bytes;
        Ok(Ticket::new(Arc::clone(&growing.outcome), self.builder.record_count() - 1))
    }

    /// True if no batch is growing.
    pub(super) fn is_growing_empty(&self) -> bool {
        self.growing.is_none()
    }

    /// True if every record is acknowledged or given up.
    pub(super) fn is_empty(&self) -> bool {
        self.growing.is_none() && self.window.is_idle()
    }

    /// Lingers no longer; the fates of all batches that are there now.
    pub(super) fn flush(&mut self) -> Vec<Arc<BatchOutcome>> {
        self.flushing = !self.is_empty();
        let growing = self.growing.iter().map(|growing| &growing.outcome);
        let sealed = self.window.payloads().map(|sealed| &sealed.outcome);
        sealed.chain(growing).cloned().collect()
    }

    /// What to do next; to be called until it says to wait. Expired batches are the window's
    /// `poll_expired`.
    pub(super) fn poll_effect(&mut self, now: Instant) -> WindowEffect {
        let mut linger_until = None;
        if self.window.is_idle()
            && let Some(growing) = &self.growing
        {
            let due_at = growing.begun_at + self.linger;
            if due_at <= now || self.flushing {
                self.seal();
            } else {
                linger_until = Some(due_at);
            }
        }
        if self.is_empty() {
            self.flushing = false;
        }
        match self.window.poll_effect(now) {
            WindowEffect::Wait(until) => {
                WindowEffect::Wait(until.into_iter().chain(linger_until).min())
            }
            effect => effect,
        }
    }

    fn seal(&mut self) {
        let Some(growing) = self.growing.take() else { return };
        let record_count = self.builder.record_count();
        let bytes = self.builder.finish(self.window.stamp(record_count));
        let expires_at = growing.begun_at + self.delivery_timeout;
        let sealed = Sealed { outcome: growing.outcome, charged_bytes: growing.charged_bytes };
        self.window.push(bytes, record_count, expires_at, sealed);
    }
}

#[cfg(test)]
mod tests {
    use rustmq_protocol::{ProducerEpoch, ProducerId, TimestampMs, records};

    use super::*;
    use crate::backoff::Backoff;

    fn buffer(linger: Duration) -> PartitionBuffer {
        let backoff = Backoff::new(Duration::from_millis(10), Duration::from_millis(10), 1);
        let window = Window::new(2, Some((ProducerId(1), ProducerEpoch(0))), backoff);
        let limits = BatchLimits {
            bytes: 200,
            records: 3,
            linger,
            delivery_timeout: Duration::from_secs(10),
        };
        PartitionBuffer::new(PartitionId(0), limits, window)
    }

    fn append(buffer: &mut PartitionBuffer, value: &[u8], now: Instant) {
        let record =
            Record { timestamp: TimestampMs(0), key: None, value: Some(value), headers: &[] };
        buffer.append(&record, value.len(), now).unwrap();
    }

    fn sent(effect: WindowEffect) -> (u64, usize) {
        match effect {
            WindowEffect::Send { attempt, bytes } => (attempt, records(&bytes).unwrap().count()),
            effect => panic!("{effect:?}"),
        }
    }

    #[test]
    fn a_single_record_leaves_at_once_and_what_follows_gathers_until_the_answer() {
        let now = Instant::now();
        let mut buffer = buffer(Duration::ZERO);
        append(&mut buffer, b"a", now);
        let (attempt, count) = sent(buffer.poll_effect(now));
        assert_eq!(count, 1);
        append(&mut buffer, b"b", now);
        append(&mut buffer, b"c", now);
        assert!(matches!(buffer.poll_effect(now), WindowEffect::Wait(Some(_))));
        buffer.window.handle_acked(attempt).unwrap();
        let (attempt, count) = sent(buffer.poll_effect(now));
        assert_eq!(count, 2);
        buffer.window.handle_acked(attempt).unwrap();
        assert!(buffer.is_empty());
        assert_eq!(buffer.poll_effect(now), WindowEffect::Wait(None));
    }

    #[test]
    fn a_full_batch_leaves_while_another_is_on_its_way() {
        let now = Instant::now();
        let mut buffer = buffer(Duration::ZERO);
        append(&mut buffer, b"a", now);
        sent(buffer.poll_effect(now));
        for _ in 0..4 {
            append(&mut buffer, b"b", now);
        }
        assert_eq!(sent(buffer.poll_effect(now)).1, 3, "full by records");
        append(&mut buffer, &[0; 300], now);
        assert!(matches!(buffer.poll_effect(now), WindowEffect::Wait(_)), "two are in flight");
    }

    #[test]
    fn a_record_larger_than_a_batch_has_one_of_its_own() {
        let now = Instant::now();
        let mut buffer = buffer(Duration::from_secs(1));
        append(&mut buffer, b"a", now);
        append(&mut buffer, &[0; 300], now);
        append(&mut buffer, b"b", now);
        assert_eq!(sent(buffer.poll_effect(now)).1, 1);
        assert_eq!(sent(buffer.poll_effect(now)).1, 1);
    }

    #[test]
    fn a_batch_lingers_and_a_flush_ends_that() {
        let now = Instant::now();
        let linger = Duration::from_millis(5);
        let mut buffer = buffer(linger);
        append(&mut buffer, b"a", now);
        assert_eq!(buffer.poll_effect(now), WindowEffect::Wait(Some(now + linger)));
        let (attempt, _) = sent(buffer.poll_effect(now + linger));
        buffer.window.handle_acked(attempt).unwrap();

        append(&mut buffer, b"b", now);
        assert_eq!(buffer.flush().len(), 1);
        let (attempt, _) = sent(buffer.poll_effect(now));
        buffer.window.handle_acked(attempt).unwrap();
        assert_eq!(buffer.flush().len(), 0);
        append(&mut buffer, b"c", now);
        assert!(matches!(buffer.poll_effect(now), WindowEffect::Wait(_)), "it lingers again");
    }

    #[test]
    fn charges_add_up_for_each_batch() {
        let now = Instant::now();
        let mut buffer = buffer(Duration::ZERO);
        append(&mut buffer, b"aa", now);
        append(&mut buffer, b"bbb", now);
        let (attempt, _) = sent(buffer.poll_effect(now));
        assert_eq!(buffer.window.handle_acked(attempt).unwrap().charged_bytes, 5);
    }
}
