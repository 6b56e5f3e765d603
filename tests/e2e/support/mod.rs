//! What the tests stand on.
//!
//! - [`broker`]: the executable, running.
//! - [`cli`]: the executable as a command that ends.
//! - [`client`]: an SDK client, and the runtime it needs.
//! - [`raw`]: a QUIC client that sends what no SDK would.
//! - [`subscriber`]: what such a client opens and is told.
//! - [`certificates`]: certificates that a broker has to refuse.
//! - [`history`]: what clients did and were told, for the checker.
//! - [`load`]: a producer that lives through kills.
//! - [`follower`]: a consumer that does.
//! - [`reading`]: a log read to its end.
//! - [`hosts`]: two hosts and a cable.
//! - [`device`]: file systems of a test's own, and counters of block devices.
//! - [`without_flushes`]: the executable without them.
//! - [`machine`]: who may use the machine, and what it cannot do.
//! - [`random`]: moments and sizes from a seed that a failure prints.

pub(crate) mod broker;

pub(crate) mod cli;

pub(crate) mod client;

pub(crate) mod damage;

pub(crate) mod raw;

pub(crate) mod subscriber;

pub(crate) mod certificates;

pub(crate) mod history;

pub(crate) mod load;

pub(crate) mod follower;

pub(crate) mod reading;

pub(crate) mod hosts;

pub(crate) mod device;

pub(crate) mod without_flushes;

pub(crate) mod machine;

pub(crate) mod random;

mod ports;

pub(crate) mod process;
