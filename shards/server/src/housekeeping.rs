//! Work that is not urgent: spares, retention, forgotten producers, deadlines.

use std::rc::Rc;
use std::time::Duration;

use rustmq_engine::retention::{ClockGuard, SegmentPart, log_start_after};
use rustmq_protocol::{Offset, TimestampMs};
use rustmq_sys::clock;
use rustmq_sys::runtime::{self, Class};
use rustmq_wal::{EntryKind, SegmentSequence};

use crate::error::ShardError;
use crate::limits::EXPIRE_INTERVAL_MS;
use crate::notify::before;
use crate::shard::Shard;
use crate::wal_writer::WalWriter;

/// Spawns the tasks of one shard.
pub(crate) fn start(shard: &Rc<Shard>) {
    for wal in shard.wals() {
        runtime::spawn(Class::Background, segments_loop(Rc::clone(shard), wal));
    }
    runtime::spawn(Class::Background, expire_loop(Rc::clone(shard)));
}

/// Requests that wait for a flush look at the clock at this rhythm, not each with its own timer.
async fn expire_loop(shard: Rc<Shard>) {
    loop {
        runtime::sleep(Duration::from_millis(EXPIRE_INTERVAL_MS)).await;
        for wal in shard.wals() {
            wal.expire();
            // Memory that slow consumers gave back rings no bell.
            wal.wake_room();
        }
    }
}

/// Keeps a spare ready, and frees what nobody may read any more.
async fn segments_loop(shard: Rc<Shard>, wal: Rc<WalWriter>) {
    let begun = clock::now();
    let mut guard = ClockGuard::new();
    let mut trusted = true;
    while !shard.draining() {
        let now = guard.observe(clock::wall_ms(), (clock::now() - begun).as_millis() as i64);
        if trusted != now.is_some() {
            trusted = now.is_some();
            match trusted {
                true => tracing::info!("the wall clock is trusted again"),
                false => tracing::error!(
                    "the wall clock jumped by more than ten minutes: retention by time is suspended \
                     until it returns or the broker restarts"
                ),
            }
        }
        if let Err(error) = look(&shard, &wal, now).await {
            return shard.fail(error);
        }
        let pause = Duration::from_millis(shard.config.test.retention_check_ms);
        before(clock::now() + pause, wal.files.wanted.notified()).await;
    }
}

async fn look(
    shard: &Rc<Shard>,
    wal: &Rc<WalWriter>,
    now: Option<TimestampMs>,
) -> Result<(), ShardError> {
    wal.files.make_spare().await?;
    wal.wake_room();
    expire_producers(shard, now);
    let index = shard.wal_index(wal.files.id());
    let tags = shard.partitions.borrow().tags();
    for tag in tags {
        retain(shard, wal, index, tag, now).await;
    }
    if wal.files.take_starved() && wal.files.policy().delete_oldest {
        drop_oldest(shard, wal).await;
    }
    free(shard, wal).await
}

/// Moves the log start of one partition past what its topic no longer keeps.
async fn retain(
    shard: &Rc<Shard>,
    wal: &Rc<WalWriter>,
    index: usize,
    tag: u32,
    now: Option<TimestampMs>,
) {
    let to = {
        let partitions = shard.partitions.borrow();
        let Some(partition) = partitions.get(tag).filter(|p| p.wal == index) else {
            return;
        };
        let segments = wal.files.segments();
        let active = segments.active().map(|segment| segment.header.sequence);
        let id = partition.engine.id();
        let is_open = |sequence: &SegmentSequence| Some(*sequence) == active;
        let open_bytes = segments.ranges(id).find(|(sequence, _)| is_open(sequence));
        let sealed = segments.ranges(id).filter(|(sequence, _)| !is_open(sequence));
        let parts: Vec<SegmentPart> = sealed
            .map(|(_, range)| SegmentPart {
                end_offset: range.end,
                append_time_max: range.append_time_max,
                bytes: range.bytes,
            })
            .collect();
        let open_bytes = open_bytes.map_or(0, |(_, range)| range.bytes);
        log_start_after(partition.retention, parts.into_iter(), open_bytes, now)
    };
    if let Some(to) = to {
        advance_log_start(shard, wal, tag, to).await;
    }
}

/// A full WAL that is told to drops its oldest segment, whoever's records are in it.
async fn drop_oldest(shard: &Rc<Shard>, wal: &Rc<WalWriter>) {
    let oldest = wal.files.segments().oldest_sealed().map(|segment| segment.header.sequence);
    let Some(oldest) = oldest else { return };
    let ends: Vec<_> = wal.files.segments().ends_in(oldest).collect();
    for (id, end) in ends {
        let Some(tag) = shard.partitions.borrow().tag(id) else {
            continue;
        };
        if let Some(dropped) = advance_log_start(shard, wal, tag, end).await {
            shard.metrics.borrow_mut().counters.records_dropped_full += dropped;
            tracing::warn!(partition = %id, log_start = %end, dropped, "the WAL is full: oldest dropped");
        }
    }
}

/// Moves a log start, and returns once the WAL says so durably; gives how many records are gone.
async fn advance_log_start(
    shard: &Rc<Shard>,
    wal: &Rc<WalWriter>,
    tag: u32,
    to: Offset,
) -> Option<u64> {
    let (note, dropped) = {
        let mut partitions = shard.partitions.borrow_mut();
        let partition = partitions.get_mut(tag)?;
        let from = partition.engine.log_start_offset();
        let to = partition.engine.advance_log_start(to)?;
        (partition.note(EntryKind::LogStart, to, tag), to.0 - from.0)
    };
    loop {
        // Entries of this kind may use what is kept back for them when the WAL is full.
        wal.room_for_log_start(shard).await;
        let Some(ticket) = wal.put_note(note.clone()) else { continue };
        let far = clock::now() + FLUSH_WAIT;
        // A flush that takes longer than this is seen elsewhere; nothing is freed before it ends.
        while wal.durable(ticket, far).await.is_err() {}
        return Some(dropped);
    }
}

/// How long one look at a pending flush lasts.
const FLUSH_WAIT: Duration = Duration::from_secs(3600);

/// Frees the oldest segments as long as nothing in them may be read.
async fn free(shard: &Rc<Shard>, wal: &Rc<WalWriter>) -> Result<(), ShardError> {
    loop {
        let freeable = {
            let partitions = shard.partitions.borrow();
            wal.files.segments().freeable(|id| {
                let partition = partitions.tag(id).and_then(|tag| partitions.get(tag));
                partition.map(|partition| partition.engine.log_start_offset())
            })
        };
        let Some(sequence) = freeable else {
            return Ok(());
        };
        wal.files.free(sequence).await?;
        shard.metrics.borrow_mut().counters.segments_freed += 1;
        wal.wake_room();
    }
}

fn expire_producers(shard: &Shard, now: Option<TimestampMs>) {
    let Some(now) = now else { return };
    let idle = i64::try_from(shard.config.producers.expiry_ms).unwrap_or(i64::MAX);
    let before = TimestampMs(now.0.saturating_sub(idle));
    let mut partitions = shard.partitions.borrow_mut();
    for tag in partitions.tags() {
        if let Some(partition) = partitions.get_mut(tag) {
            partition.engine.expire_producers(before);
        }
    }
}
