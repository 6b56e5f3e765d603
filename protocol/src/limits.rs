//! Every bound of the protocol. What a broker is configured with may be lower, never higher.

/// Bytes of the header before every request and response.
pub const FRAME_HEADER_BYTES: usize = 16;

/// Bytes of the header of a record batch.
pub const BATCH_HEADER_BYTES: usize = 64;

/// Bytes of key, value and headers of one record that a topic takes unless it is configured
/// otherwise. 1 MiB: a record of that size still leaves a broker within a millisecond. A larger
/// record is refused with `RECORD_TOO_LARGE`.
pub const RECORD_BYTES_DEFAULT: usize = 1 << 20;

/// Bytes of key, value and headers of one record that any topic may be configured to take. 16 MiB:
/// a batch must fit into one WAL block and one frame. A larger record is refused with
/// `RECORD_TOO_LARGE`.
pub const RECORD_BYTES_MAX: usize = 16 << 20;

/// Bytes of one record batch, header included: one record of the largest size with everything that
/// surrounds it. A larger batch is refused with `BATCH_TOO_LARGE`.
pub const BATCH_BYTES_MAX: usize = RECORD_BYTES_MAX + (64 << 10);

/// Bytes of one frame, header included: one batch of the largest size with the head of its request
/// or response. The length of a larger frame is not believed: the peer gets `FRAME_TOO_LARGE` and
/// the connection is closed.
pub const FRAME_BYTES_MAX: usize = BATCH_BYTES_MAX + (64 << 10);

/// Records in one batch. 65,536: bounds what one request can make a broker walk through. A builder
/// reports that it is full; a batch that declares more is refused with `CORRUPT_BATCH`.
pub const RECORDS_PER_BATCH_MAX: u32 = 1 << 16;

/// Headers of one record. 1,024: far more than tracing and routing need, and their lengths fit into
/// the space that [`BATCH_BYTES_MAX`] leaves beside the largest record. More are refused as a
/// malformed record.
pub const HEADERS_PER_RECORD_MAX: u32 = 1024;

/// Bytes of a topic name: it is used as part of file and object names with a suffix, and those end
/// at 255. A longer one is refused with `INVALID_TOPIC_NAME`.
pub const TOPIC_NAME_BYTES_MAX: usize = 249;

/// Partitions of one topic. 10,000: its metadata is carried whole in one response. More are refused
/// with `INVALID_PARTITION_COUNT`.
pub const PARTITIONS_PER_TOPIC_MAX: u32 = 10_000;

/// Topics named in one request. A request that names more is malformed; a client splits it.
pub const TOPICS_PER_REQUEST_MAX: u32 = 1024;

/// Topics listed in one response. 50,000 names of the greatest length fit into one frame; a broker
/// with more answers `LIMIT_EXCEEDED` and is asked by name.
pub const TOPICS_PER_RESPONSE_MAX: u32 = 50_000;

/// Brokers in one metadata response, and so in one cluster.
pub const BROKERS_MAX: u32 = 1024;

/// Shards of one broker: more than any host has cores. A broker with more cores leaves the rest
/// unused.
pub const SHARDS_PER_BROKER_MAX: u16 = 1024;

/// Configuration entries of one topic. A request with more is malformed.
pub const CONFIG_ENTRIES_MAX: u32 = 64;

/// Bytes of any other text on the wire: host, client name, configuration key or value, error
/// message. 4 KiB: enough for a sentence and any host name. A longer one is malformed; error
/// messages are cut to it.
pub const STRING_BYTES_MAX: usize = 4096;

/// Batches that one producer may have in flight to one partition; announced in `Hello`, and the
/// number of batches per producer that a broker remembers to recognise duplicates. A producer waits
/// at the limit.
pub const PRODUCER_BATCHES_IN_FLIGHT_MAX: u32 = 8;

/// Milliseconds that a fetch may wait for records. One minute: longer looks like a dead peer to
/// what lies in between. A longer wait is cut to it.
pub const FETCH_WAIT_MS_MAX: u32 = 60_000;

/// The longest pause that a response with `THROTTLED` asks for: 10 s. Whatever there is too much of
/// has changed by then.
pub const RETRY_AFTER_MS_MAX: u32 = 10_000;

/// Bytes of batches that one fetch may ask for; more is cut to it. One batch is always returned
/// whole.
pub const FETCH_BYTES_MAX: usize = RECORD_BYTES_MAX;

/// Bytes of credit that one subscription may have. 1 GiB: no client has to ask again while there is
/// still something on its way. A grant beyond it is refused with `LIMIT_EXCEEDED`, and nothing of it
/// counts.
pub const CREDIT_BYTES_MAX: u32 = 1 << 30;

/// Bidirectional streams of one connection. 64: a partition keeps to one stream, so this is how
/// many partitions of one client cannot hold one another up. QUIC flow control makes a client wait
/// at the limit.
pub const STREAMS_PER_CONNECTION_MAX: u32 = 64;

/// Bytes that the encoding adds to one record of the greatest number of headers: fixed fields and
/// lengths, five bytes each at most, ten for the timestamp.
const RECORD_OVERHEAD_BYTES_MAX: usize =
    5 + 1 + 10 + 5 + 5 + 5 + 5 + 10 * HEADERS_PER_RECORD_MAX as usize;

// The limits agree: a record fits into a batch, a batch into a frame, and lengths into their
// fields.
const _: () = assert!(RECORD_BYTES_DEFAULT <= RECORD_BYTES_MAX);
const _: () =
    assert!(BATCH_HEADER_BYTES + RECORD_OVERHEAD_BYTES_MAX + RECORD_BYTES_MAX <= BATCH_BYTES_MAX);
const _: () = assert!(FRAME_HEADER_BYTES + 64 + BATCH_BYTES_MAX <= FRAME_BYTES_MAX);
const _: () = assert!(FETCH_BYTES_MAX <= BATCH_BYTES_MAX);
const _: () = assert!(FRAME_BYTES_MAX < i32::MAX as usize);
const _: () = assert!(STRING_BYTES_MAX < u16::MAX as usize);
const _: () = assert!(TOPIC_NAME_BYTES_MAX < STRING_BYTES_MAX);
const _: () = assert!(
    TOPICS_PER_RESPONSE_MAX as usize * (2 + TOPIC_NAME_BYTES_MAX + 16 + 4) + 1024
        <= FRAME_BYTES_MAX
);
