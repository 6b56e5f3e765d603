//! The files of a WAL: opened, and what their pages say of the segments they hold; cleared away when they
//! hold none.

use std::io;

use rustmq_planted::{Bug, planted};
use rustmq_sys::file::File;
use rustmq_sys::fs;
use rustmq_wal::recovery::FileClues;
use rustmq_wal::{SEGMENT_HEADER_BYTES, SegmentHeader, SegmentState, Slot};

use super::{FILES_AT_ONCE, Recovery};
use crate::error::ShardError;
use crate::notify::all;

impl Recovery<'_> {
    /// Opens every segment file and reads the pages that say which segment it holds.
    pub(super) async fn read_clues(&mut self) -> Result<Vec<FileClues>, ShardError> {
        let dir = &self.setup.dir;
        let names = match fs::list(dir).await {
            Ok(names) => {
                // Whoever made these names may have been killed before they were durable.
                if !planted(Bug::NamesNotDurable) {
                    fs::sync_dir(dir).await.map_err(|error| self.device("flushing", &error))?;
                }
                names
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir(dir).await.map_err(|error| self.device("creating", &error))?;
                let parent = dir.parent().unwrap_or(dir);
                if !planted(Bug::NamesNotDurable) {
                    fs::sync_dir(parent).await.map_err(|error| self.device("creating", &error))?;
                }
                Vec::new()
            }
            Err(error) => return Err(self.device("listing", &error)),
        };
        let slots: Vec<Slot> = names.iter().filter_map(|name| Slot::from_file_name(name)).collect();
        let mut clues = Vec::new();
        for slots in slots.chunks(FILES_AT_ONCE) {
            for read in all(slots.iter().map(|slot| self.read_clue(*slot))).await {
                let (file, clue) = read?;
                self.files.insert(clue.slot, file);
                clues.push(clue);
            }
        }
        Ok(clues)
    }

    async fn read_clue(&self, slot: Slot) -> Result<(File, FileClues), ShardError> {
        const PAGE: u64 = SEGMENT_HEADER_BYTES as u64;
        let file = fs::open(&self.path(slot)).await;
        let file = file.map_err(|error| self.device("opening a segment in", &error))?;
        let bytes = file.bytes();
        // A file of another size was never finished, or was cut: it has no last page.
        let pages = match bytes {
            0..PAGE => [0..0, 0..0, 0..0],
            _ if bytes < 2 * PAGE => [0..PAGE, 0..0, 0..0],
            _ if bytes != self.setup.segment_bytes => [0..PAGE, PAGE..2 * PAGE, 0..0],
            _ => [0..PAGE, PAGE..2 * PAGE, bytes - PAGE..bytes],
        };
        let [header, first, last] = pages;
        let (header_page, at) = self.read(&file, header.clone()).await?;
        let header_page = match header.is_empty() {
            true => &[0; SEGMENT_HEADER_BYTES][..],
            false => &header_page[at..],
        };
        let clue = match SegmentHeader::decode(header_page) {
            // The others are read only to make up headers that say nothing.
            Ok(header) if header.state == SegmentState::Active => {
                let (last, at) = self.read(&file, last).await?;
                FileClues::new(slot, header_page, &[], &last[at..])
            }
            _ => {
                let (first, first_at) = self.read(&file, first).await?;
                let (last, last_at) = self.read(&file, last).await?;
                FileClues::new(slot, header_page, &first[first_at..], &last[last_at..])
            }
        };
        Ok((file, clue))
    }

    /// The header of a file that this start itself has made a spare.
    pub(super) async fn given_back(&self, slot: Slot) -> Result<Option<SegmentHeader>, ShardError> {
        let file = self.file(slot);
        if file.bytes() != self.setup.segment_bytes {
            // Making it was cut off, or the disk was full.
            return Ok(None);
        }
        let (page, at) = self.read(&file, 0..SEGMENT_HEADER_BYTES as u64).await?;
        let header = SegmentHeader::decode(&page[at..]).ok();
        Ok(header.filter(|header| header.state == SegmentState::Spare))
    }

    /// Files that hold nothing are made anew when they are needed. When records are missing they may
    /// be in one whose header is damaged: those are put aside, for whoever can repair them.
    pub(super) async fn clear(
        &mut self,
        unused: Vec<Slot>,
        missing: bool,
    ) -> Result<(), ShardError> {
        for slot in unused {
            self.files.remove(&slot);
            let path = self.setup.dir.join(slot.file_name());
            let cleared = match missing {
                true => fs::rename(&path, path.with_extension("damaged")).await,
                false => fs::remove(&path).await,
            };
            cleared.map_err(|error| self.device("clearing an unused file in", &error))?;
        }
        Ok(())
    }
}
