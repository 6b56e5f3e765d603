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

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

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
enum Change {
    Link(PathBuf, FileId),
    Rename(PathBuf, PathBuf),
    Unlink(PathBuf),
    Folder(PathBuf),
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

/// A write that became durable, with what was there before it.
#[derive(Clone)]
pub struct Applied {
    file: FileId,
    first_page: usize,
    before: Vec<Option<Page>>,
    after: Vec<Option<Page>>,
}

/// What a crash leaves of the writes that were not flushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Survival {
    /// None of them.
    Nothing,
    /// All of them.
    Everything,
    /// Each one or not.
    Some,
    /// Each of their sectors or not.
    Torn,
    /// Each of their pages or not.
    Pages,
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

    // What `fs` asks.

    pub(crate) fn open(&self, path: &Path) -> io::Result<(FileId, u64)> {
        let file = self.live.names.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok((*file, self.live.files[file].bytes))
    }

    pub(crate) fn create(&mut self, path: &Path, bytes: u64) -> io::Result<FileId> {
        if self.live.names.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let parent = path.parent().unwrap_or(path);
        if !self.live.folders.contains(parent) {
            return Err(io::ErrorKind::NotFound.into());
        }
        if self.capacity_bytes.is_some_and(|capacity| capacity < self.used_bytes() + bytes) {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        let file = FileId(self.next_file);
        self.next_file += 1;
        self.live.files.insert(file, Pages::zeroed(bytes));
        self.change(Change::Link(path.to_owned(), file));
        Ok(file)
    }

    pub(crate) fn remove(&mut self, path: &Path) -> io::Result<()> {
        if !self.live.names.contains_key(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        self.change(Change::Unlink(path.to_owned()));
        Ok(())
    }

    pub(crate) fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        if !self.live.names.contains_key(from) {
            return Err(io::ErrorKind::NotFound.into());
        }
        self.change(Change::Rename(from.to_owned(), to.to_owned()));
        Ok(())
    }

    pub(crate) fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        if !self.live.folders.contains(folder) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let inside = |path: &&PathBuf| path.parent() == Some(folder) && path.as_path() != folder;
        let name =
            |path: &PathBuf| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let files = self.live.names.keys().filter(inside).map(name);
        let mut names: Vec<_> =
            files.chain(self.live.folders.iter().filter(inside).map(name)).collect();
        names.sort_unstable();
        Ok(names)
    }

    pub(crate) fn create_dir(&mut self, path: &Path) {
        let missing: Vec<_> =
            path.ancestors().filter(|folder| !self.live.folders.contains(*folder)).collect();
        for folder in missing.into_iter().rev() {
            self.change(Change::Folder(folder.to_owned()));
        }
    }

    /// A flush of a folder begins: what it will cover.
    pub(crate) fn begin_sync_dir(&self) -> u64 {
        self.next
    }

    /// It ends: the changes of names in the folder that had been made by then are durable.
    pub(crate) fn end_sync_dir(&mut self, folder: &Path, begun: u64) {
        let journal = std::mem::take(&mut self.journal);
        for (number, change) in journal {
            if number < begun && change.folder() == Some(folder) {
                self.durable.apply(&change);
            } else {
                self.journal.push((number, change));
            }
        }
    }

    fn change(&mut self, change: Change) {
        self.live.apply(&change);
        self.journal.push((self.next, change));
        self.next += 1;
    }

    // What the driver asks.

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

    // What a crash does.

    /// How many writes are not durable yet.
    pub fn pending_writes(&self) -> usize {
        self.pending.len()
    }

    /// The disk as it may be found after the power went now.
    #[must_use]
    pub fn crash(&self, choice: &mut Choice, survival: Survival) -> Self {
        let mut state = self.durable.clone();
        let kept = match survival {
            Survival::Nothing => 0,
            Survival::Everything => self.journal.len(),
            Survival::Some | Survival::Torn | Survival::Pages => {
                choice.below(self.journal.len() as u64 + 1) as usize
            }
        };
        for (_, change) in &self.journal[..kept] {
            state.apply(change);
        }
        let named: BTreeSet<FileId> = state.names.values().copied().collect();
        state.files.retain(|file, _| named.contains(file));
        for file in &named {
            if !state.files.contains_key(file) {
                // Named and never flushed: it may have its length or none.
                let bytes = self.live.files.get(file).map_or(0, |file| file.bytes);
                let bytes = if choice.chance(1, 2) { bytes } else { 0 };
                state.files.insert(*file, Pages::zeroed(bytes));
            }
        }
        for write in &self.pending {
            let Some(file) = state.files.get_mut(&write.file) else { continue };
            let survives = match survival {
                Survival::Nothing => false,
                Survival::Everything => true,
                Survival::Some => choice.chance(1, 2),
                Survival::Torn => {
                    file.tear(choice, write.first_page, &write.pages);
                    false
                }
                Survival::Pages => {
                    for (page, new) in (write.first_page..).zip(&write.pages) {
                        if choice.chance(1, 2) {
                            file.put(page, std::slice::from_ref(new));
                        }
                    }
                    false
                }
            };
            if survives {
                file.put(write.first_page, &write.pages);
            }
        }
        Self {
            live: state.clone(),
            durable: state,
            next: self.next,
            next_file: self.next_file,
            capacity_bytes: self.capacity_bytes,
            ..Self::default()
        }
    }

    /// The disk after the process was killed: it has lost nothing, and nothing has become durable by
    /// it. What was on its way has arrived or not.
    #[must_use]
    pub fn killed(&self, choice: &mut Choice) -> Self {
        let mut disk = Self {
            live: self.live.clone(),
            durable: self.durable.clone(),
            journal: self.journal.clone(),
            next: self.next,
            next_file: self.next_file,
            capacity_bytes: self.capacity_bytes,
            ..Self::default()
        };
        let mut pending = self.pending.clone();
        pending.retain(|write| write.state != WriteState::InFlight || choice.chance(1, 2));
        for write in &mut pending {
            if write.state == WriteState::InFlight {
                write.state = WriteState::Ended;
                if let Some(file) = disk.live.files.get_mut(&write.file) {
                    file.put(write.first_page, &write.pages);
                }
            }
        }
        disk.pending = pending;
        disk
    }

    /// The writes that are not durable yet: file, position and length in bytes, oldest first.
    pub fn pending_places(&self) -> impl Iterator<Item = (FileId, u64, u64)> {
        self.pending.iter().map(|write| {
            let position = (write.first_page * PAGE_BYTES) as u64;
            (write.file, position, (write.pages.len() * PAGE_BYTES) as u64)
        })
    }

    /// The writes that became durable, oldest first, as far as they are remembered.
    pub fn applied(&self) -> impl ExactSizeIterator<Item = &Applied> + DoubleEndedIterator {
        self.applied.iter()
    }

    // What a disk does that lies. Each is done to both what is live and what is durable.

    /// Takes a durable write back, as if the disk had only said so. False: it was written over.
    pub fn lose(&mut self, write: &Applied) -> bool {
        if !self.has(write) {
            return false;
        }
        self.put(write.file, write.first_page, &write.before);
        true
    }

    /// Takes some sectors of a durable write back, as if a flush had only said that they were
    /// written. False: it was written over.
    pub fn lose_sectors(&mut self, write: &Applied, choice: &mut Choice) -> bool {
        if !self.has(write) {
            return false;
        }
        let mut torn = Pages { bytes: 0, pages: write.after.clone() };
        torn.tear(choice, 0, &write.before);
        self.put(write.file, write.first_page, &torn.pages);
        true
    }

    /// Takes a durable write back and puts its bytes somewhere else, over what is there. False: it
    /// was written over, or there is no such place.
    pub fn misdirect(&mut self, write: &Applied, to: FileId, page: usize) -> bool {
        let pages = self.live.files.get(&to).map_or(0, |file| file.pages.len());
        let end = page + write.after.len();
        let same = to == write.file
            && page < write.first_page + write.after.len()
            && write.first_page < end;
        if pages < end || same || !self.lose(write) {
            return false;
        }
        self.put(to, page, &write.after);
        true
    }

    /// Flips bits of one byte of a file.
    pub fn rot(&mut self, file: FileId, position: u64, bits: u8) {
        let page = position as usize / PAGE_BYTES;
        for state in [&mut self.live, &mut self.durable] {
            let Some(pages) = state.files.get_mut(&file) else { continue };
            let Some(old) = pages.pages.get(page) else { continue };
            let mut bytes = old.as_deref().copied().unwrap_or([0; PAGE_BYTES]);
            bytes[position as usize % PAGE_BYTES] ^= bits;
            pages.pages[page] = page_of(&bytes);
        }
    }

    /// Bytes of a file as they are now.
    pub fn bytes_at(&self, file: FileId, position: u64, bytes: usize) -> Vec<u8> {
        let mut out = vec![0; bytes];
        let read = self.read(file, position, &mut out);
        out.truncate(read);
        out
    }

    /// Is all of a durable write still there?
    pub fn has(&self, write: &Applied) -> bool {
        let Some(file) = self.durable.files.get(&write.file) else { return false };
        let there = file.pages.get(write.first_page..write.first_page + write.after.len());
        there.is_some_and(|there| {
            std::iter::zip(there, &write.after).all(|(a, b)| match (a, b) {
                (Some(a), Some(b)) => Rc::ptr_eq(a, b),
                (None, None) => true,
                _ => false,
            })
        })
    }

    fn put(&mut self, file: FileId, first_page: usize, pages: &[Option<Page>]) {
        for state in [&mut self.live, &mut self.durable] {
            if let Some(file) = state.files.get_mut(&file) {
                file.put(first_page, pages);
            }
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

impl Applied {
    /// How it begins.
    pub fn first_bytes(&self) -> [u8; 128] {
        let page = self.after.first().and_then(Option::as_ref);
        page.map_or([0; 128], |page| std::array::from_fn(|index| page[index]))
    }

    /// Where it was written: file, position and length in bytes.
    pub fn place(&self) -> (FileId, u64, u64) {
        let position = self.first_page * PAGE_BYTES;
        (self.file, position as u64, (self.after.len() * PAGE_BYTES) as u64)
    }
}

impl State {
    fn apply(&mut self, change: &Change) {
        match change {
            Change::Link(path, file) => {
                self.names.insert(path.clone(), *file);
            }
            Change::Rename(from, to) => {
                if let Some(file) = self.names.remove(from) {
                    self.names.insert(to.clone(), file);
                }
            }
            Change::Unlink(path) => {
                self.names.remove(path);
            }
            Change::Folder(path) => {
                self.folders.insert(path.clone());
            }
        }
    }
}

impl Change {
    fn folder(&self) -> Option<&Path> {
        match self {
            Self::Link(path, _) | Self::Unlink(path) | Self::Folder(path) => path.parent(),
            Self::Rename(_, to) => to.parent(),
        }
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
