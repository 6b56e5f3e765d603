//! What a disk does that lies: each to both what is live and what is durable, after a crash.

use std::path::Path;

use super::{Disk, FileId, PAGE_BYTES, Page, Pages, is_same, page_of};
use crate::sim::choice::Choice;

/// A write that became durable, with what was there before it.
#[derive(Clone)]
pub struct Applied {
    pub(super) file: FileId,
    pub(super) first_page: usize,
    pub(super) before: Vec<Option<Page>>,
    pub(super) after: Vec<Option<Page>>,
}

impl Disk {
    /// The writes that became durable, oldest first, as far as they are remembered.
    pub fn applied(&self) -> impl ExactSizeIterator<Item = &Applied> + DoubleEndedIterator {
        self.applied.iter()
    }

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
        if !self.fits(write, to, page) || !self.lose(write) {
            return false;
        }
        self.put(to, page, &write.after);
        true
    }

    /// Is there such a place, beside the write's own?
    pub fn fits(&self, write: &Applied, to: FileId, page: usize) -> bool {
        let pages = self.live.files.get(&to).map_or(0, |file| file.pages.len());
        let end = page + write.after.len();
        let same = to == write.file
            && page < write.first_page + write.after.len()
            && write.first_page < end;
        end <= pages && !same
    }

    /// Flips bits of one byte of a file.
    pub fn rot(&mut self, file: FileId, position: u64, bits: u8) {
        let turned: Vec<u8> =
            self.bytes_at(file, position, 1).iter().map(|byte| byte ^ bits).collect();
        self.overwrite(file, position, &turned);
    }

    /// Puts bytes over what a file has at `position`, as no write of anybody did. A file does not grow.
    pub fn overwrite(&mut self, file: FileId, position: u64, bytes: &[u8]) {
        for state in [&mut self.live, &mut self.durable] {
            let Some(pages) = state.files.get_mut(&file) else { continue };
            let mut at = position as usize;
            let mut rest = bytes;
            while !rest.is_empty()
                && let Some(place) = pages.pages.get_mut(at / PAGE_BYTES)
            {
                let within = at % PAGE_BYTES;
                let (now, later) = rest.split_at(rest.len().min(PAGE_BYTES - within));
                let mut page = place.as_deref().copied().unwrap_or([0; PAGE_BYTES]);
                page[within..within + now.len()].copy_from_slice(now);
                *place = page_of(&page);
                (at, rest) = (at + now.len(), later);
            }
        }
    }

    /// Takes a file away, name and all. False: there is none.
    pub fn lose_file(&mut self, name: &Path) -> bool {
        let mut was_there = false;
        for state in [&mut self.live, &mut self.durable] {
            if let Some(file) = state.names.remove(name) {
                state.files.remove(&file);
                was_there = true;
            }
        }
        was_there
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
        there.is_some_and(|there| std::iter::zip(there, &write.after).all(|(a, b)| is_same(a, b)))
    }

    fn put(&mut self, file: FileId, first_page: usize, pages: &[Option<Page>]) {
        for state in [&mut self.live, &mut self.durable] {
            if let Some(file) = state.files.get_mut(&file) {
                file.put(first_page, pages);
            }
        }
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
