//! Everything that is unsafe and everything that asks the operating system for something.
//!
//! This crate moves bytes: between threads (SPSC rings and doorbells), to and from disks (`O_DIRECT`
//! files), to and from the network (UDP trains), and it runs the futures of one core on one thread.
//! It never decides anything about records, knows no broker words, takes no locks that another core
//! may hold, and keeps no thread of its own except the file threads a runtime starts for calls that
//! block. A [`runtime`] runs on the one core it is pinned to; buffers, rings and bells may cross.
//!
//! In reading order, which is the path of a datagram to the disk:
//!
//! | module | holds |
//! |---|---|
//! | [`buffer`] | aligned memory of a fixed budget, shared by reference once written |
//! | [`channel`] | bounded single-producer single-consumer ring between two threads |
//! | [`doorbell`] | wakes the sleeping owner of rings |
//! | [`clock`] | the one clock: read once a turn |
//! | [`cpu`] | which cores there are, pinning |
//! | [`runtime`] | executor of one thread over io_uring, epoll or, with its feature, glommio |
//! | [`mod@file`] and [`fs`] | durable writes, reads, and the calls on names |
//! | [`udp`] | datagram trains in and out |
//! | [`sequential`] | a file read to its end, outside of any runtime |
//! | [`alloc`] | who asks for memory, counted for tests |
//! | [`lock`], [`random`], [`probe`] | directory lock, random bytes, facts about the host |
//! | `sim` | a modelled host instead of a real one, for deterministic simulation |
#![allow(
    unsafe_code,
    reason = "the one crate of the workspace that talks to the kernel and shares memory by hand"
)]

pub(crate) mod sync;

#[cfg(not(loom))]
pub mod alloc;
#[cfg(not(loom))]
pub mod buffer;
pub mod channel;
#[cfg(not(loom))]
pub mod clock;
#[cfg(not(loom))]
pub mod cpu;
pub mod doorbell;
#[cfg(not(loom))]
pub mod file;
#[cfg(not(loom))]
pub mod fs;
#[cfg(not(loom))]
pub mod lock;
#[cfg(not(loom))]
pub mod probe;
#[cfg(not(loom))]
pub mod random;
#[cfg(not(loom))]
pub mod runtime;
#[cfg(not(loom))]
pub mod sequential;
#[cfg(all(feature = "sim", not(loom)))]
pub mod sim;
#[cfg(not(loom))]
pub mod udp;
