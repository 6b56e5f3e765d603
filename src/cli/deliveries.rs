//! Records on their way, answered in the order in which their partitions answer.

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::task::{Context, Poll};

/// Futures that complete in order within their partition, and in any order between partitions.
///
/// Only the oldest of each partition is polled: a poll costs one step for each partition, not one
/// for each record.
#[derive(Debug)]
pub(crate) struct Deliveries<F, T> {
    partitions: BTreeMap<u32, VecDeque<(F, T)>>,
    /// The partition that answered last: probably the rest of its batch is answered too.
    current: u32,
    count: usize,
}

impl<F: Future + Unpin, T> Deliveries<F, T> {
    /// Nothing on its way.
    pub(crate) fn new() -> Self {
        Self { partitions: BTreeMap::new(), current: 0, count: 0 }
    }

    /// One more on its way to a partition, with what to give back beside its outcome.
    pub(crate) fn push(&mut self, partition: u32, future: F, with: T) {
        self.partitions.entry(partition).or_default().push_back((future, with));
        self.count += 1;
    }

    /// How many are on their way.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// The next outcome; none if nothing is on its way. Nothing is lost if it is not awaited to its
    /// end.
    pub(crate) async fn next(&mut self) -> Option<(F::Output, T)> {
        std::future::poll_fn(|context| self.poll_next(context)).await
    }

    /// An outcome that is there already.
    pub(crate) async fn next_ready(&mut self) -> Option<(F::Output, T)> {
        let ready = |context: &mut Context<'_>| match self.poll_next(context) {
            Poll::Ready(next) => Poll::Ready(next),
            Poll::Pending => Poll::Ready(None),
        };
        std::future::poll_fn(ready).await
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<(F::Output, T)>> {
        if self.count == 0 {
            return Poll::Ready(None);
        }
        let mut ready = match self.partitions.get_mut(&self.current) {
            Some(queue) => pop_ready(queue, context),
            None => None,
        };
        if ready.is_none() {
            for (partition, queue) in &mut self.partitions {
                ready = pop_ready(queue, context);
                if ready.is_some() {
                    self.current = *partition;
                    break;
                }
            }
        }
        let Some(ready) = ready else { return Poll::Pending };
        self.count -= 1;
        Poll::Ready(Some(ready))
    }
}

fn pop_ready<F: Future + Unpin, T>(
    queue: &mut VecDeque<(F, T)>,
    context: &mut Context<'_>,
) -> Option<(F::Output, T)> {
    let (future, _) = queue.front_mut()?;
    let Poll::Ready(outcome) = Pin::new(future).poll(context) else { return None };
    let (_, with) = queue.pop_front()?;
    Some((outcome, with))
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn a_partition_that_does_not_answer_holds_up_no_other() {
        let mut deliveries = Deliveries::new();
        let (slow, waiting) = oneshot::channel::<()>();
        deliveries.push(0, waiting, "slow");
        for name in ["first", "second"] {
            let (answer, waiting) = oneshot::channel();
            answer.send(()).unwrap();
            deliveries.push(1, waiting, name);
        }
        assert_eq!(deliveries.next().await, Some((Ok(()), "first")));
        assert_eq!(deliveries.next_ready().await, Some((Ok(()), "second")));
        assert_eq!(deliveries.next_ready().await, None);
        assert_eq!(deliveries.count(), 1);
        let answer = async { slow.send(()).unwrap() };
        let (next, ()) = tokio::join!(deliveries.next(), answer);
        assert_eq!(next, Some((Ok(()), "slow")));
        assert_eq!(deliveries.next().await, None);
    }

    #[tokio::test]
    async fn within_a_partition_the_order_stays() {
        let mut deliveries = Deliveries::new();
        let (first, waiting) = oneshot::channel::<()>();
        deliveries.push(7, waiting, 1);
        let (second, waiting) = oneshot::channel::<()>();
        deliveries.push(7, waiting, 2);
        second.send(()).unwrap();
        assert_eq!(deliveries.next_ready().await, None);
        first.send(()).unwrap();
        assert_eq!(deliveries.next().await.map(|(_, with)| with), Some(1));
        assert_eq!(deliveries.next().await.map(|(_, with)| with), Some(2));
    }
}
