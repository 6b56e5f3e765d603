//! What crossing to another core takes by itself: a ring and a doorbell there, and back.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use rustmq_sys::channel::{self, Receiver, Sender};
use rustmq_sys::cpu;
use rustmq_sys::doorbell::{Bell, Doorbell};

use super::drive::{Period, Tally};

/// Between two hops: both sides are asleep by then, as shards between requests that come one by one.
const PAUSE: Duration = Duration::from_micros(200);

/// A sleeper looks this often whether the other is still there.
const LOOK: Duration = Duration::from_millis(100);

/// One end.
struct End {
    doorbell: Doorbell,
    other: Bell,
    sender: Sender<u64>,
    receiver: Receiver<u64>,
}

impl End {
    fn send(&mut self, value: u64) -> Result<()> {
        self.sender.try_push(value).map_err(|_| anyhow!("the ring is full"))?;
        self.other.ring();
        Ok(())
    }

    fn receive(&mut self, asleep: bool) -> Option<u64> {
        loop {
            self.doorbell.take_pending();
            if let Some(value) = self.receiver.try_pop() {
                return Some(value);
            }
            match (asleep, self.receiver.is_closed()) {
                (_, true) => return None,
                (true, false) => self.doorbell.park(Some(LOOK)),
                (false, false) => std::hint::spin_loop(),
            }
        }
    }
}

/// Round trips between threads on two cores, one at a time. `asleep`: who waits sleeps on its doorbell;
/// otherwise it looks again and again.
pub(super) fn ping_pong(cores: [usize; 2], asleep: bool, period: Period) -> Result<Tally> {
    let (one, two) = (Doorbell::new()?, Doorbell::new()?);
    let (one_bell, two_bell) = (one.bell(), two.bell());
    let (there, here) = (channel::channel(8), channel::channel(8));
    let mut near = End { doorbell: one, other: two_bell, sender: there.0, receiver: here.1 };
    let mut far = End { doorbell: two, other: one_bell, sender: here.0, receiver: there.1 };
    thread::scope(|scope| {
        let echo = scope.spawn(move || {
            cpu::pin_current(cores[1])?;
            while let Some(value) = far.receive(asleep).filter(|value| *value != LAST) {
                far.send(value)?;
            }
            anyhow::Ok(())
        });
        let caller = scope.spawn(move || {
            cpu::pin_current(cores[0])?;
            let begin = Instant::now() + period.warm_up;
            let end = begin + period.measured;
            let mut tally = Tally { elapsed: period.measured, ..Tally::new() };
            loop {
                if asleep {
                    thread::sleep(PAUSE);
                }
                let sent = Instant::now();
                // A period so short that a busy machine lets nothing happen in it has one hop, too.
                if end <= sent && !tally.latency.is_empty() {
                    near.send(LAST)?;
                    return anyhow::Ok(tally);
                }
                near.send(tally.answers)?;
                let back = near.receive(asleep);
                anyhow::ensure!(back == Some(tally.answers), "{back:?} came back");
                match begin <= sent {
                    true => tally.record(sent.elapsed()),
                    false => tally.answers += 1,
                }
            }
        });
        let tally = caller.join().map_err(|_| anyhow!("the calling thread panicked"))?;
        echo.join().map_err(|_| anyhow!("the answering thread panicked"))??;
        tally
    })
}

/// Ends the one who answers.
const LAST: u64 = u64::MAX;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_hop_comes_back_whether_asleep_or_not() {
        let cores = cpu::available_cores();
        let (first, last) = (cores[0], cores[cores.len() - 1]);
        let measured = Duration::from_millis(20);
        for asleep in [true, false] {
            let period = Period { warm_up: Duration::ZERO, measured };
            let tally = ping_pong([first, last], asleep, period).unwrap();
            assert_eq!(tally.latency.len(), tally.answers);
            assert!(0 < tally.answers);
        }
    }
}
