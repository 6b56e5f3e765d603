//! The modelled host: its disk forgets what was not flushed, its network loses what it is told to.
#![cfg(feature = "sim")]

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use rustmq_sys::buffer::{ALIGN, BufferPool};
use rustmq_sys::doorbell::Doorbell;
use rustmq_sys::sim::choice::Choice;
use rustmq_sys::sim::disk::{Disk, Survival};
use rustmq_sys::sim::host::Host;
use rustmq_sys::sim::network::Conditions;
use rustmq_sys::sim::{Faults, World};
use rustmq_sys::udp::{ReceiveBuffers, Transmit, UdpSocket};
use rustmq_sys::{clock, fs, runtime};

/// Gives turns, and moves the clock when nobody wants one, until the host has ended.
fn run<T>(world: &World, hosts: &mut [Host<T>]) -> T {
    loop {
        for host in hosts.iter_mut() {
            if let Some(output) = host.turn() {
                return output;
            }
        }
        if hosts.iter().all(|host| !host.wants_turn()) {
            let timers = hosts.iter().filter_map(Host::next_timer_ns);
            let next = timers.chain(world.next_event_ns()).min();
            world.advance_to(next.expect("somebody waits for something that comes"));
        }
    }
}

fn doorbell() -> Doorbell {
    Doorbell::new().expect("an eventfd")
}

#[test]
fn a_crash_keeps_what_was_flushed_and_forgets_the_rest() {
    let world = World::new(1, Disk::new(None, &["/"]));
    let _entered = world.enter();
    let pool = BufferPool::new(4 * ALIGN, ALIGN);
    let page = |byte: u8| {
        let mut buffer = pool.try_get(ALIGN).expect("the pool has room");
        buffer.fill(byte);
        buffer.freeze()
    };
    let (first, second) = (page(1), page(2));
    let life = async move {
        let file = fs::create("/file", 2 * ALIGN as u64).await.expect("created");
        fs::sync_dir("/").await.expect("the name is durable");
        file.write_durable(first, 0).await.expect("written");
        file.write(second, ALIGN as u64).await.expect("written");
    };
    run(&world, &mut [Host::new(doorbell(), life)]);
    let mut choice = Choice::new(7);
    for (survival, second) in [(Survival::Nothing, 0), (Survival::Everything, 2)] {
        let disk = world.disk().crash(&mut choice, survival);
        let [(_, file, bytes)] = &disk.files()[..] else { panic!("one file is there") };
        assert_eq!(*bytes, 2 * ALIGN as u64);
        assert_eq!(disk.bytes_at(*file, 0, ALIGN), [1; ALIGN]);
        assert_eq!(disk.bytes_at(*file, ALIGN as u64, ALIGN), [second; ALIGN]);
    }
}

#[test]
fn a_name_that_was_not_made_durable_is_forgotten() {
    let world = World::new(1, Disk::new(None, &["/"]));
    let _entered = world.enter();
    let life = async {
        let file = fs::create("/file", ALIGN as u64).await.expect("created");
        file.flush().await.expect("flushed");
    };
    run(&world, &mut [Host::new(doorbell(), life)]);
    let mut choice = Choice::new(7);
    assert!(world.disk().crash(&mut choice, Survival::Nothing).files().is_empty());
    assert_eq!(world.disk().crash(&mut choice, Survival::Everything).files().len(), 1);
}

#[test]
fn a_full_disk_makes_no_file_and_takes_what_is_written_to_those_it_has() {
    let world = World::new(1, Disk::new(Some(2 * ALIGN as u64), &["/"]));
    let _entered = world.enter();
    let pool = BufferPool::new(ALIGN, ALIGN);
    let life = async move {
        let file = fs::create("/file", 2 * ALIGN as u64).await.expect("there is space");
        let full = fs::create("/other", ALIGN as u64).await.expect_err("there is none left");
        assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
        let page = pool.try_get(ALIGN).expect("the pool has room").freeze();
        file.write_durable(page, 0).await.expect("written");
    };
    run(&world, &mut [Host::new(doorbell(), life)]);
    assert_eq!(world.happened().full, 1);
    world.disk().set_capacity(None);
    run(
        &world,
        &mut [Host::new(doorbell(), async {
            fs::create("/other", ALIGN as u64).await.expect("there is space again");
        })],
    );
}

#[test]
fn what_a_failed_flush_gave_up_never_comes_over_what_is_written_later() {
    let world = World::new(1, Disk::new(None, &["/"]));
    let _entered = world.enter();
    let pool = BufferPool::new(2 * ALIGN, ALIGN);
    let page = |byte: u8| {
        let mut buffer = pool.try_get(ALIGN).expect("the pool has room");
        buffer.fill(byte);
        buffer.freeze()
    };
    let (first, second) = (page(1), page(2));
    let at_fault = world.clone();
    let life = async move {
        let file = fs::create("/file", ALIGN as u64).await.expect("created");
        fs::sync_dir("/").await.expect("the name is durable");
        at_fault.set_faults(Faults { flush_error: 1, ..Faults::default() });
        file.write_durable(first, 0).await.expect_err("the flush fails");
        at_fault.set_faults(Faults::default());
        file.write_durable(second, 0).await.expect("written");
    };
    run(&world, &mut [Host::new(doorbell(), life)]);
    assert_eq!(world.happened().flush_errors, 1);
    for seed in 0..20 {
        let disk = world.disk().crash(&mut Choice::new(seed), Survival::Torn);
        let [(_, file, _)] = &disk.files()[..] else { panic!("one file is there") };
        assert_eq!(disk.bytes_at(*file, 0, ALIGN), [2; ALIGN]);
    }
}

/// Sends 100 datagrams from one host to another; how many arrived within a second.
fn arrived(conditions: Conditions) -> u32 {
    let world = World::new(3, Disk::new(None, &["/"]));
    let _entered = world.enter();
    world.network().set_conditions(conditions);
    let address = |port: u16| ([10, 0, 0, 1], port).into();
    let count = Rc::new(Cell::new(0));
    let receiver = {
        let (count, socket) = (Rc::clone(&count), UdpSocket::bind_modelled(address(1)));
        async move {
            let (socket, mut buffers) = (socket.expect("free"), ReceiveBuffers::new(1 << 20));
            loop {
                socket.readable().await;
                let taken = socket.recv_trains(&mut buffers, |meta, train| {
                    assert_eq!(meta.remote, ([10, 0, 0, 1], 2).into());
                    assert_eq!(&train[..], b"hello");
                    count.set(count.get() + 1);
                });
                taken.expect("a modelled socket does not fail");
            }
        }
    };
    let socket = UdpSocket::bind_modelled(address(2)).expect("free");
    let sender = async move {
        for _ in 0..100 {
            let transmit = Transmit {
                destination: ([10, 0, 0, 1], 1).into(),
                ecn: 0,
                contents: b"hello",
                segment_size: None,
                src_ip: None,
            };
            socket.try_send(&transmit).expect("a modelled socket does not fail");
        }
        let begun = clock::now();
        runtime::sleep(Duration::from_secs(1)).await;
        assert!(begun + Duration::from_secs(1) <= clock::now());
    };
    run(&world, &mut [Host::new(doorbell(), sender), Host::new(doorbell(), receiver)]);
    count.get()
}

#[test]
fn datagrams_arrive_unless_the_network_is_told_to_lose_or_repeat_them() {
    let conditions = |lost, twice| Conditions { delay_ns: (10_000, 90_000), lost, twice };
    assert_eq!(arrived(conditions(0, 0)), 100);
    assert_eq!(arrived(conditions(1_000, 0)), 0);
    assert_eq!(arrived(conditions(0, 1_000)), 200);
    let some = arrived(conditions(500, 0));
    assert!((20..80).contains(&some), "{some} of 100");
    assert_eq!(some, arrived(conditions(500, 0)), "the same seed, the same fate");
}
