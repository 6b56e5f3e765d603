//! What a crash leaves of a disk.

use std::collections::BTreeSet;

use super::{Disk, FileId, PAGE_BYTES, Pages, WriteState, is_same};
use crate::sim::choice::Choice;

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

    /// Pages that are read as a write left them whose flush failed: file, and position in bytes. No later
    /// flush makes them durable.
    pub fn forgotten_pages(&self) -> impl Iterator<Item = (FileId, u64)> {
        let forgotten = self.pending.iter().filter(|write| write.state == WriteState::Forgotten);
        forgotten.flat_map(|write| {
            let live = self.live.files.get(&write.file);
            let durable = self.durable.files.get(&write.file);
            let page_of = |pages: Option<&Pages>, page: usize| pages?.pages.get(page)?.clone();
            (write.first_page..).zip(&write.pages).filter_map(move |(page, written)| {
                let is_read = is_same(&page_of(live, page), written);
                let is_durable = is_same(&page_of(durable, page), written);
                (is_read && !is_durable).then_some((write.file, (page * PAGE_BYTES) as u64))
            })
        })
    }

    /// The writes that are not durable yet: file, position and length in bytes, oldest first.
    pub fn pending_places(&self) -> impl Iterator<Item = (FileId, u64, u64)> {
        self.pending.iter().map(|write| {
            let position = (write.first_page * PAGE_BYTES) as u64;
            (write.file, position, (write.pages.len() * PAGE_BYTES) as u64)
        })
    }
}
