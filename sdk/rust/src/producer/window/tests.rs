use std::time::Duration;

use proptest::prelude::*;
use rustmq_protocol::{BatchBuilder, Offset, Record, TimestampMs, verify};

use super::*;

const MS: Duration = Duration::from_millis(1);
const FIRST: ProducerId = ProducerId(1);

fn window(in_flight_max: usize) -> Window<u32> {
    let backoff = Backoff::new(10 * MS, 10 * MS, 1);
    Window::new(in_flight_max, Some((FIRST, ProducerEpoch(0))), backoff)
}

/// Pushes batches of one record each, with these payloads.
fn push(window: &mut Window<u32>, payloads: impl IntoIterator<Item = u32>, expires_at: Instant) {
    for payload in payloads {
        let mut builder = BatchBuilder::new(1000);
        let value = payload.to_le_bytes();
        let record =
            Record { timestamp: TimestampMs(0), key: None, value: Some(&value), headers: &[] };
        builder.try_push(&record).unwrap();
        let bytes = builder.finish(window.stamp(1));
        window.push(bytes, 1, expires_at, payload);
    }
}

fn later(now: Instant) -> Instant {
    now + Duration::from_secs(100)
}

/// Sends what can be sent: attempt, producer id and sequence of each.
fn send(window: &mut Window<u32>, now: Instant) -> Vec<(u64, ProducerId, u32)> {
    let mut sent = Vec::new();
    while let WindowEffect::Send { attempt, bytes } = window.poll_effect(now) {
        let header = verify(&bytes, 1000).unwrap();
        sent.push((attempt, header.producer_id, header.base_sequence.0));
    }
    sent
}

fn sequences(sent: &[(u64, ProducerId, u32)]) -> Vec<u32> {
    sent.iter().map(|(_, _, sequence)| *sequence).collect()
}

fn refuse(
    window: &mut Window<u32>,
    attempt: u64,
    code: ErrorCode,
    now: Instant,
) -> Option<GivenUp<u32>> {
    window.handle_refused(attempt, code, String::new(), Duration::ZERO, now)
}

#[test]
fn batches_are_sent_in_order_up_to_the_limit() {
    let now = Instant::now();
    let mut window = window(2);
    push(&mut window, 0..3, later(now));
    let sent = send(&mut window, now);
    assert_eq!(sequences(&sent), [0, 1]);
    assert_eq!(window.handle_acked(sent[1].0), Some(1), "in any order");
    assert_eq!(sequences(&send(&mut window, now)), [], "a repeated 0 is known until there is a 2");
    assert_eq!(window.handle_acked(sent[0].0), Some(0));
    assert_eq!(window.handle_acked(sent[0].0), None, "an attempt is answered once");
    assert_eq!(sequences(&send(&mut window, now)), [2]);
}

#[test]
fn after_a_refusal_that_may_pass_all_are_sent_again_in_order_with_the_same_sequences() {
    let now = Instant::now();
    let mut window = window(3);
    push(&mut window, 0..4, later(now));
    let sent = send(&mut window, now);
    assert!(refuse(&mut window, sent[0].0, ErrorCode::Throttled, now).is_none());
    assert_eq!(send(&mut window, now), [], "two are still in flight");
    assert!(refuse(&mut window, sent[1].0, ErrorCode::OutOfOrderSequence, now).is_none());
    assert!(refuse(&mut window, sent[2].0, ErrorCode::OutOfOrderSequence, now).is_none());
    assert_eq!(send(&mut window, now), [], "the pause is not over");
    assert_eq!(sequences(&send(&mut window, now + 10 * MS)), [0, 1, 2]);
}

#[test]
fn a_throttled_batch_waits_as_long_as_the_broker_asked() {
    let now = Instant::now();
    let mut window = window(1);
    push(&mut window, 0..1, later(now));
    let attempt = send(&mut window, now)[0].0;
    let throttled = ErrorCode::Throttled;
    assert!(window.handle_refused(attempt, throttled, String::new(), 50 * MS, now).is_none());
    assert_eq!(send(&mut window, now + 50 * MS), [], "all others come back then, too");
    assert_eq!(sequences(&send(&mut window, now + 60 * MS)), [0]);
}

#[test]
fn a_lost_connection_resends_everything_and_only_then_is_the_fate_open() {
    let now = Instant::now();
    let mut window = window(2);
    push(&mut window, 0..3, later(now));
    for (attempt, ..) in send(&mut window, now) {
        window.handle_lost(attempt, ClientError::ConnectionLost, now);
    }
    let now = later(now);
    let fates: Vec<(u32, bool)> = std::iter::from_fn(|| window.poll_expired(now))
        .map(|(payload, error)| (payload, error.is_definite()))
        .collect();
    assert_eq!(fates, [(0, false), (1, false), (2, true)]);
    assert!(window.is_idle());
}

#[test]
fn when_no_answer_comes_late_answers_are_not_taken_for_those_of_the_next_attempt() {
    let now = Instant::now();
    let mut window = window(2);
    push(&mut window, 0..2, later(now));
    let first = send(&mut window, now);
    window.handle_all_lost(&ClientError::RequestTimeout, now);
    let second = send(&mut window, now + 10 * MS);
    assert_eq!(sequences(&second), [0, 1]);
    assert!(refuse(&mut window, first[0].0, ErrorCode::RecordTooLarge, now).is_none());
    assert_eq!(window.handle_acked(second[0].0), Some(0));
}

#[test]
fn a_batch_refused_for_good_is_given_up_and_the_rest_gets_a_new_producer_id() {
    let now = Instant::now();
    let mut window = window(3);
    push(&mut window, 0..4, later(now));
    let sent = send(&mut window, now);
    let (payload, error) = refuse(&mut window, sent[0].0, ErrorCode::RecordTooLarge, now).unwrap();
    assert_eq!((payload, error.is_definite()), (0, true));
    assert_eq!(send(&mut window, now), [], "copies under the old id are under way");
    refuse(&mut window, sent[1].0, ErrorCode::OutOfOrderSequence, now);
    window.handle_lost(sent[2].0, ClientError::ConnectionLost, now);
    let now = now + 10 * MS;
    assert_eq!(window.poll_effect(now), WindowEffect::NewProducer);
    window.handle_producer(ProducerId(2), ProducerEpoch(0));
    let sent = send(&mut window, now);
    let ids: Vec<_> = sent.iter().map(|(_, id, _)| *id).collect();
    assert_eq!((ids, sequences(&sent)), (vec![ProducerId(2); 3], vec![0, 1, 2]));
    push(&mut window, 4..5, later(now));
    assert_eq!(window.handle_acked(sent[0].0), Some(1));
    assert_eq!(sequences(&send(&mut window, now)), [3]);
}

#[test]
fn a_gap_at_the_end_is_remembered_for_the_next_batch() {
    let now = Instant::now();
    let mut window = window(1);
    push(&mut window, 0..1, later(now));
    let sent = send(&mut window, now);
    assert!(refuse(&mut window, sent[0].0, ErrorCode::CorruptBatch, now).is_some());
    push(&mut window, 1..2, later(now));
    assert_eq!(window.poll_effect(now), WindowEffect::NewProducer);
    let error = ClientError::ConnectionLost;
    assert!(window.handle_no_producer(error, now).is_none());
    assert!(matches!(window.poll_effect(now), WindowEffect::Wait(Some(_))));
    let now = now + 10 * MS;
    assert_eq!(window.poll_effect(now), WindowEffect::NewProducer);
    window.handle_producer(ProducerId(2), ProducerEpoch(0));
    assert_eq!(sequences(&send(&mut window, now)), [0]);
}

#[test]
fn batches_before_a_gap_keep_their_id_and_those_behind_wait_for_them() {
    let now = Instant::now();
    let mut window = window(3);
    push(&mut window, 0..3, later(now));
    let sent = send(&mut window, now);
    window.handle_lost(sent[0].0, ClientError::ConnectionLost, now);
    assert!(refuse(&mut window, sent[1].0, ErrorCode::RecordTooLarge, now).is_some());
    refuse(&mut window, sent[2].0, ErrorCode::OutOfOrderSequence, now);
    let now = now + 10 * MS;
    let sent = send(&mut window, now);
    assert_eq!(sent.len(), 1);
    assert_eq!((sent[0].1, sent[0].2), (FIRST, 0), "it may be in the log under this id");
    assert_eq!(window.handle_acked(sent[0].0), Some(0));
    assert_eq!(window.poll_effect(now), WindowEffect::NewProducer);
}

#[test]
fn a_producer_that_the_broker_forgot_gets_a_new_id_unless_the_batch_may_be_in_the_log() {
    let now = Instant::now();
    let mut window = window(1);
    push(&mut window, 0..3, later(now));
    let sent = send(&mut window, now);
    window.handle_acked(sent[0].0).unwrap();
    let sent = send(&mut window, now);
    window.handle_lost(sent[0].0, ClientError::ConnectionLost, now);
    let now = now + 10 * MS;
    let sent = send(&mut window, now);
    let (payload, error) =
        refuse(&mut window, sent[0].0, ErrorCode::UnknownProducerId, now).unwrap();
    assert_eq!((payload, error.is_definite()), (1, false));
    let sent = send(&mut window, now);
    assert!(refuse(&mut window, sent[0].0, ErrorCode::UnknownProducerId, now).is_none());
    assert_eq!(window.poll_effect(now + 10 * MS), WindowEffect::NewProducer);
}

#[test]
fn after_a_batch_of_open_fate_the_broker_tells_whether_there_is_a_gap() {
    let now = Instant::now();
    let mut window = window(2);
    push(&mut window, 0..1, now + MS);
    push(&mut window, 1..2, later(now));
    let sent = send(&mut window, now);
    let now = now + MS;
    let (payload, error) = window.poll_expired(now).unwrap();
    assert_eq!((payload, error.is_definite()), (0, false));
    assert_eq!(window.in_flight_count(), 2, "it is still under way");
    refuse(&mut window, sent[1].0, ErrorCode::OutOfOrderSequence, now);
    window.handle_lost(sent[0].0, ClientError::ConnectionLost, now);
    assert_eq!(window.poll_effect(now + 10 * MS), WindowEffect::NewProducer);
}

#[test]
fn a_way_that_cannot_be_found_is_no_open_fate() {
    let now = Instant::now();
    let mut window = window(2);
    push(&mut window, 0..2, later(now));
    let WindowEffect::Send { attempt, .. } = window.poll_effect(now) else { panic!() };
    assert!(window.handle_unsent(attempt, ClientError::RequestTimeout, now).is_none());
    let WindowEffect::Send { attempt, .. } = window.poll_effect(now + 10 * MS) else { panic!() };
    let gone = ClientError::broker(ErrorCode::UnknownTopic, String::new());
    let (payload, error) = window.handle_unsent(attempt, gone, now).unwrap();
    assert_eq!((payload, error.is_definite()), (0, true));
}

#[test]
fn draining_holds_back_until_all_is_answered() {
    let now = Instant::now();
    let mut window = window(3);
    push(&mut window, 0..1, later(now));
    let sent = send(&mut window, now);
    window.drain();
    push(&mut window, 1..3, later(now));
    assert_eq!(send(&mut window, now), []);
    window.handle_acked(sent[0].0).unwrap();
    assert_eq!(sequences(&send(&mut window, now)), [1, 2]);
}

#[test]
fn without_a_producer_id_batches_carry_none_and_leave_no_gaps() {
    let now = Instant::now();
    let backoff = Backoff::new(10 * MS, 10 * MS, 1);
    let mut window = Window::new(2, None, backoff);
    push(&mut window, 0..3, later(now));
    let sent = send(&mut window, now);
    assert!(sent.iter().all(|(_, id, _)| *id == ProducerId::NONE));
    assert!(refuse(&mut window, sent[0].0, ErrorCode::RecordTooLarge, now).is_some());
    assert_eq!(send(&mut window, now).len(), 1);
}

#[test]
fn at_most_once_gives_up_what_may_have_arrived_and_sends_the_rest() {
    let now = Instant::now();
    let backoff = Backoff::new(10 * MS, 10 * MS, 1);
    let mut window = Window::new(3, None, backoff).at_most_once();
    push(&mut window, 0..4, later(now));
    let sent = send(&mut window, now);
    let (payload, error) = window.handle_lost(sent[0].0, ClientError::ConnectionLost, now).unwrap();
    assert_eq!((payload, error.is_definite()), (0, false));
    assert!(window.handle_unsent(sent[1].0, ClientError::ConnectionLost, now).is_none());
    let lost = window.handle_all_lost(&ClientError::RequestTimeout, now);
    assert!(matches!(lost[..], [(2, ClientError::RequestTimeout)]), "{lost:?}");
    let sent = send(&mut window, now + 10 * MS);
    let payloads = sent.iter().map(|(attempt, ..)| window.handle_acked(*attempt).unwrap());
    assert_eq!(payloads.collect::<Vec<_>>(), [1, 3]);
}

/// A partition of a broker that remembers producers, refuses at random and loses answers at random.
#[derive(Default)]
struct Broker {
    log: Vec<u32>,
    /// Producer id, sequence → offset.
    appended: Vec<(ProducerId, u32, Offset)>,
}

impl Broker {
    fn produce(&mut self, bytes: &[u8]) -> Result<Offset, ErrorCode> {
        let header = verify(bytes, 1000).unwrap();
        let (id, sequence) = (header.producer_id, header.base_sequence.0);
        if let Some((.., offset)) =
            self.appended.iter().find(|(known, at, _)| (*known, *at) == (id, sequence))
        {
            return Ok(*offset);
        }
        let next = self.appended.iter().filter(|(known, ..)| *known == id).count() as u32;
        if sequence != next {
            return Err(if next == 0 {
                ErrorCode::UnknownProducerId
            } else {
                ErrorCode::OutOfOrderSequence
            });
        }
        let offset = Offset(self.log.len() as u64);
        let value =
            rustmq_protocol::records(bytes).unwrap().next().unwrap().unwrap().value.unwrap();
        self.log.push(u32::from_le_bytes(value.try_into().unwrap()));
        self.appended.push((id, sequence, offset));
        Ok(offset)
    }
}

proptest! {
    #[test]
    fn every_batch_is_in_the_log_once_and_in_order_or_given_up_for_certain(
        faults in proptest::collection::vec(0u8..12, 0..200), in_flight_max in 1usize..5,
    ) {
        const BATCHES: u32 = 30;
        let mut now = Instant::now();
        let mut window = window(in_flight_max);
        push(&mut window, 0..BATCHES, now + Duration::from_secs(1_000_000));
        let mut broker = Broker::default();
        let mut faults = faults.into_iter();
        let (mut acked, mut given_up, mut ids) = (Vec::new(), Vec::new(), 2);
        // Requests on their way to the broker, in the order sent; they survive the loss of their
        // answers.
        let mut wire: VecDeque<(u64, Bytes)> = VecDeque::new();
        for _ in 0..10_000 {
            match window.poll_effect(now) {
                WindowEffect::Send { attempt, bytes } => {
                    wire.push_back((attempt, bytes));
                    continue;
                }
                WindowEffect::NewProducer => {
                    window.handle_producer(ProducerId(ids), ProducerEpoch(0));
                    ids += 1;
                    continue;
                }
                WindowEffect::Wait(_) => now += 10 * MS,
            }
            let Some((attempt, bytes)) = wire.pop_front() else {
                if window.is_idle() {
                    break;
                }
                continue;
            };
            let answer = match faults.next() {
                // The answer is lost, before or after the broker has worked on the request.
                Some(0) => None,
                Some(1) => { let _ = broker.produce(&bytes); None }
                Some(2) => Some(Err(ErrorCode::Throttled)),
                Some(3) => Some(Err(ErrorCode::Timeout)),
                Some(4) => Some(Err(ErrorCode::RecordTooLarge)),
                _ => Some(broker.produce(&bytes)),
            };
            let failed = match answer {
                None => { window.handle_lost(attempt, ClientError::ConnectionLost, now); None }
                Some(Ok(offset)) => {
                    if let Some(payload) = window.handle_acked(attempt) {
                        prop_assert_eq!(broker.log[offset.0 as usize], payload);
                        acked.push(payload);
                    }
                    None
                }
                Some(Err(code)) => refuse(&mut window, attempt, code, now),
            };
            given_up.extend(failed.map(|(payload, error)| (payload, error.is_definite())));
        }
        prop_assert!(window.is_idle(), "everything has its fate");
        prop_assert_eq!(acked.len() + given_up.len(), BATCHES as usize);
        prop_assert!(broker.log.is_sorted_by(|a, b| a < b), "once and in order: {:?}", broker.log);
        for payload in &acked {
            prop_assert!(broker.log.contains(payload));
        }
        for (payload, definite) in &given_up {
            let is_there = broker.log.contains(payload);
            prop_assert!(!definite || !is_there, "{} is certainly not there", payload);
        }
    }
}
