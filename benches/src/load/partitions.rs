//! One producer whose batches go to many partitions in turn.

use std::time::Instant;

use anyhow::Result;
use rustmq_protocol::CorrelationId;
use tokio::sync::Semaphore;

use super::drive::{InFlight, Period, Tally, read_answers};
use super::wire::{Link, ProduceFrame};

/// Keeps `window` requests in flight, each the next batch of the next of `frames`. The frames are of
/// different partitions; they are the producer's state and stay so for the next run.
pub(super) async fn rotate(
    link: Link,
    frames: &mut [ProduceFrame],
    window: usize,
    period: Period,
) -> Result<Tally> {
    let Link { mut sender, receiver } = link;
    let begin = Instant::now() + period.warm_up;
    let end = begin + period.measured;
    let places = Semaphore::new(window);
    let in_flight = InFlight::default();
    let write = async {
        let mut next = CorrelationId(0);
        loop {
            for frame in &mut *frames {
                places.acquire().await?.forget();
                let sent = Instant::now();
                if end <= sent {
                    return sender.finish();
                }
                // One stream has one row of numbers, whichever partition a request is for.
                next.0 = next.0.wrapping_add(1);
                let bytes = frame.next_batch_as(next);
                in_flight.lock().push_back((next, sent));
                sender.send(bytes).await?;
            }
        }
    };
    let read = read_answers(receiver, &places, &in_flight, begin);
    let ((), mut tally) = tokio::try_join!(write, read)?;
    tally.elapsed = period.measured;
    Ok(tally)
}
