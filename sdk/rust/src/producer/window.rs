//! Batches of one partition that are sealed and not yet acknowledged: what is sent next, what
//! again, what is given up. Pure: no clock, no I/O.
//!
//! ```text
//!            push            poll Send          handle_acked
//!  sealed ─────────► queued ──────────► in flight ─────────► done
//!                      ▲                   │  │
//!                      └───────────────────┘  └─────────────► given up
//!                     refused for a while, lost       refused for good, or out of time
//! ```
//!
//! **Order.** Batches are sent in the order in which they were pushed. When one must be sent again,
//! nothing is sent until every batch in flight is answered; then all that remain are sent again in
//! order, with the same sequences. A broker that has appended one of them already says so and
//! appends nothing.
//!
//! **Gaps.** A batch that is given up and is certainly not in the log leaves a gap in the
//! sequences, and the broker would refuse every later batch. Those are certainly not in the log
//! either, so they get a new producer id and sequences from 0 once they are at the front. Copies of
//! them that may still be under way carry the old id and stay refused.
//!
//! **At most once.** Where nothing is acknowledged, a batch that may have arrived is given up instead
//! of sent again: no broker would recognise it. One that was never handed to QUIC is still sent.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use rustmq_protocol::{
    ErrorCode, ProducerEpoch, ProducerId, ProducerStamp, Sequence, stamp_producer,
};

use crate::backoff::Backoff;
use crate::error::ClientError;

/// Batches of one partition on their way, in order. Driven by the delivery task of the partition.
///
/// Invariants: batches in flight are at the front of those that were not given up, are
/// `in_flight_max` at most, and none is so many or more behind the first that is not acknowledged: the
/// broker remembers the last `in_flight_max` batches, and has to know the first one should it come
/// again; sequences ascend without gaps from one batch to the next, except before
/// a batch marked `renumber`.
#[derive(Debug)]
pub(super) struct Window<T> {
    entries: VecDeque<Entry<T>>,
    /// Attempts that are not answered, also those of batches given up meanwhile.
    in_flight: Vec<u64>,
    in_flight_max: usize,
    numbering: Option<Numbering>,
    /// Give up what may have arrived.
    at_most_once: bool,
    /// Nothing is sent until everything in flight is answered.
    draining: bool,
    /// The next batch pushed comes behind a gap.
    gap_at_end: bool,
    resume_at: Option<Instant>,
    backoff: Backoff,
    attempt_next: u64,
    number_next: u64,
}

/// The producer id of an idempotent producer, and the sequence of the next batch.
#[derive(Clone, Copy, Debug)]
struct Numbering {
    id: ProducerId,
    epoch: ProducerEpoch,
    next: Sequence,
}

#[derive(Debug)]
struct Entry<T> {
    /// Counts the batches pushed.
    number: u64,
    bytes: Bytes,
    record_count: u32,
    /// Ascends from one batch to the next.
    expires_at: Instant,
    /// The attempt that is not answered.
    attempt: Option<u64>,
    /// An attempt ended without saying whether the batch was appended.
    maybe_appended: bool,
    /// A gap lies before it: it needs a new producer id once it is at the front.
    renumber: bool,
    last_error: Option<ClientError>,
    payload: T,
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum WindowEffect {
    /// Send the batch; answer with `handle_acked`, `handle_refused`, `handle_lost` or
    /// `handle_unsent`.
    Send {
        /// Names this attempt in the answer.
        attempt: u64,
        /// The batch.
        bytes: Bytes,
    },
    /// Get a producer id; answer with `handle_producer` or `handle_no_producer`.
    NewProducer,
    /// Nothing, until something happens or the time comes.
    Wait(Option<Instant>),
}

/// A batch that was given up: why, and what was pushed with it.
pub(super) type GivenUp<T> = (T, ClientError);

impl<T> Window<T> {
    /// `producer` is none if the broker is not to recognise batches sent again.
    pub(super) fn new(
        in_flight_max: usize,
        producer: Option<(ProducerId, ProducerEpoch)>,
        backoff: Backoff,
    ) -> Window<T> {
        assert!(0 < in_flight_max, "a producer sends something");
        let numbering = producer.map(|(id, epoch)| Numbering { id, epoch, next: Sequence(0) });
        Window {
            entries: VecDeque::new(),
            in_flight: Vec::with_capacity(in_flight_max),
            in_flight_max,
            numbering,
            at_most_once: false,
            draining: false,
            gap_at_end: false,
            resume_at: None,
            backoff,
            attempt_next: 0,
            number_next: 0,
        }
    }

    /// The same, giving up what may have arrived.
    pub(super) fn at_most_once(self) -> Window<T> {
        Window { at_most_once: true, ..self }
    }

    /// What the next batch, of so many records, is to be stamped with before it is pushed.
    pub(super) fn stamp(&mut self, record_count: u32) -> ProducerStamp {
        match &mut self.numbering {
            None => ProducerStamp::NONE,
            Some(numbering) => numbering.take(record_count),
        }
    }

    /// Takes a batch that was stamped by [`Window::stamp`].
    pub(super) fn push(
        &mut self,
        bytes: Bytes,
        record_count: u32,
        expires_at: Instant,
        payload: T,
    ) {
        let number = self.number_next;
        self.number_next += 1;
        self.entries.push_back(Entry {
            number,
            bytes,
            record_count,
            expires_at,
            attempt: None,
            maybe_appended: false,
            renumber: std::mem::take(&mut self.gap_at_end),
            last_error: None,
            payload,
        });
    }

    /// True if there is no batch that could be waited for, so that a batch not yet full is worth
    /// sending.
    pub(super) fn is_idle(&self) -> bool {
        self.entries.is_empty() && self.in_flight.is_empty()
    }

    /// Batches sent and not answered.
    pub(super) fn in_flight_count(&self) -> usize {
        self.in_flight.len()
    }

    /// What was pushed with the batches that have no answer yet.
    pub(super) fn payloads(&self) -> impl Iterator<Item = &T> {
        self.entries.iter().map(|entry| &entry.payload)
    }

    /// When the first batch is out of time.
    pub(super) fn expiry(&self) -> Option<Instant> {
        self.entries.front().map(|entry| entry.expires_at)
    }

    /// Sends nothing until everything in flight is answered: what follows may take another way.
    pub(super) fn drain(&mut self) {
        self.draining = !self.in_flight.is_empty();
    }

    /// The next batch whose time is over; to be called until there is none.
    pub(super) fn poll_expired(&mut self, now: Instant) -> Option<GivenUp<T>> {
        let entry = self.entries.front().filter(|entry| entry.expires_at <= now)?;
        let definite = entry.attempt.is_none() && !entry.maybe_appended;
        let entry = self.give_up(0, definite)?;
        let last = entry.last_error.map(Box::new);
        Some((entry.payload, ClientError::DeliveryTimeout { definite, last }))
    }

    /// What to do next; to be called until it says to wait.
    pub(super) fn poll_effect(&mut self, now: Instant) -> WindowEffect {
        let expiry = self.expiry();
        if self.in_flight.is_empty() {
            self.draining = false;
        }
        if self.draining || self.in_flight.len() == self.in_flight_max {
            return WindowEffect::Wait(expiry);
        }
        if let Some(resume_at) = self.resume_at {
            if now < resume_at {
                return WindowEffect::Wait(expiry.map(|expiry| expiry.min(resume_at)));
            }
            self.resume_at = None;
        }
        let Some(index) = self.entries.iter().position(|entry| entry.attempt.is_none()) else {
            return WindowEffect::Wait(expiry);
        };
        let oldest = self.entries[0].number;
        let entry = &mut self.entries[index];
        if self.in_flight_max as u64 <= entry.number - oldest {
            return WindowEffect::Wait(expiry);
        }
        if entry.renumber {
            return if index == 0 && self.in_flight.is_empty() {
                WindowEffect::NewProducer
            } else {
                WindowEffect::Wait(expiry)
            };
        }
        let attempt = self.attempt_next;
        self.attempt_next += 1;
        entry.attempt = Some(attempt);
        self.in_flight.push(attempt);
        WindowEffect::Send { attempt, bytes: entry.bytes.clone() }
    }

    /// The broker has appended the batch, now or in an earlier attempt.
    pub(super) fn handle_acked(&mut self, attempt: u64) -> Option<T> {
        let index = self.answered(attempt)?;
        self.backoff.reset();
        self.entries.remove(index).map(|entry| entry.payload)
    }

    /// The broker refused the batch, or could not say what became of it.
    pub(super) fn handle_refused(
        &mut self,
        attempt: u64,
        code: ErrorCode,
        message: String,
        retry_after: Duration,
        now: Instant,
    ) -> Option<GivenUp<T>> {
        let index = self.answered(attempt)?;
        let idempotent = self.numbering.is_some();
        let entry = self.entries.get_mut(index)?;
        entry.maybe_appended |= !code.is_definite();
        let definite = !entry.maybe_appended;
        let error = ClientError::Broker { code, message, definite, retry_after };
        entry.last_error = Some(error.clone());
        let sequence_missing =
            matches!(code, ErrorCode::OutOfOrderSequence | ErrorCode::UnknownProducerId);
        if idempotent && sequence_missing {
            if index > 0 {
                // The batches before it decide; it is sent again behind them.
                self.draining = true;
                return None;
            }
            if code == ErrorCode::OutOfOrderSequence {
                // A batch given up before this one is not in the log. Had this one been appended,
                // the broker would have recognised it instead.
                entry.maybe_appended = false;
            }
            if !entry.maybe_appended {
                entry.renumber = true;
                self.pause(now, retry_after);
                return None;
            }
            // The broker has forgotten the producer, and with it whether the batch is in the log.
        } else if code.is_retriable() {
            self.pause(now, retry_after);
            return None;
        }
        let definite = !entry.maybe_appended;
        let entry = self.give_up(index, definite)?;
        Some((entry.payload, error))
    }

    /// The connection was lost or the answer did not come: the batch may be in the log.
    pub(super) fn handle_lost(
        &mut self,
        attempt: u64,
        error: ClientError,
        now: Instant,
    ) -> Option<GivenUp<T>> {
        let index = self.answered(attempt)?;
        self.pause(now, Duration::ZERO);
        if self.at_most_once {
            return self.give_up(index, false).map(|entry| (entry.payload, error));
        }
        let entry = self.entries.get_mut(index)?;
        entry.maybe_appended = true;
        entry.last_error = Some(error);
        None
    }

    /// No answer came for too long: whatever is in flight may be in the log. Answers that come
    /// later are not looked at.
    pub(super) fn handle_all_lost(&mut self, error: &ClientError, now: Instant) -> Vec<GivenUp<T>> {
        let in_flight = self.in_flight.clone();
        let lost = |attempt| self.handle_lost(attempt, error.clone(), now);
        in_flight.into_iter().filter_map(lost).collect()
    }

    /// The batch was never sent: there was no way to the leader.
    pub(super) fn handle_unsent(
        &mut self,
        attempt: u64,
        error: ClientError,
        now: Instant,
    ) -> Option<GivenUp<T>> {
        let index = self.answered(attempt)?;
        let entry = self.entries.get_mut(index)?;
        if error.is_retriable() {
            let retry_after = error.retry_after();
            entry.last_error = Some(error);
            self.pause(now, retry_after);
            return None;
        }
        let definite = !entry.maybe_appended;
        let error = match error {
            ClientError::Broker { code, message, retry_after, .. } => {
                ClientError::Broker { code, message, definite, retry_after }
            }
            error => error,
        };
        let entry = self.give_up(index, definite)?;
        Some((entry.payload, error))
    }

    /// A new producer id: everything that remains is stamped with it, from sequence 0.
    pub(super) fn handle_producer(&mut self, id: ProducerId, epoch: ProducerEpoch) {
        assert!(self.in_flight.is_empty(), "nothing is under way under the old producer id");
        let mut numbering = Numbering { id, epoch, next: Sequence(0) };
        for entry in &mut self.entries {
            let mut bytes = BytesMut::from(std::mem::take(&mut entry.bytes));
            stamp_producer(&mut bytes, numbering.take(entry.record_count));
            entry.bytes = bytes.freeze();
            // They are behind the gap: not in the log under the old id, not sent under the new one.
            entry.renumber = false;
            entry.maybe_appended = false;
        }
        self.numbering = Some(numbering);
        self.gap_at_end = false;
        self.backoff.reset();
    }

    /// There is no new producer id at present.
    pub(super) fn handle_no_producer(
        &mut self,
        error: ClientError,
        now: Instant,
    ) -> Option<GivenUp<T>> {
        let entry = self.entries.front_mut()?;
        if error.is_retriable() {
            let retry_after = error.retry_after();
            entry.last_error = Some(error);
            self.pause(now, retry_after);
            return None;
        }
        self.give_up(0, true).map(|entry| (entry.payload, error))
    }

    /// Takes the attempt out of flight; where its batch is, unless it was given up meanwhile.
    fn answered(&mut self, attempt: u64) -> Option<usize> {
        let place = self.in_flight.iter().position(|in_flight| *in_flight == attempt)?;
        self.in_flight.swap_remove(place);
        let index = self.entries.iter().position(|entry| entry.attempt == Some(attempt))?;
        self.entries[index].attempt = None;
        Some(index)
    }

    /// Before anything is sent again: let what is in flight be answered, and wait.
    fn pause(&mut self, now: Instant, at_least: Duration) {
        self.draining = true;
        // Several batches that fail together wait once.
        if self.resume_at.is_none() {
            self.resume_at = Some(now + at_least + self.backoff.pause());
        }
        self.resume_at = self.resume_at.max(Some(now + at_least));
    }

    /// Removes a batch. If it is certainly not in the log, what follows it comes behind a gap.
    fn give_up(&mut self, index: usize, definite: bool) -> Option<Entry<T>> {
        let entry = self.entries.remove(index)?;
        if self.numbering.is_some() && (definite || entry.renumber) {
            match self.entries.get_mut(index) {
                Some(next) => next.renumber = true,
                None => self.gap_at_end = true,
            }
            self.drain();
        }
        Some(entry)
    }
}

impl Numbering {
    fn take(&mut self, record_count: u32) -> ProducerStamp {
        let base_sequence = self.next;
        self.next = self.next.advance(record_count);
        ProducerStamp { id: self.id, epoch: self.epoch, base_sequence }
    }
}

#[cfg(test)]
mod tests;
