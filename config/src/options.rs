//! The declarations: each option once, with its type, default, bounds and one sentence.

use std::net::IpAddr;
use std::path::PathBuf;

use crate::choice::{
    FlushPlan, FlushPolicy, LogFormat, LogLevel, MtuProfile, Poll, RuntimeBackend, WhenFull,
};
use crate::kind::{FromValue, Kind, Value};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

const HOUR_MS: u64 = 60 * 60 * 1_000;
const YEAR_MS: u64 = 365 * 24 * HOUR_MS;

/// Pages of the devices that a WAL writes without the page cache.
const BLOCK_ALIGN: u64 = 4 * KIB;

/// Shards that one broker runs at most. 64: larger hosts run more brokers.
pub const SHARDS_MAX: u16 = 64;

/// From the bootstrap port to the port of shard 0.
pub const SHARD_PORT_OFFSET: u16 = 100;

/// The largest port that leaves room for the ports of all shards above it.
const PORT_MAX: u64 = (u16::MAX - SHARD_PORT_OFFSET - (SHARDS_MAX - 1)) as u64;

/// Who must agree on the value of an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Each broker has its own.
    Broker,
    /// All brokers of a cluster have the same.
    Cluster,
    /// What a topic gets that is created without its own value.
    TopicDefault,
}

/// The declaration of one option.
#[derive(Clone, Copy, Debug)]
pub struct OptionSpec {
    /// The section, as in `[section]`.
    pub section: &'static str,
    /// The key in that section.
    pub key: &'static str,
    /// The default, as it would be written.
    pub default: &'static str,
    /// What it may be.
    pub kind: Kind,
    /// Who must agree on it.
    pub scope: Scope,
    /// Whether a running broker takes a new value; otherwise it waits for the next start.
    pub reloads: bool,
    /// What it is, in lines that begin with a blank.
    sentence: &'static [&'static str],
}

impl OptionSpec {
    /// `section.key`.
    pub fn name(&self) -> String {
        format!("{}.{}", self.section, self.key)
    }

    /// The environment variable that sets it.
    pub fn variable(&self) -> String {
        format!("RUSTMQ_{}_{}", self.section.to_uppercase(), self.key.to_uppercase())
    }

    /// What it is.
    pub fn sentence(&self) -> String {
        join(self.sentence)
    }
}

/// The declaration of one section.
#[derive(Clone, Copy, Debug)]
pub struct SectionSpec {
    /// Its name.
    pub name: &'static str,
    /// Its options in reading order.
    pub options: &'static [OptionSpec],
    sentence: &'static [&'static str],
}

impl SectionSpec {
    /// What its options are about.
    pub fn sentence(&self) -> String {
        join(self.sentence)
    }
}

fn join(lines: &[&str]) -> String {
    lines.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ")
}

macro_rules! options {
    ($(
        $(#[doc = $section_doc:literal])+
        $section:ident: $Section:ident {
            $(
                $(#[doc = $doc:literal])+
                $key:ident: $type:ty = $default:literal, $kind:expr, $scope:ident;
            )+
        }
    )+) => {
        /// The whole configuration of a broker, checked.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct BrokerConfig {
            $( $(#[doc = $section_doc])+ pub $section: $Section, )+
        }

        $(
            $(#[doc = $section_doc])+
            #[derive(Clone, Debug, PartialEq, Eq)]
            pub struct $Section {
                $( $(#[doc = $doc])+ pub $key: $type, )+
            }
        )+

        /// All options, by section, in reading order.
        pub const SECTIONS: &[SectionSpec] = &[
            $( SectionSpec {
                name: stringify!($section),
                sentence: &[$($section_doc),+],
                options: &[
                    $( OptionSpec {
                        section: stringify!($section),
                        key: stringify!($key),
                        default: $default,
                        kind: $kind,
                        scope: Scope::$scope,
                        reloads: false,
                        sentence: &[$($doc),+],
                    }, )+
                ],
            }, )+
        ];

        impl BrokerConfig {
            /// Takes each option's checked value, in the order of [`SECTIONS`].
            pub(crate) fn from_values<'a>(mut values: impl Iterator<Item = &'a Value>) -> Self {
                Self {
                    $( $section: $Section {
                        $( $key: take(&mut values), )+
                    }, )+
                }
            }
        }
    };
}

fn take<'a, T: FromValue>(values: &mut impl Iterator<Item = &'a Value>) -> T {
    let value = values.next().expect("every option has a value, at least its default");
    T::from_value(value).expect("the declaration's kind fits its type")
}

options! {
    /// What this broker is and where it is found.
    broker: Broker {
        /// Directory of everything that the broker stores; created when it is missing.
        data_dir: PathBuf = "./rustmq-data", Kind::Text { bytes_min: 1, bytes_max: 4096 }, Broker;
        /// Number of this broker in its cluster; never given to another one.
        id: u32 = "1", Kind::count(1, u32::MAX as u64 - 1), Broker;
        /// Shards to run, one pinned core each; 0 means one fewer than there are cores, and at
        /// least one.
        shards: u16 = "0", Kind::count(0, SHARDS_MAX as u64), Broker;
        /// Address on which clients are served.
        listen: IpAddr = "127.0.0.1", Kind::Address, Broker;
        /// UDP port of the first contact, which all shards serve; shard i has port + 100 + i besides.
        /// With 0 all of them are any free ports.
        port: u16 = "9092", Kind::count(0, PORT_MAX), Broker;
        /// Host name or address that clients are told to use; empty means the listen address.
        advertised_host: String = "", Kind::Text { bytes_min: 0, bytes_max: 253 }, Broker;
    }

    /// The interface for operators, on the loopback address only.
    admin: Admin {
        /// TCP port of probes and metrics; 0 means any free port.
        port: u16 = "9642", Kind::count(0, u16::MAX as u64), Broker;
    }

    /// How a shard talks to the operating system.
    runtime: Runtime {
        /// The interface: auto takes io_uring where the kernel allows it, otherwise epoll; glommio
        /// is for executables built with it (`cargo build --features glommio`).
        backend: RuntimeBackend = "auto", Kind::Choice(RuntimeBackend::WORDS), Broker;
        /// A shard with nothing to do: adaptive looks for news for up to 200 µs as long as that pays
        /// off, then sleeps, and where shards share cores sleeps at once; busy never sleeps.
        poll: Poll = "adaptive", Kind::Choice(Poll::WORDS), Broker;
    }

    /// QUIC connections. All limits are per shard or per connection.
    network: Network {
        /// Connections of one shard; at the limit new ones are refused.
        connections_max: u32 = "10000", Kind::count(1, 1_000_000), Broker;
        /// Bidirectional streams that a client may have open in one connection; it waits for more.
        streams_max: u32 = "64", Kind::count(1, 64), Broker;
        /// Silence after which a connection is closed. The Rust client shows that it is alive every 10 s.
        idle_timeout_ms: u64 = "30000", Kind::millis(100, 600_000), Broker;
        /// Time that a handshake may take before it is given up.
        handshake_timeout_ms: u64 = "5000", Kind::millis(100, 60_000), Broker;
        /// Handshakes that one shard begins before it looks after its other work again.
        handshakes_per_turn: u32 = "16", Kind::count(1, 1_024), Broker;
        /// Bytes that a client may send on one stream before the shard has read them.
        stream_window_bytes: u64 = "512KiB", Kind::bytes(64 * KIB, 64 * MIB), Broker;
        /// Bytes that a client may send on one connection before the shard has read them, once it
        /// uses the 64 KiB that each begins with.
        connection_window_bytes: u64 = "4MiB", Kind::bytes(64 * KIB, GIB), Broker;
        /// Memory of one shard for what its clients may send beyond those 64 KiB each.
        window_bytes_max: u64 = "256MiB", Kind::bytes(MIB, 64 * GIB), Broker;
        /// Memory of one shard for requests that are not answered; at the limit they are throttled.
        /// An eighth as much more is for open subscriptions.
        request_bytes_max: u64 = "256MiB", Kind::bytes(32 * MIB, 64 * GIB), Broker;
        /// Memory of one shard for answers that their clients have not acknowledged; a client that
        /// holds half of what is free waits.
        answer_bytes_max: u64 = "256MiB", Kind::bytes(32 * MIB, 64 * GIB), Broker;
        /// Time after which a client is disconnected that does not finish a request or does not read
        /// its answers; 2 s at most when the memory that it holds is needed.
        stall_timeout_ms: u64 = "60000", Kind::millis(100, 600_000), Broker;
        /// Bytes sent to one client and not yet acknowledged by it; more wait.
        send_window_bytes: u64 = "8MiB", Kind::bytes(64 * KIB, GIB), Broker;
        /// The network that clients come by, and with it the size of datagrams: internet begins with
        /// 1200 bytes and finds out whether 1452 pass, datacentre 1452 and 8952, loopback 1452 and
        /// 65507. Neither side sends more than the other's profile takes.
        mtu_profile: MtuProfile = "internet", Kind::Choice(MtuProfile::WORDS), Broker;
        /// Send and receive buffer asked of the kernel for each UDP socket; it may give less.
        socket_buffer_bytes: u64 = "4MiB", Kind::bytes(64 * KIB, 256 * MIB), Broker;
    }

    /// The write-ahead log of each shard: where records are stored.
    wal: Wal {
        /// Size of one segment file; a data directory that began with another does not start.
        segment_bytes: u64 = "64MiB", Kind::bytes(MIB, GIB).in_steps_of(BLOCK_ALIGN), Broker;
        /// Disk space of all WALs of the broker together, shared out evenly; room for at least 8
        /// segments in each.
        capacity_bytes: u64 = "10GiB", Kind::bytes(4 * MIB, 64 * TIB), Broker;
        /// When records reach stable storage: always before they are acknowledged, or at an
        /// interval, which loses acknowledged records when the host fails.
        flush: FlushPolicy = "always", Kind::Choice(FlushPolicy::WORDS), Broker;
        /// Longest time for which records stay unflushed with flush = "interval".
        flush_interval_ms: u64 = "100", Kind::millis(1, 60_000), Broker;
        /// How io_uring makes a block durable: by one write through the device's cache, or by a write
        /// and a linked flush. Both are as durable. The first needs fewer wake-ups and, for shards
        /// that are busy, Linux 6.12 and a core for each of them; `auto` looks.
        flush_plan: FlushPlan = "auto", Kind::Choice(FlushPlan::WORDS), Broker;
        /// What a full WAL does: refuse new records, or delete the oldest before their time.
        when_full: WhenFull = "refuse", Kind::Choice(WhenFull::WORDS), Broker;
        /// Size at which a block, the unit of one write and flush, takes no more batches; a larger
        /// batch gets a block of its own.
        block_bytes_max: u64 = "1MiB", Kind::bytes(64 * KIB, 16 * MIB).in_steps_of(BLOCK_ALIGN),
            Broker;
        /// Memory of one shard for blocks on their way to the disk; at the limit producers wait.
        buffer_bytes: u64 = "64MiB", Kind::bytes(MIB, 64 * GIB).in_steps_of(BLOCK_ALIGN), Broker;
    }

    /// What topics get that are created without values of their own.
    topics: Topics {
        /// Time for which records are kept.
        retention_ms: Option<u64> = "604800000", Kind::millis(1, i64::MAX as u64).or_no_limit(),
            TopicDefault;
        /// Bytes of records kept in each partition.
        retention_bytes: Option<u64> = "-1", Kind::bytes(1, i64::MAX as u64).or_no_limit(),
            TopicDefault;
        /// Largest record that any topic takes, and what a topic takes by default.
        record_bytes_max: u64 = "1MiB", Kind::bytes(KIB, 16 * MIB), TopicDefault;
        /// Partitions of a topic that is created without saying how many.
        partitions_default: u32 = "1", Kind::count(1, 10_000), TopicDefault;
    }

    /// Memory for what is read. Reserved for each shard.
    cache: Cache {
        /// Memory of one shard for the newest records.
        hot_bytes: u64 = "64MiB", Kind::bytes(MIB, 256 * GIB), Broker;
        /// Memory of one shard for its segments' indexes; at the limit they are read from disk.
        index_bytes_max: u64 = "32MiB", Kind::bytes(MIB, 64 * GIB), Broker;
    }

    /// What is remembered of producers, to recognise what they send twice.
    producers: Producers {
        /// Silence after which a producer is forgotten; it then needs a new id.
        expiry_ms: u64 = "86400000", Kind::millis(1_000, YEAR_MS), Broker;
        /// Producers remembered for one partition; at the limit a new one is refused.
        per_partition_max: u32 = "1000", Kind::count(1, 4_096), Broker;
    }

    /// The broker's own messages.
    log: Log {
        /// The least severe messages that are written.
        level: LogLevel = "info", Kind::Choice(LogLevel::WORDS), Broker;
        /// The shape of a line: text for people, json for machines.
        format: LogFormat = "text", Kind::Choice(LogFormat::WORDS), Broker;
    }

    /// For tests only. Apart from enabled, its options are refused unless enabled is true.
    test: Test {
        /// Accepts the options of this section, and WALs of 4 segments instead of 8.
        enabled: bool = "false", Kind::Flag, Broker;
        /// Time added to every flush.
        flush_delay_us: u64 = "0", Kind::micros(0, 60_000_000), Broker;
        /// The write of a shard, counted from its start, from which on every write fails; 0 means none.
        write_fail_at: u32 = "0", Kind::count(0, u32::MAX as u64), Broker;
        /// The flush of a shard, counted from its start, from which on every flush fails; 0 means none.
        flush_fail_at: u32 = "0", Kind::count(0, u32::MAX as u64), Broker;
        /// The flush of a shard, counted from its start, that hangs; 0 means none.
        flush_hang_at: u32 = "0", Kind::count(0, u32::MAX as u64), Broker;
        /// How long that flush hangs.
        flush_hang_ms: u64 = "0", Kind::millis(0, HOUR_MS), Broker;
        /// Whether the kernel brings each datagram on the port of the first contact to the shard that its
        /// connection id names; without, shards hand them to one another.
        steering: bool = "true", Kind::Flag, Broker;
        /// Time between two looks for records whose retention has ended.
        retention_check_ms: u64 = "10000", Kind::millis(1, HOUR_MS), Broker;
        /// Time between two looks whether files were deleted beneath the broker.
        files_check_ms: u64 = "500", Kind::millis(1, HOUR_MS), Broker;
        /// Size of each of the catalogue's two files, in a data directory that is new.
        catalogue_bytes: u64 = "16MiB", Kind::bytes(64 * KIB, 16 * MIB).in_steps_of(BLOCK_ALIGN),
            Broker;
    }
}

/// All options in the order of [`SECTIONS`].
pub fn all() -> impl Iterator<Item = &'static OptionSpec> {
    SECTIONS.iter().flat_map(|section| section.options)
}

impl BrokerConfig {
    /// Shards to run on a host with so many cores: one core is left to the control plane.
    pub fn shard_count(&self, cores: usize) -> u16 {
        match self.broker.shards {
            0 => {
                let spare = cores.saturating_sub(1).clamp(1, usize::from(SHARDS_MAX));
                u16::try_from(spare).expect("clamped to SHARDS_MAX")
            }
            shards => shards,
        }
    }

    /// The host that clients are told to use.
    pub fn advertised_host(&self) -> String {
        match self.broker.advertised_host.as_str() {
            "" => self.broker.listen.to_string(),
            host => host.to_owned(),
        }
    }
}
