//! Who may begin a handshake: the ladder accept → Retry → ignore, and how much of the shard's time
//! strangers get. Pure: it is told the time.
//!
//! ```text
//!   first packet ──> over the strangers' share of time? ──> dropped unread
//!        │
//!        ├─ no place for another connection ─────────────> refused
//!        ├─ too many handshakes, or of this address ─────> ignored
//!        ├─ address not proved, and many such ones ──────> asked to prove it (Retry)
//!        └─ else ────────────────────────────────────────> accepted, now or in a later turn
//! ```

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::limits::{
    HANDSHAKES_IGNORE, HANDSHAKES_MAX, HANDSHAKES_PER_SOURCE_MAX, STRANGERS_CREDIT,
    STRANGERS_SHARE, WORK_RECENT,
};

/// What is done with the first packet of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The handshake begins, now or in a later turn.
    Accept,
    /// The peer has to prove its address first.
    Retry,
    /// The peer is told that it cannot come in.
    Refuse,
    /// There is no answer.
    Ignore,
}

/// A handshake that was accepted and is not over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Handshake {
    source: Source,
    proved: bool,
}

/// The network that an address is counted for: one IPv4 address, or an IPv6 network of /64, which is
/// what one host is usually given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    V4([u8; 4]),
    V6([u8; 8]),
}

/// The handshakes of one shard, and the time that they may take from those who are in.
///
/// Only addresses that were proved are counted against their own limit: a peer that sends under
/// another's address uses up places of the unproved, which proved ones do not need.
#[derive(Debug)]
pub(crate) struct Admission {
    handshakes: usize,
    unproved: usize,
    by_source: BTreeMap<Source, usize>,
    /// Time that strangers may take at once, in nanoseconds; below zero they have overdrawn it.
    credit_ns: i64,
    credit_at: Instant,
    /// When those who are in last had work.
    worked_at: Option<Instant>,
}

impl Admission {
    /// Nobody is here yet.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            handshakes: 0,
            unproved: 0,
            by_source: BTreeMap::new(),
            credit_ns: STRANGERS_CREDIT.as_nanos() as i64,
            credit_at: now,
            worked_at: None,
        }
    }

    /// Somebody who is in sent or was sent something: strangers must not take the shard's time from
    /// them. Those who only show that they are alive are not worse off when they wait.
    pub(crate) fn handle_work(&mut self, now: Instant) {
        self.worked_at = Some(now);
    }

    /// A stranger took this much of the shard's time.
    pub(crate) fn spend(&mut self, time: Duration) {
        self.credit_ns -= i64::try_from(time.as_nanos()).unwrap_or(i64::MAX / 2);
    }

    /// May a stranger be looked after now? Always, while nobody else has work.
    pub(crate) fn has_time(&mut self, now: Instant) -> bool {
        let most = STRANGERS_CREDIT.as_nanos() as i64;
        let earned = now.saturating_duration_since(self.credit_at) / STRANGERS_SHARE;
        if !earned.is_zero() {
            let earned = i64::try_from(earned.as_nanos()).unwrap_or(most);
            // A debt is bounded, too: one slow handshake must not keep everybody out for long.
            self.credit_ns = self.credit_ns.max(-most).saturating_add(earned).min(most);
            self.credit_at = now;
        }
        let idle = self.worked_at.is_none_or(|at| at + WORK_RECENT < now);
        idle || 0 < self.credit_ns
    }

    /// May a handshake that has begun go on now? It may overdraw the strangers' time where no other may
    /// begin, or a flood of first packets would end all that are under way. By half of what debts are
    /// bounded to, as what is beyond that bound is forgiven.
    pub(crate) fn may_go_on(&mut self, now: Instant) -> bool {
        self.has_time(now) || -(STRANGERS_CREDIT.as_nanos() as i64 / 2) < self.credit_ns
    }

    /// When strangers that wait may be looked after again, if not now.
    pub(crate) fn next_time(&self, now: Instant) -> Instant {
        let missing = u64::try_from(-self.credit_ns).unwrap_or_default() + 1;
        now + Duration::from_nanos(missing) * STRANGERS_SHARE
    }

    /// What is done with a first packet from `source`.
    pub(crate) fn decide(&self, source: IpAddr, proved: bool, has_place: bool) -> Verdict {
        if !has_place {
            return Verdict::Refuse;
        }
        let of_source = self.by_source.get(&Source::from(source)).copied().unwrap_or_default();
        if HANDSHAKES_IGNORE <= self.handshakes || proved && HANDSHAKES_PER_SOURCE_MAX <= of_source
        {
            return Verdict::Ignore;
        }
        match !proved && HANDSHAKES_MAX <= self.unproved {
            true => Verdict::Retry,
            false => Verdict::Accept,
        }
    }

    /// A handshake was accepted. The caller gives the value back when it is over.
    pub(crate) fn begin(&mut self, source: IpAddr, proved: bool) -> Handshake {
        let handshake = Handshake { source: Source::from(source), proved };
        self.handshakes += 1;
        match proved {
            true => *self.by_source.entry(handshake.source).or_default() += 1,
            false => self.unproved += 1,
        }
        handshake
    }

    /// A handshake is over, well or not.
    pub(crate) fn end(&mut self, handshake: Handshake) {
        self.handshakes -= 1;
        if !handshake.proved {
            self.unproved -= 1;
            return;
        }
        if let Some(count) = self.by_source.get_mut(&handshake.source) {
            *count -= 1;
            if *count == 0 {
                self.by_source.remove(&handshake.source);
            }
        }
    }

    /// Handshakes that are not over.
    pub(crate) fn handshakes(&self) -> usize {
        self.handshakes
    }
}

impl From<IpAddr> for Source {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::V4(address.octets()),
            IpAddr::V6(address) => {
                let [a, b, c, d, e, f, g, h, ..] = address.octets();
                Self::V6([a, b, c, d, e, f, g, h])
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rustmq_sys::clock;

    use super::*;

    fn address(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    #[test]
    fn the_ladder_is_accept_then_retry_then_ignore() {
        let mut admission = Admission::new(clock::now());
        for number in 0..HANDSHAKES_MAX {
            let source = address((number % 200) as u8);
            assert_eq!(admission.decide(source, false, true), Verdict::Accept);
            admission.begin(source, false);
        }
        assert_eq!(admission.decide(address(1), false, true), Verdict::Retry);
        let mut proved = Vec::new();
        for number in HANDSHAKES_MAX..HANDSHAKES_IGNORE {
            let source = address((number % 200) as u8);
            assert_eq!(admission.decide(source, true, true), Verdict::Accept);
            proved.push(admission.begin(source, true));
        }
        assert_eq!(admission.decide(address(1), true, true), Verdict::Ignore);
        assert_eq!(admission.decide(address(1), false, true), Verdict::Ignore);
        proved.drain(..).for_each(|handshake| admission.end(handshake));
        assert_eq!(admission.decide(address(1), true, true), Verdict::Accept);
        assert_eq!(admission.decide(address(1), true, false), Verdict::Refuse);
        assert!(admission.by_source.is_empty(), "nothing is kept of those who are gone");
    }

    #[test]
    fn one_address_does_not_take_the_places_of_others() {
        let mut admission = Admission::new(clock::now());
        for _ in 0..HANDSHAKES_PER_SOURCE_MAX {
            admission.begin(address(1), true);
        }
        assert_eq!(admission.decide(address(1), true, true), Verdict::Ignore);
        assert_eq!(admission.decide(address(2), true, true), Verdict::Accept);
        // Who borrows an address does not lock its owner out.
        let mut admission = Admission::new(clock::now());
        for _ in 0..HANDSHAKES_MAX {
            admission.begin(address(1), false);
        }
        assert_eq!(admission.decide(address(1), true, true), Verdict::Accept);
    }

    #[test]
    fn ipv6_neighbours_are_one_source() {
        let one = Source::from("2001:db8:1:2::1".parse::<IpAddr>().unwrap());
        assert_eq!(one, Source::from("2001:db8:1:2:ffff::9".parse::<IpAddr>().unwrap()));
        assert_ne!(one, Source::from("2001:db8:1:3::1".parse::<IpAddr>().unwrap()));
        let mapped = Source::from("::ffff:10.0.0.1".parse::<IpAddr>().unwrap());
        assert_eq!(mapped, Source::from(address(1)));
    }

    #[test]
    fn strangers_get_their_share_of_a_busy_shard_and_all_of_an_idle_one() {
        let start = clock::now();
        let mut admission = Admission::new(start);
        admission.handle_work(start);
        admission.spend(STRANGERS_CREDIT);
        assert!(!admission.has_time(start), "used up");
        let mut now = start + WORK_RECENT * 2;
        assert!(admission.has_time(now), "nobody else has work");
        let mut spent = Duration::ZERO;
        let end = now + Duration::from_secs(10);
        while now < end {
            now += Duration::from_micros(50);
            admission.handle_work(now);
            if admission.has_time(now) {
                admission.spend(Duration::from_micros(124));
                spent += Duration::from_micros(124);
            }
        }
        let share = Duration::from_secs(10) / STRANGERS_SHARE;
        assert!(share * 9 / 10 < spent && spent < share * 11 / 10, "{spent:?} of {share:?}");
        let later = admission.next_time(now);
        admission.handle_work(later);
        assert!(admission.has_time(later));
    }

    #[test]
    fn a_handshake_under_way_goes_on_where_no_other_begins_and_not_without_end() {
        let start = clock::now();
        let mut admission = Admission::new(start);
        admission.handle_work(start);
        while admission.has_time(start) {
            admission.spend(Duration::from_micros(124));
        }
        assert!(admission.may_go_on(start), "the flood spends nothing more");
        let (mut now, mut spent) = (start, Duration::ZERO);
        let end = start + Duration::from_secs(10);
        while now < end {
            now += Duration::from_micros(50);
            admission.handle_work(now);
            if admission.may_go_on(now) {
                admission.spend(Duration::from_micros(500));
                spent += Duration::from_micros(500);
            }
        }
        let share = Duration::from_secs(10) / STRANGERS_SHARE;
        assert!(spent < share * 11 / 10, "{spent:?} of {share:?}");
    }
}
