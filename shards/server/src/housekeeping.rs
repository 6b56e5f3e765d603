//! Work that is not urgent: spares, retention, forgotten producers, deadlines.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use rustmq_engine::retention::{ClockGuard, SegmentPart, log_start_after};
use rustmq_planted::{Bug, planted};
use rustmq_protocol::{Offset, TimestampMs};
use rustmq_sys::runtime::{self, Class};
use rustmq_sys::{clock, fs};
use rustmq_wal::{CatalogueFile, EntryKind, EntryMeta};

use crate::error::ShardError;
use crate::limits::{EXPIRE_INTERVAL_MS, FULL_PAUSE_MS, WATCH_INTERVAL_MS};
use crate::mesh::Message;
use crate::notify::before;
use crate::session;
use crate::shard::Shard;
use crate::wal_writer::WalWriter;

/// Spawns the tasks of one shard.
pub(crate) fn start(shard: &Rc<Shard>) {
    for wal in shard.wals() {
        runtime::spawn(Class::Background, segments_loop(Rc::clone(shard), wal));
    }
    runtime::spawn(Class::Background, expire_loop(Rc::clone(shard)));
    runtime::spawn(Class::Background, watch_loop(Rc::clone(shard)));
}

/// Watches the disk: a write or flush that hangs, and files that are deleted beneath us.
async fn watch_loop(shard: Rc<Shard>) {
    let pause = Duration::from_millis(shard.config.test.files_check_ms);
    loop {
        runtime::sleep(pause).await;
        let mut trouble = Vec::new();
        for wal in shard.wals() {
            let dir = wal.files.dir();
            let stalled_ms = wal.files.stalled_ms();
            if 0 < stalled_ms {
                trouble.push(format!(
                    "the disk of {} has not answered a write or flush for {} s",
                    dir.display(),
                    stalled_ms / 1000
                ));
            }
            // A disk that hangs may hang the look as well; the other watches go on without it.
            let slots = wal.files.slots();
            if stalled_ms == 0
                && let Some(names) = names(dir).await
            {
                for path in wal.files.handle_names(&slots, &names) {
                    tracing::error!(
                        file = %path.display(),
                        "a segment file was deleted beneath the broker: reading goes on from what \
                         is still open, nothing more is written, and a restart will miss its records"
                    );
                    wal.wake_room();
                }
            }
            trouble.extend(wal.files.refusal());
        }
        let dir = &shard.config.broker.data_dir;
        if shard.catalogue.is_some()
            && !shard.catalogue_lost.get()
            && let Some(names) = names(dir).await
        {
            for file in [CatalogueFile::A, CatalogueFile::B] {
                if !names.iter().any(|name| name == file.file_name()) {
                    shard.catalogue_lost.set(true);
                    tracing::error!(
                        file = %dir.join(file.file_name()).display(),
                        "a file of the catalogue was deleted beneath the broker: topics cannot be \
                         created or deleted any more, and a restart will be refused"
                    );
                }
            }
        }
        if shard.catalogue_lost.get() {
            trouble.push("the catalogue was deleted beneath the broker".to_owned());
        }
        report(&shard, trouble);
    }
}

/// The names in a folder; none when it is gone. `None` when it cannot be listed, which says nothing of
/// what is in it.
async fn names(dir: &Path) -> Option<Vec<String>> {
    match fs::list(dir).await {
        Ok(names) => Some(names),
        Err(error) => {
            tracing::error!(dir = %dir.display(), %error, "a directory cannot be listed");
            (error.kind() == io::ErrorKind::NotFound).then(Vec::new)
        }
    }
}

/// Tells the control thread what is wrong, when that has changed but for its numbers.
fn report(shard: &Shard, trouble: Vec<String>) {
    let before = std::mem::replace(&mut *shard.trouble.borrow_mut(), trouble.clone());
    match (before.is_empty(), trouble.is_empty()) {
        (true, true) => return,
        (true, false) => tracing::error!(trouble = trouble.join("; "), "not ready"),
        (false, true) => tracing::info!("the disk answers again"),
        (false, false) if before == trouble => return,
        (false, false) => {}
    }
    shard.mesh.send_control(Message::Trouble { shard: shard.id, trouble });
}

/// Requests that wait for a flush look at the clock at this rhythm, not each with its own timer, and
/// fetches look whether their client is still there.
async fn expire_loop(shard: Rc<Shard>) {
    let mut watch_at = clock::now();
    loop {
        runtime::sleep(Duration::from_millis(EXPIRE_INTERVAL_MS)).await;
        session::wake_starved(&shard);
        if watch_at <= clock::now() {
            watch_at = clock::now() + Duration::from_millis(WATCH_INTERVAL_MS);
            let mut place = Some(0);
            while let Some(from) = place {
                place = shard.endpoint.close_stalled(&shard, from, clock::now());
                runtime::yield_now().await;
            }
        }
        for index in 0..shard.wal_count() {
            let wal = shard.wal(index);
            wal.expire();
            // Memory that slow consumers gave back rings no bell.
            wal.wake_room();
        }
        if shard.session_ended.take() {
            shard.partitions.borrow().wake_all();
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
        match look(&shard, &wal, now).await {
            Ok(Found::Nothing) => {}
            // Every request that asks for room has it looked at again: not at the pace of requests.
            Ok(Found::NoRoom) => runtime::sleep(Duration::from_millis(FULL_PAUSE_MS)).await,
            Err(error) => return shard.fail(error),
        }
        let pause = Duration::from_millis(shard.config.test.retention_check_ms);
        before(clock::now() + pause, wal.files.wanted.notified()).await;
    }
}

/// What a look leaves behind.
enum Found {
    Nothing,
    /// Requests asked for room, and there still is none.
    NoRoom,
}

async fn look(
    shard: &Rc<Shard>,
    wal: &Rc<WalWriter>,
    now: Option<TimestampMs>,
) -> Result<Found, ShardError> {
    wal.files.make_spare().await?;
    wal.wake_room();
    expire_producers(shard, now);
    let index = shard.wal_index(wal.files.id());
    let expired = expired(shard, wal, index, now);
    if !wal.files.uses_reserve() || frees_oldest(shard, wal, &expired) {
        advance_log_starts(shard, wal, expired).await;
    }
    let starved = wal.files.take_starved();
    if starved && wal.files.policy().delete_oldest && wal.files.is_full() {
        drop_oldest(shard, wal).await;
    }
    free(shard, wal).await?;
    Ok(match starved && wal.files.is_full() {
        true => Found::NoRoom,
        false => Found::Nothing,
    })
}

/// The log starts that are due because topics no longer keep what lies before them.
fn expired(
    shard: &Shard,
    wal: &WalWriter,
    index: usize,
    now: Option<TimestampMs>,
) -> Vec<(u32, Offset)> {
    let partitions = shard.partitions.borrow();
    let segments = wal.files.segments();
    let active = segments.active().map(|segment| segment.header.sequence);
    let here = partitions.iter().filter(|(_, partition)| partition.wal == index);
    here.filter_map(|(tag, partition)| {
        let ranges = || segments.ranges(partition.engine.id());
        let open_bytes: u64 =
            ranges().filter(|(sequence, _)| Some(*sequence) == active).map(|(_, r)| r.bytes).sum();
        let sealed = ranges().filter(|(sequence, _)| Some(*sequence) != active);
        let parts: Vec<SegmentPart> = sealed
            .map(|(_, range)| SegmentPart {
                end_offset: range.end,
                append_time_max: range.append_time_max,
                bytes: range.bytes,
            })
            .collect();
        let start = log_start_after(partition.retention, parts.into_iter(), open_bytes, now)?;
        Some((tag, start))
    })
    .collect()
}

/// Is nothing in the oldest segment needed any more, with these log starts? The pages that a full WAL
/// keeps back are few: log starts that free nothing wait, or they would use them up one by one.
fn frees_oldest(shard: &Shard, wal: &WalWriter, expired: &[(u32, Offset)]) -> bool {
    let due: BTreeMap<u32, Offset> = expired.iter().copied().collect();
    let partitions = shard.partitions.borrow();
    let freeable = wal.files.segments().freeable(|id| {
        let tag = partitions.tag(id)?;
        let start = partitions.get(tag)?.engine.log_start_offset();
        Some(due.get(&tag).map_or(start, |due| start.max(*due)))
    });
    freeable.is_some()
}

/// A full WAL that is told to drops its oldest segment, whoever's records are in it.
async fn drop_oldest(shard: &Rc<Shard>, wal: &Rc<WalWriter>) {
    let dropped = advance_log_starts(shard, wal, ends_of_oldest(shard, wal)).await;
    count_dropped(shard, wal, dropped);
}

/// Lets a full WAL that is told to drop its oldest segment do so with the block that says that this
/// start happened, which the caller writes next. Each start takes one of the pages that are kept back
/// for log starts: broken off again and again before anybody asks for room, starts alone would use
/// them up.
pub(crate) async fn drop_oldest_at_start(
    shard: &Rc<Shard>,
    wal: &Rc<WalWriter>,
) -> Result<(), ShardError> {
    if !wal.files.policy().delete_oldest || !wal.files.is_at_reserve() {
        return Ok(());
    }
    // Whether the disk has space for another segment is not known before it is tried.
    wal.files.make_spare().await?;
    if !wal.files.uses_reserve() {
        return Ok(());
    }
    // The log starts of a start that was broken off may free it already.
    free(shard, wal).await?;
    if !wal.files.uses_reserve() {
        return Ok(());
    }
    let mut dropped = 0;
    for (tag, to) in ends_of_oldest(shard, wal) {
        // What does not fit waits for the next start, or for a request that asks for room.
        if !wal.has_room_for_log_start(shard) {
            break;
        }
        let Some(from) = move_log_start(shard, tag, to) else { continue };
        let Some(note) = log_start_note(shard, tag) else { continue };
        dropped += note.base_offset.0 - from.0;
        wal.put_first(note);
    }
    count_dropped(shard, wal, dropped);
    Ok(())
}

/// The log starts behind everything in the oldest segment.
fn ends_of_oldest(shard: &Shard, wal: &WalWriter) -> Vec<(u32, Offset)> {
    let segments = wal.files.segments();
    let Some(oldest) = segments.oldest_sealed() else { return Vec::new() };
    let partitions = shard.partitions.borrow();
    let ends = segments.ends_in(oldest.header.sequence);
    ends.filter_map(|(id, end)| Some((partitions.tag(id)?, end))).collect()
}

fn count_dropped(shard: &Shard, wal: &WalWriter, dropped: u64) {
    if 0 < dropped {
        shard.metrics.borrow_mut().counters.records_dropped_full += dropped;
        tracing::warn!(wal = %wal.files.id(), dropped, "the WAL is full: its oldest records are dropped");
    }
}

/// Moves log starts, and returns once the WAL says so durably; gives how many records are gone. All
/// notes go together: a full WAL has few blocks left for them.
async fn advance_log_starts(
    shard: &Rc<Shard>,
    wal: &Rc<WalWriter>,
    starts: Vec<(u32, Offset)>,
) -> u64 {
    let mut dropped = 0;
    let mut last = None;
    for (tag, to) in starts {
        let Some(from) = move_log_start(shard, tag, to) else { continue };
        loop {
            // Entries of this kind may use what is kept back for them when the WAL is full.
            wal.room_for_log_start(shard).await;
            // The topic may have been deleted meanwhile: then nothing may name it any more.
            let Some(note) = log_start_note(shard, tag) else { break };
            let start = note.base_offset;
            if let Some(ticket) = wal.put_note(note) {
                last = Some(ticket);
                dropped += start.0 - from.0;
                break;
            }
        }
    }
    let Some(last) = last else { return 0 };
    if planted(Bug::SegmentReusedTooEarly) {
        return dropped;
    }
    // A flush that takes longer than this is seen elsewhere; nothing is freed before it ends.
    while wal.durable(last, clock::now() + FLUSH_WAIT).await.is_err() {}
    dropped
}

/// Moves a log start in memory, and gives where it was; `None` when there is nothing to move.
fn move_log_start(shard: &Shard, tag: u32, to: Offset) -> Option<Offset> {
    let mut partitions = shard.partitions.borrow_mut();
    let engine = &mut partitions.get_mut(tag)?.engine;
    let from = engine.log_start_offset();
    engine.advance_log_start(to).map(|_| from)
}

/// The entry that says where a partition's log starts now; `None` when its topic is deleted.
fn log_start_note(shard: &Shard, tag: u32) -> Option<EntryMeta> {
    let partitions = shard.partitions.borrow();
    let partition = partitions.get(tag)?;
    Some(partition.note(EntryKind::LogStart, partition.engine.log_start_offset(), tag))
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
        // What is held now is freed by a later look.
        let Some(sequence) = freeable.filter(|sequence| !wal.files.is_held(*sequence)) else {
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
        let Some(partition) = partitions.get_mut(tag) else { continue };
        let held = partition.engine.producers().len();
        partition.engine.expire_producers(before);
        let left = partition.engine.producers().len();
        shard.wal(partition.wal).count_producers(held, left);
    }
}
