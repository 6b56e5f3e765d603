//! A disk with a volatile cache: files of pages, what of them is durable, and what a crash leaves.
//!
//! ```text
//!   write begins ── ends ── flush begins after that ── flush ends
//!   |  may be on the medium, whole, in part or not     | is on the medium
//! ```
//!
//! A flush covers the writes of its file that had ended when it began, and nothing else. Names are
//! durable once their folder is flushed; before that a crash leaves the first so many changes of
//! names. Sectors of 512 bytes are written whole; a page of 4096 is not.
//!
//! What a disk does that lies is done to the image after a crash: [`Disk::lose`],
//! [`Disk::misdirect`], [`Disk::rot`].

mod crash;
mod lies;
mod names;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::rc::Rc;

pub use self::crash::Survival;
pub use self::lies::Applied;
use self::names::Change;
use super::choice::Choice;

/// Bytes of a page: what transfers are made of.
pub const PAGE_BYTES: usize = 4096;
/// Bytes that a medium writes whole or not at all.
pub const SECTOR_BYTES: usize = 512;

/// Durable writes that are remembered, for faults to choose from.
const APPLIED_MAX: usize = 4096;

type Page = Rc<[u8; PAGE_BYTES]>;

/// A file, whatever its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileId(pub(crate) u32);

/// A write that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct WriteId(pub(super) u64);

/// A flush that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct FlushId(pub(super) u64);

/// The modelled disk. Cloning it copies references to pages, not pages.
#[derive(Clone, Default)]
pub struct Disk {
    live: State,
    durable: State,
    /// Changes of names that no flush of their folder has covered.
    journal: Vec<(u64, Change)>,
    pending: Vec<Pending>,
    flushes: BTreeMap<FlushId, (FileId, Vec<WriteId>)>,
    next: u64,
    next_file: u32,
    /// Bytes that all files together may have; `None`: endless.
    capacity_bytes: Option<u64>,
    applied: VecDeque<Applied>,
}

#[derive(Clone, Default)]
struct State {
    names: BTreeMap<PathBuf, FileId>,
    folders: BTreeSet<PathBuf>,
    files: BTreeMap<FileId, Pages>,
}

/// What a file holds; a page of zeroes is `None`.
#[derive(Clone, Default)]
struct Pages {
    bytes: u64,
    pages: Vec<Option<Page>>,
}

#[derive(Clone)]
struct Pending {
    id: WriteId,
    file: FileId,
    first_page: usize,
    pages: Vec<Option<Page>>,
    state: WriteState,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum WriteState {
    InFlight,
    Ended,
    /// It failed, or a flush that covered it did: nobody can make it durable any more.
    Forgotten,
}

impl Disk {
    /// A disk with nothing but these folders.
    pub fn new(capacity_bytes: Option<u64>, folders: &[&str]) -> Self {
        let mut disk = Self { capacity_bytes, next_file: 3, ..Self::default() };
        for state in [&mut disk.live, &mut disk.durable] {
            state.folders.extend(folders.iter().map(PathBuf::from));
        }
        disk
    }

    /// Sets how many bytes all files together may have from now on; `None`: endless. Files that are
    /// there stay as they are.
    pub fn set_capacity(&mut self, capacity_bytes: Option<u64>) {
        self.capacity_bytes = capacity_bytes;
    }

    /// Bytes that all files together may have.
    pub fn capacity(&self) -> Option<u64> {
        self.capacity_bytes
    }

    /// Bytes that all files together have.
    pub fn used_bytes(&self) -> u64 {
        self.live.names.values().map(|file| self.live.files[file].bytes).sum()
    }

    /// The names of all files as they are now, with their lengths.
    pub fn files(&self) -> Vec<(PathBuf, FileId, u64)> {
        let named = self.live.names.iter();
        named.map(|(name, file)| (name.clone(), *file, self.live.files[file].bytes)).collect()
    }

    pub(super) fn read(&self, file: FileId, position: u64, out: &mut [u8]) -> usize {
        let Some(pages) = self.live.files.get(&file) else { return 0 };
        let bytes = pages.bytes.saturating_sub(position).min(out.len() as u64) as usize;
        let mut done = 0;
        while done < bytes {
            let at = position as usize + done;
            let within = at % PAGE_BYTES;
            let count = (PAGE_BYTES - within).min(bytes - done);
            let to = &mut out[done..done + count];
            match pages.pages.get(at / PAGE_BYTES).and_then(Option::as_ref) {
                Some(page) => to.copy_from_slice(&page[within..within + count]),
                None => to.fill(0),
            }
            done += count;
        }
        bytes
    }

    pub(super) fn begin_write(&mut self, file: FileId, position: u64, data: &[u8]) -> WriteId {
        let id = WriteId(self.next);
        self.next += 1;
        let pages = data.chunks_exact(PAGE_BYTES).map(page_of).collect();
        let first_page = position as usize / PAGE_BYTES;
        self.pending.push(Pending { id, file, first_page, pages, state: WriteState::InFlight });
        id
    }

    /// `bytes` of a write, perhaps fewer than asked for, have reached the cache. Whether fewer.
    pub(super) fn end_write(&mut self, id: WriteId, bytes: u32) -> bool {
        let Some(write) = self.pending.iter_mut().find(|write| write.id == id) else {
            return false;
        };
        let pages = bytes as usize / PAGE_BYTES;
        let short = pages < write.pages.len();
        write.pages.truncate(pages);
        write.state = WriteState::Ended;
        let write = write.clone();
        if let Some(file) = self.live.files.get_mut(&write.file) {
            file.put(write.first_page, &write.pages);
        }
        short
    }

    pub(super) fn fail_write(&mut self, id: WriteId) {
        for write in self.pending.iter_mut().filter(|write| write.id == id) {
            write.state = WriteState::Forgotten;
        }
    }

    pub(super) fn begin_flush_of(&mut self, write: WriteId) -> FlushId {
        let write = self.pending.iter().find(|pending| pending.id == write);
        let file = write.map_or(FileId(0), |write| write.file);
        self.begin_flush(file)
    }

    pub(super) fn begin_flush(&mut self, file: FileId) -> FlushId {
        let id = FlushId(self.next);
        self.next += 1;
        let ended = |write: &&Pending| write.file == file && write.state == WriteState::Ended;
        let covered = self.pending.iter().filter(ended).map(|write| write.id).collect();
        self.flushes.insert(id, (file, covered));
        id
    }

    pub(super) fn end_flush(&mut self, id: FlushId, succeeded: bool) {
        let Some((file, covered)) = self.flushes.remove(&id) else { return };
        if !succeeded {
            for write in covered {
                self.fail_write(write);
            }
            return;
        }
        let bytes = self.live.files.get(&file).map_or(0, |file| file.bytes);
        let durable = self.durable.files.entry(file).or_insert_with(|| Pages::zeroed(bytes));
        let (now, later): (Vec<_>, Vec<_>) = std::mem::take(&mut self.pending)
            .into_iter()
            .partition(|write| covered.contains(&write.id) && write.state == WriteState::Ended);
        self.pending = later;
        // What failed before is in nobody's cache any more where something else is now.
        self.pending.retain(|old| {
            let is_over = |new: &Pending| new.id > old.id && new.overlaps(old);
            old.state != WriteState::Forgotten || !now.iter().any(is_over)
        });
        for write in now {
            let before = durable.put(write.first_page, &write.pages);
            let Pending { file, first_page, pages: after, .. } = write;
            if self.applied.len() == APPLIED_MAX {
                self.applied.pop_front();
            }
            self.applied.push_back(Applied { file, first_page, before, after });
        }
    }
}

impl Pending {
    fn overlaps(&self, other: &Self) -> bool {
        self.file == other.file
            && self.first_page < other.first_page + other.pages.len()
            && other.first_page < self.first_page + self.pages.len()
    }
}

impl Pages {
    fn zeroed(bytes: u64) -> Self {
        Self { bytes, pages: vec![None; (bytes as usize).div_ceil(PAGE_BYTES)] }
    }

    /// Replaces pages; gives what was there. A file does not grow.
    fn put(&mut self, first_page: usize, pages: &[Option<Page>]) -> Vec<Option<Page>> {
        let places = self.pages.iter_mut().skip(first_page);
        std::iter::zip(places, pages)
            .map(|(place, page)| std::mem::replace(place, page.clone()))
            .collect()
    }

    fn tear(&mut self, choice: &mut Choice, first_page: usize, pages: &[Option<Page>]) {
        for (index, new) in pages.iter().enumerate() {
            let Some(place) = self.pages.get_mut(first_page + index) else { return };
            let zeroes = [0; PAGE_BYTES];
            let mut bytes = place.as_deref().copied().unwrap_or(zeroes);
            let new = new.as_deref().unwrap_or(&zeroes);
            let sectors = choice.number();
            for sector in (0..PAGE_BYTES / SECTOR_BYTES).filter(|sector| sectors >> sector & 1 == 1)
            {
                let range = sector * SECTOR_BYTES..(sector + 1) * SECTOR_BYTES;
                bytes[range.clone()].copy_from_slice(&new[range]);
            }
            *place = page_of(&bytes);
        }
    }
}

fn page_of(bytes: &[u8]) -> Option<Page> {
    let page = || Page::try_from(Rc::<[u8]>::from(bytes)).expect("a page is cut to its length");
    (*bytes != [0; PAGE_BYTES]).then(page)
}

/// Is it the page that this write brought, and not one with the same bytes?
fn is_same(page: &Option<Page>, written: &Option<Page>) -> bool {
    match (page, written) {
        (Some(page), Some(written)) => Rc::ptr_eq(page, written),
        (None, None) => true,
        _ => false,
    }
}
