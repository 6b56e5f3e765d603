//! Tasks and timers: who goes first, and for how long.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use rustmq_sys::clock;
use rustmq_sys::runtime::{self, Class, TaskPool, spawn};
use rustmq_sys::udp::{ReceiveBuffers, UdpSocket};

use super::datagrams::send;
use super::{file_of, folder, on_each, pool, write_block};

/// The longest that anything is waited for: a machine that is busy with other things takes a
/// thousandth of it.
const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn timers_fire_in_the_order_of_their_moments() {
    on_each(async || {
        let order = Rc::new(RefCell::new(Vec::new()));
        let start = clock::now();
        for milliseconds in [30u64, 10, 20, 0, 10] {
            let order = order.clone();
            spawn(Class::Foreground, async move {
                runtime::sleep_until(start + Duration::from_millis(milliseconds)).await;
                assert!(clock::now() >= start + Duration::from_millis(milliseconds));
                order.borrow_mut().push(milliseconds);
            });
        }
        // Dropped before it fires: no trace of it.
        {
            let mut never = pin!(runtime::sleep(Duration::from_millis(1)));
            poll_fn(|context| {
                assert!(never.as_mut().poll(context).is_pending());
                Poll::Ready(())
            })
            .await;
        }
        runtime::sleep(Duration::from_millis(50)).await;
        assert_eq!(*order.borrow(), [0, 10, 10, 20, 30]);
    });
}

#[test]
fn foreground_goes_first_and_background_is_not_starved() {
    on_each(async || {
        let (begun, mut in_order) = (Instant::now(), 0);
        while in_order < 5 {
            let order = Rc::new(RefCell::new(Vec::new()));
            for class in [Class::Background, Class::Fetch, Class::Foreground] {
                let order = order.clone();
                spawn(class, async move { order.borrow_mut().push(class) });
            }
            runtime::sleep(Duration::from_millis(1)).await;
            let order = order.borrow();
            match order[..] {
                [Class::Foreground, Class::Fetch, Class::Background] => in_order += 1,
                // Where others use this core, the slice may be over before the first task: then each
                // of the others has its one, and the foreground comes with the next turn.
                [Class::Fetch, Class::Background, Class::Foreground] => {}
                _ => panic!("they ran as {order:?}"),
            }
            assert!(begun.elapsed() < PATIENCE, "{in_order} times in the order of their classes");
        }

        // A hungry foreground leaves one turn in each round to the others.
        const TURNS: u32 = 300;
        let turns = Rc::new(Cell::new([0u32; 3]));
        for class in [Class::Background, Class::Fetch, Class::Foreground] {
            let turns = turns.clone();
            spawn(class, async move {
                while turns.get().iter().sum::<u32>() < TURNS {
                    while !runtime::need_preempt() {
                        std::hint::spin_loop();
                    }
                    let mut now = turns.get();
                    now[class as usize] += 1;
                    turns.set(now);
                    runtime::yield_now().await;
                }
            });
        }
        while turns.get().iter().sum::<u32>() < TURNS {
            runtime::sleep(Duration::from_millis(1)).await;
        }
        assert!(turns.get().into_iter().all(|turns| turns > 3), "{:?}", turns.get());
    });
}

#[test]
fn background_work_delays_the_foreground_by_slices_only() {
    on_each(async || {
        let stop = Rc::new(Cell::new(false));
        // When the foreground is due, and the slices that have begun since.
        let (due, slices) = (Rc::new(Cell::new(Instant::now())), Rc::new(Cell::new(0u32)));
        for _ in 0..4 {
            let (stop, due, slices) = (stop.clone(), due.clone(), slices.clone());
            spawn(Class::Background, async move {
                while !stop.get() {
                    if due.get() <= Instant::now() {
                        slices.set(slices.get() + 1);
                    }
                    while !runtime::need_preempt() {
                        std::hint::spin_loop();
                    }
                    runtime::yield_now().await;
                }
            });
        }
        let mut late: Vec<_> = Vec::new();
        for _ in 0..51 {
            due.set(Instant::now() + Duration::from_micros(300));
            slices.set(0);
            runtime::sleep_until(due.get()).await;
            late.push(slices.get());
        }
        stop.set(true);
        late.sort_unstable();
        // The median: that this thread was kept from running now and then says nothing. One of each
        // background task, and as many again to spare.
        assert!(late[25] <= 8, "{} slices began before the foreground went on", late[25]);
    });
}

#[test]
fn background_work_delays_news_by_turns_and_not_until_a_timer_of_the_runtime() {
    on_each(async || {
        let (stop, turns) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(0u32)));
        let (stopped, counted) = (stop.clone(), turns.clone());
        spawn(Class::Background, async move {
            while !stopped.get() {
                while !runtime::need_preempt() {
                    std::hint::spin_loop();
                }
                counted.set(counted.get() + 1);
                runtime::yield_now().await;
            }
        });
        // The median: that this thread was kept from running now and then says nothing.
        let median = |mut counts: Vec<u32>| {
            counts.sort_unstable();
            counts[counts.len() / 2]
        };

        let socket = UdpSocket::bind("127.0.0.1:0".parse().expect("an address"), 1 << 20);
        let socket = socket.expect("bound");
        let address = socket.local_addr().expect("has one");
        let mut buffers = ReceiveBuffers::new(1 << 20);
        let mut waited = Vec::new();
        for _ in 0..51 {
            while socket.recv_trains(&mut buffers, |_, _| ()).expect("works") > 0 {}
            let before = turns.get();
            send(&socket, address, b"hello", 5).await;
            socket.readable().await;
            waited.push(turns.get() - before);
        }
        // One to hand over, one to be told, and as many again to spare.
        let datagrams = median(waited);
        assert!(datagrams <= 4, "{datagrams} background turns before a datagram was seen");

        let (folder, pool) = (folder(), pool());
        let file = file_of(folder.path(), 1).await;
        let mut waited = Vec::new();
        for _ in 0..21 {
            let before = turns.get();
            write_block(&file, &pool, 0, 1).await;
            waited.push(turns.get() - before);
        }
        stop.set(true);
        // A tenth of a second is 2,000 turns; a disk takes far less.
        let writes = median(waited);
        assert!(writes < 1000, "{writes} background turns before a write was durable");
    });
}

#[test]
fn a_pooled_task_starts_at_once_and_its_memory_is_used_again() {
    on_each(async || {
        let order = Rc::new(RefCell::new(Vec::new()));
        let addresses = Rc::new(RefCell::new(Vec::new()));
        let pool = TaskPool::new(Class::Foreground);
        let task = |number: u32| {
            let (order, addresses) = (order.clone(), addresses.clone());
            async move {
                let here = number;
                addresses.borrow_mut().push((&raw const here).addr());
                order.borrow_mut().push((here, "first"));
                if number % 2 == 1 {
                    runtime::yield_now().await;
                    order.borrow_mut().push((here, "second"));
                }
            }
        };
        for number in 0..4 {
            pool.spawn(task(number));
            assert_eq!(order.borrow().last(), Some(&(number, "first")), "polled at once");
        }
        runtime::yield_now().await;
        assert_eq!(order.borrow()[4..], [(1, "second"), (3, "second")]);
        for number in 4..100 {
            pool.spawn(task(number));
            runtime::yield_now().await;
        }
        addresses.borrow_mut().sort_unstable();
        addresses.borrow_mut().dedup();
        assert!(addresses.borrow().len() <= 3, "{} places for 100 tasks", addresses.borrow().len());
    });
}

#[test]
fn a_pooled_task_may_spawn_on_its_own_pool_as_it_ends() {
    type Boxed = std::pin::Pin<Box<dyn Future<Output = ()>>>;
    struct AtEnd(TaskPool<Boxed>, Rc<Cell<u32>>);
    impl Drop for AtEnd {
        fn drop(&mut self) {
            if self.1.get() < 5 {
                self.1.set(self.1.get() + 1);
                let next = AtEnd(self.0.clone(), self.1.clone());
                self.0.spawn(Box::pin(async move {
                    let _next = next;
                    runtime::yield_now().await;
                }));
            }
        }
    }
    on_each(async || {
        let (pool, count) = (TaskPool::new(Class::Foreground), Rc::new(Cell::new(0)));
        drop(AtEnd(pool, count.clone()));
        let begun = Instant::now();
        while count.get() < 5 && begun.elapsed() < PATIENCE {
            runtime::yield_now().await;
        }
        // And no sixth.
        for _ in 0..10 {
            runtime::yield_now().await;
        }
        assert_eq!(count.get(), 5);
    });
}
