//! The shipped executable, from outside: started, spoken to over QUIC, killed, started again.
//!
//! Every test starts real brokers on real files, on ports of their own, and takes what it knows
//! from what the executable prints, answers and stores. One program holds them all, so that the
//! executable and this are linked once and the tests share the cores. No test asserts how long
//! anything took; every wait has a bound, far above what is usual, at which it fails instead of
//! hanging.
//!
//! - `main_job`: a file in, a kill, the same file out.
//! - `kill`: killed at random moments under load; nothing acknowledged is lost, twice or moved.
//! - `flush`: the device was told to flush for every block that was acknowledged.
//! - `polling`: what a shard does when it has nothing to do.
//! - `elsewhere`: commands that have an address and certificates, and no data directory.
//! - `restart`: what a stop, clean or not, and a start keep.
//! - `shared_port`: every shard serves the first contact, and a client's address may change.
//! - `datagrams`: how large they get, by the profile of the network.
//! - `bad_client`, `bad_request`: peers and requests that are refused.
//! - `greedy`: small questions with large answers, padding, and streams that end in every way.
//! - `hostile`: clients that hold on to what they were given, and strangers without end.
//! - `flood`: floods from addresses of others, in network namespaces.
//! - `operators`: probes beside connections that are silent.
//! - `fetch`: what a fetch waits for, and what it does not.
//! - `subscribe`: batches as they come, for as long as there is credit.
//! - `read_ahead`: what the disk is asked for before a subscription is.
//! - `pressure`: more work than the broker can do.
//! - `bad_start`: surroundings in which a broker refuses to start, and says why.
//! - `bad_files`: files of a newer version.
//! - `corruption`: damage anywhere in the files of a broker that was killed.
//! - `wal_commands`: what a log holds, what is wrong with it, and saving what is left.
//! - `disk_faults`: disks that fail, hang or are slow; files deleted beneath a broker.
//! - `full`: no room in the log, none on the disk.
//! - `support`: what they stand on.

mod support;

mod main_job;

mod kill;

mod flush;

mod polling;

mod restart;

mod shared_port;

mod datagrams;

mod bad_client;

mod bad_request;

mod greedy;

mod hostile;

mod flood;

mod operators;

mod fetch;

mod subscribe;

mod read_ahead;

mod pressure;

mod bad_start;

mod bad_files;

mod corruption;

mod wal_commands;

mod disk_faults;

mod elsewhere;

mod full;
