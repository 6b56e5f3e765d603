//! Gathers trains of datagrams into longer ones. quinn hands over ten datagrams at once; the kernel takes
//! more, and each call costs as much as several datagrams, here and where they are received. Pure: no
//! I/O.

use std::net::{IpAddr, SocketAddr};

use quinn::udp::{EcnCodepoint, Transmit};

/// The largest payload that IP carries, and so the longest train.
const TRAIN_BYTES_MAX: usize = 65_507;

/// Datagrams that quinn hands over at once, at most. A train of so many is likely to be followed by
/// another one.
const DATAGRAMS_AT_ONCE: usize = 10;

/// Datagrams of one size that were handed over and not sent yet; empty most of the time.
#[derive(Debug)]
pub(crate) struct Train {
    bytes: Vec<u8>,
    head: Option<Head>,
    /// Nothing more may follow: its last datagram is shorter, or it is as long as it may be.
    is_over: bool,
    datagrams_max: usize,
}

/// What all datagrams of a train have in common.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Head {
    destination: SocketAddr,
    src_ip: Option<IpAddr>,
    ecn: Option<EcnCodepoint>,
    datagram_bytes: usize,
}

/// What is to be done with datagrams that are handed over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Handed {
    /// They are kept: more are expected.
    Kept,
    /// They are the last of the train, which is to be sent now.
    Last,
    /// They do not belong to the train: it is to be sent, and then they are.
    Other,
}

impl Train {
    /// For a kernel that takes so many datagrams at once.
    pub(crate) fn new(datagrams_max: usize) -> Train {
        Train { bytes: Vec::new(), head: None, is_over: false, datagrams_max }
    }

    /// Takes datagrams, unless it says that they do not belong here.
    pub(crate) fn push(&mut self, transmit: &Transmit<'_>) -> Handed {
        // A single datagram ends a train, as far as it is not larger.
        let datagram_bytes = transmit.segment_size.unwrap_or(transmit.contents.len());
        let is_full = transmit.contents.len() == DATAGRAMS_AT_ONCE * datagram_bytes;
        let head = Head {
            destination: transmit.destination,
            src_ip: transmit.src_ip,
            ecn: transmit.ecn,
            datagram_bytes,
        };
        match self.head {
            Some(kept) => {
                let same = Head { datagram_bytes: kept.datagram_bytes, ..head };
                let is_short = transmit.contents.len() <= kept.datagram_bytes;
                let belongs = kept == head || kept == same && is_short;
                let bytes = self.bytes.len() + transmit.contents.len();
                if self.is_over || !belongs || self.bytes_max(kept.datagram_bytes) < bytes {
                    return Handed::Other;
                }
            }
            // Not worth keeping if nothing more would fit.
            None if is_full && 2 * transmit.contents.len() <= self.bytes_max(datagram_bytes) => {
                self.head = Some(head);
            }
            None => return Handed::Other,
        }
        self.bytes.extend_from_slice(transmit.contents);
        let room = self.bytes_max(datagram_bytes).saturating_sub(self.bytes.len());
        self.is_over = !is_full || room < DATAGRAMS_AT_ONCE * datagram_bytes;
        if self.is_over { Handed::Last } else { Handed::Kept }
    }

    /// Bytes that wait.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// What is to be sent; none if nothing waits.
    pub(crate) fn transmit(&self) -> Option<Transmit<'_>> {
        let head = self.head?;
        Some(Transmit {
            destination: head.destination,
            ecn: head.ecn,
            contents: &self.bytes,
            segment_size: Some(head.datagram_bytes),
            src_ip: head.src_ip,
        })
    }

    /// It was sent.
    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.head = None;
        self.is_over = false;
    }

    fn bytes_max(&self, datagram_bytes: usize) -> usize {
        (self.datagrams_max * datagram_bytes).min(TRAIN_BYTES_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BROKER: &str = "127.0.0.1:9192";

    fn push(train: &mut Train, to: &str, bytes: usize, each: usize) -> Handed {
        let contents = vec![7; bytes];
        train.push(&Transmit {
            destination: to.parse().unwrap(),
            ecn: None,
            contents: &contents,
            segment_size: (each < bytes).then_some(each),
            src_ip: None,
        })
    }

    #[test]
    fn full_trains_are_gathered_until_no_more_fits() {
        let mut train = Train::new(64);
        for _ in 0..3 {
            assert_eq!(push(&mut train, BROKER, 14_520, 1452), Handed::Kept);
        }
        assert_eq!(push(&mut train, BROKER, 14_520, 1452), Handed::Last);
        let transmit = train.transmit().unwrap();
        assert_eq!((transmit.contents.len(), transmit.segment_size), (4 * 14_520, Some(1452)));
        train.clear();
        assert!(train.transmit().is_none());
    }

    #[test]
    fn a_shorter_one_ends_the_train() {
        for (bytes, each) in [(2904, 1452), (3000, 1452), (100, 100)] {
            let mut train = Train::new(64);
            assert_eq!(push(&mut train, BROKER, 14_520, 1452), Handed::Kept);
            assert_eq!(push(&mut train, BROKER, bytes, each), Handed::Last);
            assert_eq!(train.len(), 14_520 + bytes);
            // Until it is sent, which the kernel may have no room for.
            assert_eq!(push(&mut train, BROKER, 14_520, 1452), Handed::Other);
        }
    }

    #[test]
    fn what_is_no_full_train_is_sent_at_once() {
        let mut train = Train::new(64);
        for (bytes, each) in [(100, 100), (1452, 1452), (2904, 1452), (14_000, 1452)] {
            assert_eq!(push(&mut train, BROKER, bytes, each), Handed::Other);
        }
        assert_eq!(train.len(), 0);
        let mut one_by_one = Train::new(1);
        assert_eq!(push(&mut one_by_one, BROKER, 14_520, 1452), Handed::Other);
    }

    #[test]
    fn other_datagrams_do_not_join() {
        let mut train = Train::new(64);
        assert_eq!(push(&mut train, BROKER, 14_520, 1452), Handed::Kept);
        assert_eq!(push(&mut train, "127.0.0.1:9193", 14_520, 1452), Handed::Other);
        assert_eq!(push(&mut train, BROKER, 12_000, 1200), Handed::Other);
        assert_eq!(push(&mut train, BROKER, 1472, 1472), Handed::Other, "larger than the others");
        assert_eq!(train.len(), 14_520);
        let mut large = Train::new(64);
        assert_eq!(push(&mut large, BROKER, 65_000, 6500), Handed::Other, "two are too many");
    }
}
