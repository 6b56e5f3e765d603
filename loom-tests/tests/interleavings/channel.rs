//! The ring between two threads.

use std::collections::VecDeque;

use rustmq_loom_tests::{explore, thread};
use rustmq_sys::channel::channel;

#[test]
fn values_arrive_once_and_in_order_across_a_full_ring() {
    explore(|| {
        let (mut sender, mut receiver) = channel(2);
        let pushing = thread::spawn(move || {
            for mut value in 0..3u32 {
                while let Err(back) = sender.try_push(value) {
                    value = back;
                    thread::yield_now();
                }
            }
        });
        for expected in 0..3 {
            loop {
                match receiver.try_pop() {
                    Some(value) => {
                        assert_eq!(value, expected);
                        break;
                    }
                    None => thread::yield_now(),
                }
            }
        }
        assert!(receiver.is_empty());
        pushing.join().expect("the pushing thread ends");
    });
}

#[test]
fn batches_arrive_whole_and_in_order() {
    explore(|| {
        let (mut sender, mut receiver) = channel(2);
        let pushing = thread::spawn(move || {
            let mut values: VecDeque<u32> = (0..3).collect();
            while sender.push_batch(&mut values) == 0 || !values.is_empty() {
                if values.is_empty() {
                    break;
                }
                thread::yield_now();
            }
        });
        let mut out = Vec::new();
        while out.len() < 3 {
            if receiver.pop_batch(&mut out, 2) == 0 {
                thread::yield_now();
            }
        }
        assert_eq!(out, [0, 1, 2]);
        pushing.join().expect("the pushing thread ends");
    });
}

#[test]
fn a_ring_that_is_seen_not_empty_gives_a_value_and_one_with_room_takes_one() {
    explore(|| {
        let (mut sender, mut receiver) = channel(1);
        let pushing = thread::spawn(move || {
            sender.try_push(1u32).expect("room for one");
            while sender.free() == 0 {
                thread::yield_now();
            }
            sender.try_push(2).expect("there was room");
        });
        for expected in [1, 2] {
            while receiver.is_empty() {
                thread::yield_now();
            }
            assert_eq!(receiver.try_pop(), Some(expected));
        }
        pushing.join().expect("the pushing thread ends");
    });
}

#[test]
fn after_the_close_is_seen_everything_pushed_is_there() {
    explore(|| {
        let (mut sender, mut receiver) = channel(2);
        let pushing = thread::spawn(move || {
            sender.try_push(1u32).expect("room for one");
            sender.try_push(2u32).expect("room for two");
        });
        while !receiver.is_closed() {
            thread::yield_now();
        }
        assert_eq!(receiver.try_pop(), Some(1));
        assert_eq!(receiver.try_pop(), Some(2));
        assert_eq!(receiver.try_pop(), None);
        pushing.join().expect("the pushing thread ends");
    });
}

#[test]
fn what_nobody_popped_is_dropped_with_the_last_end() {
    use std::sync::Arc;
    explore(|| {
        let value = Arc::new(());
        let (mut sender, mut receiver) = channel(2);
        let (first, second) = (value.clone(), value.clone());
        let pushing = thread::spawn(move || {
            sender.try_push(first).expect("room for one");
            sender.try_push(second).expect("room for two");
        });
        let popped = receiver.try_pop();
        drop(receiver);
        pushing.join().expect("the pushing thread ends");
        drop(popped);
        assert_eq!(Arc::strong_count(&value), 1);
    });
}
