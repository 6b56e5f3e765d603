//! The load generator: what a client of the shipped executable sees, and what it can be held against.
//!
//! One run goes through all cases in every round, so that the references and the broker meet the
//! same minutes of the same host. A case during which others used the processors is thrown away,
//! counted and run again.
//!
//! ```text
//!   client core                        shard's core
//!   client thread, pacer  ── QUIC ──▶  broker's shard  ──▶  disk
//!   broker's control thread            or: the echo server, or: the device reference
//! ```
//!
//! In reading order: [`machine`] says where this runs, [`meter`] who used the processors,
//! [`device`], [`bare`], [`transfer`], [`echo`] and [`floor`] are the references, [`broker`] is the executable as a child process,
//! [`tls`], [`mtu`], [`wire`] and [`quic`] are what a client needs, [`client`] sends in closed and open loop, [`drive`] by quinn, [`tail`] and [`catch_up`]
//! consume, [`end_to_end`] does both, [`sdk`] is the Rust SDK in their place, [`cold`] is a broker that was just started, [`standing`] asks what it costs that something is
//! there, [`cases`] are the questions ([`shape`]: how large each is), [`mod@bench`] asks one with the [`producers`] that it needs, [`mod@disk`] counts what the disk had to do for it, [`sample`] is what came of it, [`rounds`] all in turn, [`goals`] hold them against one another, and [`report`] prints
//! the answers. [`runtimes`] asks two of
//! them of brokers on different runtimes, and [`polls`] some of brokers that also differ in what they do when idle.

pub mod machine;

pub mod meter;

pub mod device;

pub mod disk;

pub mod mtu;

pub mod quic;

pub mod echo;

pub mod bare;

pub mod transfer;

pub mod floor;

pub mod broker;

pub mod tls;

pub mod wire;

pub mod drive;

mod race;

pub mod client;

pub mod tail;

pub mod sdk;

pub mod catch_up;

pub mod end_to_end;

pub mod cold;

mod partitions;

mod crowd;

mod starts;

mod hop;

pub mod standing;

pub mod shape;

pub mod cases;

pub mod sample;

pub mod bench;

pub mod producers;

pub mod rounds;

pub mod goals;

pub mod report;

pub mod runtimes;

pub mod polls;
