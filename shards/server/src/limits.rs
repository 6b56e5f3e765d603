//! The bounds of one shard's shell.

use std::time::Duration;

use rustmq_protocol::limits::{FRAME_BYTES_MAX, PARTITIONS_PER_TOPIC_MAX, RETRY_AFTER_MS_MAX};

/// Requests of one connection that may be unanswered. Past it the shard stops reading the
/// connection's streams, so the peer's flow control pushes back.
pub const REQUESTS_IN_FLIGHT_MAX: usize = 1024;

/// What a request that is not answered is charged as, beside its bytes: its task, with a quarter for
/// its places in the runtime, in the list that it waits in and among the requests that are forwarded.
pub const REQUEST_BYTES: usize = 2048;

/// How large the task of a request may be.
pub const REQUEST_TASK_BYTES: usize = REQUEST_BYTES - REQUEST_BYTES / 4;

/// Subscriptions of one connection. 10,000: a client reads every partition of the largest topic
/// through one. Past it a Subscribe is refused with `LIMIT_EXCEEDED`.
pub const SUBSCRIPTIONS_PER_CONNECTION_MAX: usize = PARTITIONS_PER_TOPIC_MAX as usize;

/// What an open subscription is charged as: its own memory and its places in the lists of its session
/// and partition.
pub const SUBSCRIPTION_BYTES: usize = 256;

/// Open subscriptions have memory of their own beside that for requests: one part in so many of it,
/// by default room for 131,072. A client may hold half of what is free; past it a Subscribe is refused
/// with `LIMIT_EXCEEDED`, and the client fetches instead.
pub const SUBSCRIPTIONS_PART: u64 = 8;

/// Subscriptions that are served before others get on, unless their answers take longer than that.
pub const SUBSCRIPTIONS_PER_SLICE_MAX: usize = 16;

/// Bytes of unfinished frames that one connection may hold. Past it only the stream that has the
/// most goes on, so one frame of the largest size always completes.
pub const ASSEMBLING_BYTES_MAX: usize = 4 << 20;

/// Bytes that are read ahead at once for a subscription: as many as an answer of the clients that we
/// have, and one buffer of the memory for reading. It is charged as this, however little comes.
pub const READ_AHEAD_BYTES: usize = 1 << 20;

/// Memory of a shard for what is read ahead, within that for reading: a quarter of it. A client may
/// hold half of what is free; without it the disk is read when an answer is due.
pub const READ_AHEAD_BYTES_MAX: usize = 16 << 20;

/// Bytes of an unfinished frame that never wait for memory: a request other than a large batch.
pub const SMALL_FRAME_BYTES: usize = 4096;

/// Bytes of answers that may wait for a slow connection before its requests are no longer read.
pub const UNSENT_BYTES_MAX: usize = 1 << 20;

/// Transmits (each up to 64 datagrams) of one connection in a row before the next one's turn.
pub const TRANSMITS_PER_TURN_MAX: usize = 8;

/// Trains of datagrams read from one socket before what arrived is worked on.
pub const RECEIVES_PER_TURN_MAX: usize = 4;

/// Handshakes at once of peers that have not proved their address. Past it they must (Retry).
pub const HANDSHAKES_MAX: usize = 256;

/// Handshakes at once of one source that has proved its address; more are ignored. An eighth of all:
/// it takes eight networks to keep others out.
pub const HANDSHAKES_PER_SOURCE_MAX: usize = 128;

/// Handshakes at once past which first packets are ignored: each costs a shard about 124 µs.
pub const HANDSHAKES_IGNORE: usize = 1024;

/// While admitted peers have work, strangers (first packets and handshakes) get one part in so many
/// of the shard's time.
pub const STRANGERS_SHARE: u32 = 8;

/// The most of that time in one go: about sixteen handshakes.
pub const STRANGERS_CREDIT: Duration = Duration::from_millis(2);

/// Admitted peers have work if one of them sent or was sent something, beside its Hello and signs of
/// life, within this time: longer than it takes QUIC to send again what was lost in a flood.
pub const WORK_RECENT: Duration = Duration::from_secs(1);

/// Bytes of credit that every connection begins with; what it is given beyond is charged to a budget.
pub const CONNECTION_WINDOW_BYTES_MIN: u64 = 64 * 1024;

/// What a fetch may find, however little memory there is for answers: one batch of usual size.
pub const ANSWER_BYTES_MIN: usize = 64 * 1024;

/// The pause that a client is asked for when a request finds no place in memory: the time in which a
/// few large blocks are written.
pub const RETRY_AFTER_MEMORY_MS: u32 = 50;

/// The pause that a client is asked for when the log had no room for longer than it wanted to wait.
pub const RETRY_AFTER_ROOM_MS: u32 = 200;

/// How long the one connection that may finish its frame beyond its share keeps this right without
/// reading on.
pub const FINISH_PATIENCE: Duration = Duration::from_millis(100);

/// How long it keeps this right while the budget is used up and others wait for it; then it is closed.
/// A frame of the largest size takes as long at 4 MB/s.
pub const FINISH_TIMEOUT: Duration = Duration::from_secs(4);

/// A frame gets on if this much of it arrives within the time in which connections that do not get on
/// are closed. 16 KiB in 2 s is a modem's rate.
pub const PROGRESS_BYTES: usize = 16 * 1024;

/// How often connections that do not get on are looked for.
pub const WATCH_INTERVAL_MS: u64 = 500;

/// How many of them are looked at before others have their turn. To look at one that was silent takes
/// about half a microsecond, for memory that no cache has.
pub const WATCHED_AT_ONCE: usize = 64;

/// A connection that does not get on is closed after this time, instead of `network.stall_timeout_ms`,
/// when what it holds is needed.
pub const STALL_PRESSED_MS: u64 = 2000;

/// The largest UDP payload that IP carries; a GSO send must stay below it.
pub const UDP_PAYLOAD_BYTES_MAX: usize = 65_507;

/// Messages in the ring from one thread of the process to another.
pub const MESH_RING_MESSAGES: usize = 1024;

/// Datagrams that may wait in such a ring, of those that came to one shard and belong to another; more
/// are lost, as on a network. Half of the ring: the rest is for messages that are never lost.
pub const MESH_RING_DATAGRAMS: usize = MESH_RING_MESSAGES / 2;

/// Requests forwarded by one shard and not yet answered. Past it a request is `THROTTLED`.
pub const FORWARDED_MAX: usize = 16 * 1024;

/// The longest that a forwarded fetch waits for records: it holds back its client's other answers.
/// Its own answer tells the client where to wait longer.
pub const FORWARDED_WAIT_MS_MAX: u32 = 100;

/// After a look for room in a full log that found none, before the next: requests ask for one each.
pub const FULL_PAUSE_MS: u64 = 10;

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
const _: () = assert!(HANDSHAKES_PER_SOURCE_MAX < HANDSHAKES_IGNORE - HANDSHAKES_MAX);
const _: () = assert!(RETRY_AFTER_MEMORY_MS < RETRY_AFTER_ROOM_MS);
const _: () = assert!(RETRY_AFTER_ROOM_MS <= RETRY_AFTER_MS_MAX);
