//! The two files of the catalogue on disk.

use std::io;
use std::path::{Path, PathBuf};

use rustmq_metadata::{Command, Image, encode_command, encode_image, replay};
use rustmq_planted::{Bug, planted};
use rustmq_sys::buffer::BufferPool;
use rustmq_sys::file::File;
use rustmq_sys::fs;
use rustmq_wal::Generation;
use rustmq_wal::catalogue::{
    CATALOGUE_BYTES_MAX, CatalogueError, CatalogueFile, CataloguePlan, CatalogueWrite,
    CatalogueWriter, CommandEffect, newer_file, open_catalogue, open_newer,
};

use crate::error::ShardError;
use crate::random;
use crate::segment_io::{read_range, take_buffer};

/// The most memory for making a file and for writing a snapshot, in files. It is taken only then.
const POOL_FILES: usize = 4;

/// The catalogue is read in pieces of so many bytes, and its small writes take as much.
const CHUNK_BYTES: usize = 1 << 20;

/// The catalogue's files and their writer.
pub(super) struct CatalogueLogFiles {
    dir: PathBuf,
    a: File,
    b: File,
    writer: CatalogueWriter,
    pool: BufferPool,
    scratch: Vec<u8>,
}

impl CatalogueLogFiles {
    /// Opens the catalogue in a data directory, or makes its files. `None` instead of an image: it
    /// has never been written. New files have `file_bytes`.
    pub(super) async fn open(
        dir: &Path,
        file_bytes: usize,
    ) -> Result<(Self, Option<Image>), ShardError> {
        let pool = BufferPool::new(POOL_FILES * file_bytes, CHUNK_BYTES.min(file_bytes));
        let device = |error: io::Error| ShardError::Device {
            doing: "opening the catalogue in",
            dir: dir.to_owned(),
            error: error.to_string(),
        };
        let a = open_or_create(dir, CatalogueFile::A, file_bytes, &pool).await.map_err(device)?;
        let b = open_or_create(dir, CatalogueFile::B, file_bytes, &pool).await.map_err(device)?;
        // Its names, and those of the WALs beside it, may have been made by a process that was killed
        // before they were durable.
        if !planted(Bug::NamesNotDurable) {
            fs::sync_dir(dir).await.map_err(device)?;
        }
        let newer = newer(&a, &b, &pool).await.map_err(device)?;
        let alone = match newer {
            Some((CatalogueFile::A, end)) => read_front(&a, end, &pool).await.map_err(device)?,
            Some((CatalogueFile::B, end)) => read_front(&b, end, &pool).await.map_err(device)?,
            None => Vec::new(),
        };
        let refused = |why: String| ShardError::Refused { dir: dir.to_owned(), why };
        let both;
        let file_bytes_of = |file| match file {
            CatalogueFile::A => a.bytes() as usize,
            CatalogueFile::B => b.bytes() as usize,
        };
        let read = newer.and_then(|(file, _)| open_newer(file, &alone, file_bytes_of(file)));
        let log = match read {
            Some(log) => Some(log),
            None => {
                let whole_a = read_whole(&a, &pool).await.map_err(device)?;
                both = (whole_a, read_whole(&b, &pool).await.map_err(device)?);
                open_catalogue(&both.0, &both.1).map_err(|error| match error {
                    CatalogueError::NewerVersion { .. } => {
                        refused(format!("the catalogue: {error}"))
                    }
                    _ => refused(format!(
                        "the catalogue: {error}: restore both of its files from a copy of one moment; \
                         without them nobody can tell which topics there were"
                    )),
                })?
            }
        };
        let (writer, image) = match &log {
            None => (CatalogueWriter::create(file_bytes), None),
            Some(log) => {
                let image = replay(log.snapshot, &log.commands);
                let image = image.map_err(|error| refused(error.to_string()))?;
                (CatalogueWriter::resume(log), Some(image))
            }
        };
        drop(log);
        let scratch = Vec::new();
        Ok((Self { dir: dir.to_owned(), a, b, writer, pool, scratch }, image))
    }

    /// Makes commands durable; `image` is the state before them. False: there is no room.
    pub(super) async fn write(
        &mut self,
        image: &Image,
        commands: &[&Command],
        effect: CommandEffect,
    ) -> Result<bool, ShardError> {
        let encoded: Vec<Vec<u8>> = commands
            .iter()
            .map(|command| {
                let mut bytes = Vec::new();
                encode_command(command, &mut bytes);
                bytes
            })
            .collect();
        let slices: Vec<&[u8]> = encoded.iter().map(Vec::as_slice).collect();
        let lengths: Vec<usize> = encoded.iter().map(Vec::len).collect();
        let mut snapshot = Vec::new();
        encode_image(image, &mut snapshot);
        match self.writer.plan(snapshot.len(), &lengths, effect) {
            CataloguePlan::Full => return Ok(false),
            CataloguePlan::Append => {
                let write = self.writer.append(&slices, &mut self.scratch);
                self.store(write).await?;
            }
            CataloguePlan::Switch => {
                let generation = Generation(random::number());
                let write = self.writer.switch(generation, &snapshot, &slices, &mut self.scratch);
                self.store(write).await?;
                if let Some(write) = self.writer.retire(&mut self.scratch) {
                    self.store(write).await?;
                }
            }
        }
        Ok(true)
    }

    /// Records that the last command is durable, if nothing does so yet.
    pub(super) async fn mark(&mut self) -> Result<(), ShardError> {
        if !self.writer.wants_mark() {
            return Ok(());
        }
        let write = self.writer.mark(&mut self.scratch);
        self.store(write).await
    }

    /// Writes what was just encoded, flushes, and tells the writer.
    async fn store(&mut self, write: CatalogueWrite) -> Result<(), ShardError> {
        let device = |error: io::Error| ShardError::Device {
            doing: "writing the catalogue in",
            dir: self.dir.clone(),
            error: error.to_string(),
        };
        let bytes = self.scratch.len();
        let mut buffer = take_buffer(&self.pool, bytes).map_err(device)?;
        buffer[..bytes].copy_from_slice(&self.scratch);
        let memory = buffer.freeze().slice(0..bytes);
        let file = match write.file {
            CatalogueFile::A => &self.a,
            CatalogueFile::B => &self.b,
        };
        file.write_durable(memory, write.position).await.map_err(device)?;
        self.writer.handle_flushed();
        Ok(())
    }
}

/// The file that is to be read first, and how much of it, by the headers of both.
async fn newer(
    a: &File,
    b: &File,
    pool: &BufferPool,
) -> io::Result<Option<(CatalogueFile, usize)>> {
    const PAGE: u64 = rustmq_sys::buffer::ALIGN as u64;
    let (page_a, at_a) = read_range(a, 0..PAGE.min(a.bytes()), pool).await?;
    let (page_b, at_b) = read_range(b, 0..PAGE.min(b.bytes()), pool).await?;
    Ok(newer_file((&page_a[at_a..], a.bytes()), (&page_b[at_b..], b.bytes())))
}

async fn read_whole(file: &File, pool: &BufferPool) -> io::Result<Vec<u8>> {
    read_front(file, usize::try_from(file.bytes()).unwrap_or(usize::MAX), pool).await
}

/// The beginning of a file. Much of it is zeroes, which take neither memory nor the time to touch it.
async fn read_front(file: &File, file_bytes: usize, pool: &BufferPool) -> io::Result<Vec<u8>> {
    if CATALOGUE_BYTES_MAX < file_bytes {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("a file of the catalogue has {file_bytes} bytes, of {CATALOGUE_BYTES_MAX}"),
        ));
    }
    let mut whole = vec![0; file_bytes];
    for start in (0..whole.len()).step_by(CHUNK_BYTES) {
        let end = whole.len().min(start + CHUNK_BYTES);
        let (bytes, at) = read_range(file, start as u64..end as u64, pool).await?;
        let read = &bytes[at..][..end - start];
        if read.iter().any(|byte| *byte != 0) {
            whole[start..end].copy_from_slice(read);
        }
    }
    Ok(whole)
}

/// Opens a file of the catalogue; makes it when it is missing, of full size and zeroed, so that a
/// full disk never keeps a command from being written.
async fn open_or_create(
    dir: &Path,
    file: CatalogueFile,
    file_bytes: usize,
    pool: &BufferPool,
) -> io::Result<File> {
    let path = dir.join(file.file_name());
    match fs::open(&path).await {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        // It is made under another name and renamed whole, so a short one was damaged later.
        Ok(file) if file.bytes() < file_bytes as u64 => {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "{} has {} bytes and must have {file_bytes}: restore it from a copy",
                    path.display(),
                    file.bytes()
                ),
            ));
        }
        opened => return opened,
    }
    let made = dir.join(format!("{}.new", file.file_name()));
    if let Err(error) = fs::remove(&made).await
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(error);
    }
    let created = fs::create(&made, file_bytes as u64).await?;
    let mut buffer = take_buffer(pool, file_bytes)?;
    buffer.fill(0);
    created.write_durable(buffer.freeze(), 0).await?;
    fs::rename(&made, &path).await?;
    fs::open(&path).await
}
