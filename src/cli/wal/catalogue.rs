//! The catalogue beside a WAL: which topics there are, and which were deleted.

use std::fs;
use std::io::{ErrorKind, Read};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustmq_metadata::{Image, replay};
use rustmq_wal::catalogue::CATALOGUE_BYTES_MAX;
use rustmq_wal::{CatalogueFile, open_catalogue};

/// What the catalogue in a directory says; `None` when there is none.
pub(super) fn read(dir: &Path) -> Result<Option<Image>> {
    let mut files = [read_file(dir, CatalogueFile::A)?, read_file(dir, CatalogueFile::B)?];
    // A start makes a file that is missing anew, of zeroes.
    let bytes = files.iter().map(Vec::len).max().unwrap_or_default();
    if bytes == 0 {
        return Ok(None);
    }
    for file in files.iter_mut().filter(|file| file.is_empty()) {
        file.resize(bytes, 0);
    }
    let [a, b] = &files;
    let Some(log) = open_catalogue(a, b)? else { return Ok(None) };
    Ok(Some(replay(log.snapshot, &log.commands)?))
}

/// A file whole; nothing when it is missing.
fn read_file(dir: &Path, file: CatalogueFile) -> Result<Vec<u8>> {
    let path = dir.join(file.file_name());
    let opened = match fs::File::open(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        opened => opened.with_context(|| format!("opening {}", path.display()))?,
    };
    let mut bytes = Vec::new();
    let read = opened.take(CATALOGUE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes);
    read.with_context(|| format!("reading {}", path.display()))?;
    ensure!(
        bytes.len() <= CATALOGUE_BYTES_MAX,
        "{} is longer than the {CATALOGUE_BYTES_MAX} bytes that are allowed",
        path.display()
    );
    Ok(bytes)
}
