//! The bounds of one shard's shell.

use rustmq_protocol::limits::FRAME_BYTES_MAX;

/// Requests of one connection that may be unanswered. Past it the shard stops reading the
/// connection's streams, so the peer's flow control pushes back.
pub const REQUESTS_IN_FLIGHT_MAX: usize = 1024;

/// Bytes of unfinished frames that one connection may hold. Past it only the stream that has the
/// most goes on, so one frame of the largest size always completes.
pub const ASSEMBLING_BYTES_MAX: usize = 4 << 20;

/// Bytes of answers that may wait for a slow connection before its requests are no longer read.
pub const UNSENT_BYTES_MAX: usize = 1 << 20;

/// Transmits (each up to 64 datagrams) of one connection in a row before the next one's turn.
pub const TRANSMITS_PER_TURN_MAX: usize = 8;

/// Trains of datagrams read from one socket before what arrived is worked on.
pub const RECEIVES_PER_TURN_MAX: usize = 4;

/// Connections in their handshake at once. Past it peers must prove their address (Retry).
pub const HANDSHAKES_MAX: usize = 256;

/// Handshakes at once past which first packets are ignored: each costs a shard about 124 µs.
pub const HANDSHAKES_IGNORE: usize = 1024;

/// The largest UDP payload that IP carries; a GSO send must stay below it.
pub const UDP_PAYLOAD_BYTES_MAX: usize = 65_507;

/// Messages in the ring from one thread of the process to another.
pub const MESH_RING_MESSAGES: usize = 1024;

/// Requests forwarded by one shard and not yet answered. Past it a request is `THROTTLED`.
pub const FORWARDED_MAX: usize = 16 * 1024;

/// The longest that a forwarded fetch waits for records: it holds back its client's other answers.
/// Its own answer tells the client where to wait longer.
pub const FORWARDED_WAIT_MS_MAX: u32 = 100;

/// How often requests that wait for a flush look at the clock.
pub const EXPIRE_INTERVAL_MS: u64 = 100;

/// A write or flush that takes longer is a disk that hangs: it is said, and `/readyz` says no. 10 s:
/// hundreds of times the slowest flush of a disk that works, and below the time after which kernels
/// themselves complain.
pub const FLUSH_STALL_MS: u64 = 10_000;

/// At a drain, how often a shard looks whether all its answers have left, and for how long at most.
pub const LINGER_MS: u64 = 10;
/// See [`LINGER_MS`].
pub const LINGER_MS_MAX: u64 = 2000;

/// How long a shard keeps its sockets after it said goodbye, so that peers hear it.
pub const GOODBYE_MS: u64 = 100;

/// Times that a read is planned anew because the segment under it was recycled meanwhile.
pub const READ_RETRIES_MAX: usize = 3;

/// Bytes written at once while a new segment is zeroed, so that flushes slip in between.
pub const ZERO_CHUNK_BYTES: usize = 1 << 20;

/// Pause between two such writes when others use the device.
pub const ZERO_PAUSE_MS: u64 = 1;

const _: () = assert!(ASSEMBLING_BYTES_MAX < FRAME_BYTES_MAX);
const _: () = assert!(HANDSHAKES_MAX < HANDSHAKES_IGNORE);
