//! Names of files and folders: changed at once, durable in their order once their folder is flushed.

use std::io;
use std::path::{Path, PathBuf};

use super::{Disk, FileId, Pages, State};

#[derive(Clone)]
pub(super) enum Change {
    Link(PathBuf, FileId),
    Rename(PathBuf, PathBuf),
    Unlink(PathBuf),
    Folder(PathBuf),
}

impl Disk {
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
}

impl State {
    pub(super) fn apply(&mut self, change: &Change) {
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
