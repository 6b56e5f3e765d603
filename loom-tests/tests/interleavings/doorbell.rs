//! No wake-up is lost. Under loom a lost one leaves the owner parked for ever, which is a deadlock.

use rustmq_loom_tests::{explore, thread};
use rustmq_sys::channel::channel;
use rustmq_sys::doorbell::Doorbell;

#[test]
fn an_owner_that_parks_finds_what_was_pushed() {
    explore(|| {
        let doorbell = Doorbell::new().expect("a doorbell");
        let bell = doorbell.bell();
        let (mut sender, mut receiver) = channel(2);
        let pushing = thread::spawn(move || {
            for value in [1u32, 2] {
                sender.try_push(value).expect("room for two");
                bell.ring();
            }
        });
        let mut sum = 0;
        while sum < 3 {
            doorbell.take_pending();
            while let Some(value) = receiver.try_pop() {
                sum += value;
            }
            if sum < 3 {
                doorbell.park(None);
            }
        }
        pushing.join().expect("the pushing thread ends");
    });
}

#[test]
fn two_that_ring_at_once_are_both_heard() {
    explore(|| {
        let doorbell = Doorbell::new().expect("a doorbell");
        let mut receivers = Vec::new();
        let mut pushing = Vec::new();
        for value in [1u32, 2] {
            let (mut sender, receiver) = channel(1);
            let bell = doorbell.bell();
            receivers.push(receiver);
            pushing.push(thread::spawn(move || {
                sender.try_push(value).expect("room for one");
                bell.ring();
            }));
        }
        let mut sum = 0;
        while sum < 3 {
            // Looks into the rings only when rung, as the owner of many rings does.
            if doorbell.take_pending() {
                sum += receivers.iter_mut().filter_map(|it| it.try_pop()).sum::<u32>();
            } else {
                doorbell.park(None);
            }
        }
        for thread in pushing {
            thread.join().expect("the pushing thread ends");
        }
    });
}

#[test]
fn a_ring_after_the_look_forbids_the_sleep_or_ends_it() {
    explore(|| {
        let doorbell = Doorbell::new().expect("a doorbell");
        let bell = doorbell.bell();
        let ringing = thread::spawn(move || bell.ring());
        if doorbell.prepare_sleep() {
            // The owner would wait for the descriptor now; parking waits for the same signal.
            doorbell.awake();
            doorbell.park(None);
        }
        ringing.join().expect("the ringing thread ends");
        assert!(doorbell.take_pending());
    });
}
