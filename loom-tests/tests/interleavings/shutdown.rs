//! The hand-over at the end: a thread that serves another over two rings does what it was given,
//! answers, sees the close, and ends; nobody is left asleep.

use rustmq_loom_tests::{explore, thread};
use rustmq_sys::channel::channel;
use rustmq_sys::doorbell::Doorbell;

#[test]
fn a_serving_thread_ends_after_the_last_job() {
    explore(|| {
        let (here, there) = (Doorbell::new().expect("one"), Doorbell::new().expect("two"));
        let (to_here, to_there) = (here.bell(), there.bell());
        let (mut jobs, mut incoming) = channel(2);
        let (mut answers, mut answered) = channel(2);
        let serving = thread::spawn(move || {
            loop {
                there.take_pending();
                // Asked before the ring is emptied: what was pushed before the close is done.
                let closed = incoming.is_closed();
                while let Some(job) = incoming.try_pop() {
                    let _: u32 = job;
                    answers.try_push(job + 10).expect("room for every job");
                    to_here.ring();
                }
                if closed {
                    return;
                }
                there.park(None);
            }
        });
        jobs.try_push(1).expect("room for one");
        to_there.ring();
        drop(jobs);
        to_there.ring();
        let answer = loop {
            here.take_pending();
            if let Some(answer) = answered.try_pop() {
                break answer;
            }
            here.park(None);
        };
        assert_eq!(answer, 11);
        serving.join().expect("the serving thread ends");
        assert!(answered.is_closed());
    });
}

#[test]
fn a_sleeper_is_woken_by_the_close() {
    explore(|| {
        let doorbell = Doorbell::new().expect("a doorbell");
        let bell = doorbell.bell();
        let (sender, receiver) = channel::<u32>(1);
        let leaving = thread::spawn(move || {
            drop(sender);
            bell.ring();
        });
        loop {
            doorbell.take_pending();
            if receiver.is_closed() {
                break;
            }
            doorbell.park(None);
        }
        leaving.join().expect("the leaving thread ends");
    });
}

#[test]
fn what_is_in_the_ring_at_the_close_is_taken_before_the_end() {
    explore(|| {
        let doorbell = Doorbell::new().expect("a doorbell");
        let bell = doorbell.bell();
        let (mut sender, mut receiver) = channel(2);
        let leaving = thread::spawn(move || {
            sender.try_push(1u32).expect("room for one");
            sender.try_push(2).expect("room for two");
            drop(sender);
            // One ring for all of it.
            bell.ring();
        });
        let mut taken = Vec::new();
        loop {
            doorbell.take_pending();
            let closed = receiver.is_closed();
            receiver.pop_batch(&mut taken, 2);
            if closed {
                break;
            }
            doorbell.park(None);
        }
        assert_eq!(taken, [1, 2]);
        leaving.join().expect("the leaving thread ends");
    });
}

/// As a file thread whose runtime ends: nobody takes the answers any more.
#[test]
fn jobs_given_before_the_end_are_done_and_their_answers_dropped_once() {
    use std::sync::Arc;
    explore(|| {
        let job = Arc::new(());
        let there = Doorbell::new().expect("a doorbell");
        let to_there = there.bell();
        let (mut jobs, mut incoming) = channel(1);
        let (mut answers, answered) = channel(1);
        let serving = thread::spawn(move || {
            let mut done = 0;
            loop {
                there.take_pending();
                let closed = incoming.is_closed();
                while let Some(job) = incoming.try_pop() {
                    done += 1;
                    let pushed: Result<(), Arc<()>> = answers.try_push(job);
                    assert!(pushed.is_ok(), "room for every job");
                }
                if closed {
                    return done;
                }
                there.park(None);
            }
        });
        jobs.try_push(job.clone()).expect("room for one");
        drop(jobs);
        to_there.ring();
        assert_eq!(serving.join().expect("the serving thread ends"), 1);
        assert_eq!(Arc::strong_count(&job), 2, "the answer lies in its ring");
        drop(answered);
        assert_eq!(Arc::strong_count(&job), 1);
    });
}

#[test]
fn what_a_receiver_took_before_it_left_is_known_to_the_sender() {
    explore(|| {
        let (mut sender, mut receiver) = channel(2);
        sender.try_push(1u32).expect("room for one");
        sender.try_push(2).expect("room for two");
        let leaving = thread::spawn(move || {
            assert_eq!(receiver.try_pop(), Some(1));
        });
        while !sender.is_closed() {
            thread::yield_now();
        }
        assert_eq!(sender.free(), 1, "one was taken and one never will be");
        leaving.join().expect("the leaving thread ends");
    });
}

#[test]
fn a_receiver_that_leaves_is_seen_by_the_sender() {
    explore(|| {
        let (mut sender, receiver) = channel(1);
        let leaving = thread::spawn(move || drop(receiver));
        sender.try_push(1u32).expect("room for one");
        while !sender.is_closed() {
            thread::yield_now();
        }
        assert_eq!(sender.try_push(2), Err(2), "nobody made room");
        leaving.join().expect("the leaving thread ends");
    });
}
