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
