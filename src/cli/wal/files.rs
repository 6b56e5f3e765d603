//! Finding the segments of a WAL.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustmq_sys::lock::{DirLock, LOCK_FILE};
use rustmq_sys::sequential::read_parts;
use rustmq_wal::recovery::{FileClues, headless, rebuild, was_in_use};
use rustmq_wal::{
    BlockSequence, SEGMENT_HEADER_BYTES, SegmentHeader, SegmentHeaderError, SegmentState, Slot,
    WalId,
};

use super::segment;
use super::source::{self, Source, unreadable};
use crate::cli::exit::UsageError;

const PAGE: usize = SEGMENT_HEADER_BYTES;

/// A segment file: what its name, its size and its first page say.
#[derive(Clone, Debug)]
pub(super) struct SegmentFile {
    pub(super) path: PathBuf,
    /// As it is on disk.
    pub(super) read: Result<SegmentHeader, SegmentHeaderError>,
    /// As it is, or as it is made up from the others.
    pub(super) header: Option<SegmentHeader>,
}

/// The files of one WAL: those in use, oldest first, and the others.
#[derive(Debug)]
pub(super) struct WalFiles {
    pub(super) dir: PathBuf,
    pub(super) live: Vec<(SegmentFile, SegmentHeader)>,
    pub(super) others: Vec<SegmentFile>,
    /// What the others say was flushed of the newest one.
    pub(super) durable_end: BlockSequence,
}

/// The WALs below a path: of a data directory, or of one WAL.
pub(super) fn wals(path: &Path) -> Result<Vec<WalFiles>> {
    if holds_segments(path)? {
        return Ok(vec![WalFiles::open(path)?]);
    }
    let mut dirs = Vec::new();
    for entry in std::fs::read_dir(path).map_err(|error| unreadable(path, &error))? {
        let dir = entry?.path();
        let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with("wal-") && !name.contains('.') && dir.is_dir() {
            dirs.push(dir);
        }
    }
    dirs.sort();
    if dirs.is_empty() {
        bail!(UsageError(format!("{} holds no WAL", path.display())));
    }
    dirs.iter().map(|dir| WalFiles::open(dir)).collect()
}

/// Takes the data directory, so that no broker starts meanwhile. A copy that has no lock file is
/// nobody's.
pub(super) fn lock(data_dir: &Path) -> Result<Option<DirLock>> {
    if !data_dir.join(LOCK_FILE).exists() {
        return Ok(None);
    }
    match DirLock::acquire(data_dir) {
        Ok(Some(lock)) => Ok(Some(lock)),
        Ok(None) => {
            let owner = DirLock::owner(data_dir).map_or_else(String::new, |id| format!(" {id}"));
            bail!(UsageError(format!(
                "{} is in use by process{owner}: stop the broker first",
                data_dir.display()
            )))
        }
        Err(error) => Err(error).with_context(|| format!("locking {}", data_dir.display())),
    }
}

/// The data directory that a path is in, or is.
pub(super) fn data_dir(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let is_data_dir = |dir: &&Path| dir.join(LOCK_FILE).exists();
    path.ancestors().take(3).find(is_data_dir).unwrap_or(&path).to_owned()
}

fn holds_segments(path: &Path) -> Result<bool> {
    let entries = std::fs::read_dir(path).map_err(|error| unreadable(path, &error))?;
    for entry in entries {
        if Slot::from_file_name(&entry?.file_name().to_string_lossy()).is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

impl WalFiles {
    fn open(dir: &Path) -> Result<Self> {
        let mut clues = Vec::new();
        let mut paths = Vec::new();
        for entry in std::fs::read_dir(dir).map_err(|error| unreadable(dir, &error))? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            let Some(slot) = Slot::from_file_name(&name) else { continue };
            let path = dir.join(&name);
            let bytes = std::fs::metadata(&path)?.len();
            let last = (bytes / PAGE as u64).saturating_sub(1) * PAGE as u64;
            let parts = [(0, PAGE), (PAGE as u64, PAGE), (last, PAGE)];
            let read = read_parts(&path, &parts).map_err(|error| unreadable(&path, &error));
            let (_, parts) = read?;
            clues.push(FileClues::new(slot, &parts[0], &parts[1], &parts[2]));
            paths.push(path);
        }
        let read: Vec<_> = clues.iter().map(|file| file.header).collect();
        let wal = wal_of(dir, &clues);
        let size = read.iter().flatten().map(|header| header.segment_bytes).max();
        if let (Some(wal), Some(size)) = (wal, size) {
            // Of a file that was cut the last page is not a trailer, and is taken for none.
            rebuild(wal, size, &mut clues);
        }
        let durable_end = find_headless(dir, &mut clues)?;
        let (live, others) = (Vec::new(), Vec::new());
        let mut wal_files = Self { dir: dir.to_owned(), live, others, durable_end };
        for ((clue, read), path) in clues.iter().zip(read).zip(paths) {
            let file = SegmentFile { path, read, header: clue.header.ok() };
            match clue.header {
                Ok(header) if header.state == SegmentState::Active && Some(header.wal) == wal => {
                    wal_files.live.push((file, header));
                }
                _ => wal_files.others.push(file),
            }
        }
        wal_files.live.sort_by_key(|(_, header)| header.sequence);
        Ok(wal_files)
    }
}

/// Looks for a segment behind the newest one that has lost its header page, as a start does, and makes
/// the header up. Gives what such a file says was flushed. Nothing is read where no file may be one.
fn find_headless(dir: &Path, clues: &mut [FileClues]) -> Result<BlockSequence> {
    let mut durable_end = BlockSequence::FIRST;
    let in_use = clues.iter().filter_map(|file| file.header.ok());
    let in_use = in_use.filter(|header| header.state == SegmentState::Active);
    let Some(newest) = in_use.max_by_key(|header| header.sequence) else { return Ok(durable_end) };
    if headless(&newest, &newest.chain_start(), clues).is_empty() {
        return Ok(durable_end);
    }
    let memory = source::memory();
    let scan = |header: &SegmentHeader| {
        let mut source = Source::open(&dir.join(header.slot.file_name()), &memory)?;
        Ok::<_, anyhow::Error>(
            segment::check(&mut source, header, BlockSequence::FIRST, false, |_| {})?.end,
        )
    };
    let end = scan(&newest)?;
    if end.sealed.is_some() {
        return Ok(durable_end);
    }
    for header in headless(&newest, &end.next, clues) {
        let behind = scan(&header)?;
        durable_end = durable_end.max(behind.durable_end);
        let file = clues.iter_mut().find(|file| file.slot == header.slot);
        if let Some(file) = file.filter(|_| was_in_use(&header, &behind)) {
            file.header = Ok(header);
        }
    }
    Ok(durable_end)
}

/// The WAL that a directory is named for, else the one of most files.
fn wal_of(dir: &Path, clues: &[FileClues]) -> Option<WalId> {
    let name = dir.file_name()?.to_string_lossy().into_owned();
    let mut ids = clues.iter().filter_map(|file| file.header.ok()).map(|header| header.wal);
    let named = ids.clone().find(|id| name == format!("wal-{id}"));
    named.or_else(|| ids.next())
}
