//! How far a partition may be read ahead of the consumer.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use tokio::sync::Notify;

/// Bytes of one partition that are here and not read, or that the broker may send: shared by the
/// task that reads ahead and by what it has delivered.
///
/// Room is made when half of it is free, so that a broker is told once in many answers.
#[derive(Debug)]
pub(super) struct Ahead {
    /// Below zero while less is left unread than was sent beyond what was allowed.
    outstanding: AtomicI64,
    bytes_max: i64,
    /// Half of it has become free.
    freed: Notify,
}

/// Batches that are here and not read. Dropped when they are.
#[derive(Debug)]
pub(super) struct Unread {
    ahead: Arc<Ahead>,
    bytes: i64,
}

/// What one subscription may still be sent. Dropped with it: what did not come, will not.
#[derive(Debug)]
pub(super) struct Granted {
    ahead: Arc<Ahead>,
    /// Below zero by as much as the last answer was larger than what was left.
    bytes: i64,
}

impl Ahead {
    /// Up to so many bytes, give or take a batch.
    pub(super) fn new(bytes_max: u32) -> Arc<Ahead> {
        let bytes_max = i64::from(bytes_max);
        Arc::new(Ahead { outstanding: AtomicI64::new(0), bytes_max, freed: Notify::new() })
    }

    /// Waits until half of the room is free.
    pub(super) async fn half_free(&self) {
        // A permit of an earlier time wakes up for nothing.
        while self.bytes_max / 2 < self.outstanding.load(Ordering::Acquire) {
            self.freed.notified().await;
        }
    }

    /// So many bytes came without having been granted.
    pub(super) fn unread(self: &Arc<Ahead>, bytes: usize) -> Unread {
        let bytes = bytes as i64;
        self.outstanding.fetch_add(bytes, Ordering::AcqRel);
        Unread { ahead: Arc::clone(self), bytes }
    }

    fn give_back(&self, bytes: i64) {
        let before = self.outstanding.fetch_sub(bytes, Ordering::AcqRel);
        let half = self.bytes_max / 2;
        if half < before && before - bytes <= half {
            self.freed.notify_one();
        }
    }
}

impl Granted {
    /// Nothing yet.
    pub(super) fn new(ahead: &Arc<Ahead>) -> Granted {
        Granted { ahead: Arc::clone(ahead), bytes: 0 }
    }

    /// All that there is room for, to be granted now; may be nothing.
    pub(super) fn take_room(&mut self) -> u32 {
        let outstanding = &self.ahead.outstanding;
        let room = self.ahead.bytes_max - outstanding.load(Ordering::Acquire);
        // What was sent beyond a grant is granted afterwards, so room may be more than all there is.
        let room = u32::try_from(room.max(0)).unwrap_or(u32::MAX);
        outstanding.fetch_add(i64::from(room), Ordering::AcqRel);
        self.bytes += i64::from(room);
        room
    }

    /// So many of the bytes came.
    pub(super) fn arrived(&mut self, bytes: usize) -> Unread {
        let bytes = bytes as i64;
        self.bytes -= bytes;
        Unread { ahead: Arc::clone(&self.ahead), bytes }
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        self.ahead.give_back(self.bytes);
    }
}

impl Drop for Granted {
    fn drop(&mut self) {
        self.ahead.give_back(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_half_free(ahead: &Ahead) -> bool {
        ahead.outstanding.load(Ordering::Acquire) <= ahead.bytes_max / 2
    }

    #[test]
    fn what_is_granted_arrives_and_is_read_makes_room_again() {
        let ahead = Ahead::new(100);
        let mut granted = Granted::new(&ahead);
        assert_eq!((granted.take_room(), granted.take_room()), (100, 0));
        let (first, second) = (granted.arrived(40), granted.arrived(20));
        assert!(!is_half_free(&ahead));
        drop(first);
        assert!(!is_half_free(&ahead));
        drop(second);
        assert!(is_half_free(&ahead));
        assert_eq!(granted.take_room(), 60);
    }

    #[test]
    fn a_batch_beyond_the_grant_is_granted_once_it_is_read() {
        let ahead = Ahead::new(100);
        let mut granted = Granted::new(&ahead);
        assert_eq!(granted.take_room(), 100);
        let large = granted.arrived(1000);
        assert_eq!(granted.take_room(), 0, "it is not read");
        drop(large);
        assert_eq!(granted.take_room(), 1000, "900 of them make up for what came too much");
    }

    #[test]
    fn what_is_unread_of_one_subscription_is_not_granted_to_the_next() {
        let ahead = Ahead::new(100);
        let mut first = Granted::new(&ahead);
        first.take_room();
        let unread = first.arrived(70);
        drop(first);
        let mut second = Granted::new(&ahead);
        assert_eq!(second.take_room(), 30);
        drop(unread);
        assert_eq!(second.take_room(), 70);
        let fetched = ahead.unread(10);
        drop(second);
        assert!(is_half_free(&ahead));
        drop(fetched);
        assert_eq!(ahead.outstanding.load(Ordering::Acquire), 0);
    }
}
