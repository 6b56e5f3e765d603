//! Reading segment files from end to end, past the page cache, as fast as the device gives them.

use std::collections::VecDeque;
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustmq_sys::buffer::{Buffer, BufferPool};
use rustmq_sys::sequential::{CHUNK_BYTES, CHUNKS, Sequential};

use crate::cli::exit::UsageError;

/// Bytes of a file that are kept behind what was read last: a block of the usual size is read twice
/// without asking the device again.
const BEHIND_BYTES: u64 = 8 << 20;

/// Chunks that one source holds at most: what is kept behind, on both sides, and one that is looked
/// up out of turn.
const HELD_CHUNKS: usize = BEHIND_BYTES as usize / CHUNK_BYTES + 3;

/// Files that are open at once: one that is checked, one read ahead, one looked up meanwhile.
const OPEN_FILES: usize = 3;

/// A segment file that is read from its beginning to its end, with looks back.
pub(super) struct Source {
    file: Sequential,
    /// What was read last, without gaps.
    held: VecDeque<Held>,
    /// Bytes of a range that lies in more than one chunk, or behind all that are held.
    scratch: Vec<u8>,
    /// Parts that the device does not give, taken for zeroes.
    pub(super) unreadable: Vec<(Range<u64>, String)>,
}

/// A chunk of a file.
struct Held {
    start: u64,
    bytes: u64,
    /// None: the device does not give it.
    buffer: Option<Buffer>,
}

/// Memory for the files that one command reads: the same for one after the other.
pub(super) fn memory() -> BufferPool {
    BufferPool::new(OPEN_FILES * (CHUNKS + HELD_CHUNKS) * CHUNK_BYTES, CHUNK_BYTES)
}

/// Files in order. The device reads on in the next one while the last one is looked at.
pub(super) struct Sources<'a> {
    paths: VecDeque<PathBuf>,
    ahead: Option<Source>,
    memory: &'a BufferPool,
}

impl<'a> Sources<'a> {
    pub(super) fn new<'p>(paths: impl Iterator<Item = &'p Path>, memory: &'a BufferPool) -> Self {
        Self { paths: paths.map(Path::to_owned).collect(), ahead: None, memory }
    }

    /// The next of the files.
    pub(super) fn open_next(&mut self) -> Result<Source> {
        let mut open = || match self.paths.pop_front() {
            Some(path) => Source::open(&path, self.memory).map(Some),
            None => Ok(None),
        };
        let next = match self.ahead.take() {
            Some(source) => Some(source),
            None => open()?,
        };
        self.ahead = open()?;
        next.context("no more files")
    }
}

impl Source {
    pub(super) fn open(path: &Path, memory: &BufferPool) -> Result<Self> {
        let file = Sequential::open(path, memory).map_err(|error| unreadable(path, &error))?;
        let (held, scratch) = (VecDeque::new(), Vec::new());
        Ok(Self { file, held, scratch, unreadable: Vec::new() })
    }

    /// The bytes of a range of whole pages within the file.
    pub(super) fn get(&mut self, range: Range<u64>) -> Result<&[u8]> {
        while self.end() < range.end && self.read_on() {}
        if self.held.front().is_none_or(|first| range.start < first.start) {
            self.scratch = self.out_of_turn(range)?;
            return Ok(&self.scratch);
        }
        if self.end() < range.end {
            anyhow::bail!("the file ends earlier than it did a moment ago");
        }
        let is_within = |held: &Held| held.start <= range.start && range.end <= held.end();
        if let Some(at) = self.held.iter().position(|held| held.buffer.is_some() && is_within(held))
        {
            return Ok(self.held[at].slice(&range).expect("it has a buffer"));
        }
        self.scratch.clear();
        for held in &self.held {
            let part = range.start.max(held.start)..range.end.min(held.end());
            if part.is_empty() {
                continue;
            }
            match held.slice(&part) {
                Some(bytes) => self.scratch.extend_from_slice(bytes),
                None => {
                    let bytes = (part.end - part.start) as usize;
                    self.scratch.resize(self.scratch.len() + bytes, 0);
                }
            }
        }
        Ok(&self.scratch)
    }

    /// The bytes of a range of whole pages, beside the reading in order. What the device does not give
    /// is taken for zeroes.
    pub(super) fn out_of_turn(&self, range: Range<u64>) -> Result<Vec<u8>> {
        let bytes = (range.end - range.start) as usize;
        let mut read = match self.file.read_at(range.start, bytes) {
            Ok((buffer, count)) => buffer[..count].to_vec(),
            Err(_) => Vec::new(),
        };
        read.resize(bytes, 0);
        Ok(read)
    }

    /// Reads what is left: what the device does not give is noticed.
    pub(super) fn read_rest(&mut self) {
        while self.read_on() {}
    }

    /// Gives back the memory of what was read.
    pub(super) fn let_go(&mut self) {
        self.held.clear();
    }

    pub(super) fn bytes(&self) -> u64 {
        self.file.bytes()
    }

    /// One past what was read last.
    fn end(&self) -> u64 {
        self.held.back().map_or(0, Held::end)
    }

    fn read_on(&mut self) -> bool {
        let Some(chunk) = self.file.next_chunk() else { return false };
        let start = chunk.position;
        let held = match chunk.bytes {
            Ok((buffer, count)) => Held { start, bytes: count as u64, buffer: Some(buffer) },
            Err(error) => {
                let bytes = (self.file.bytes() - start).min(CHUNK_BYTES as u64);
                self.unreadable.push((start..start + bytes, error.to_string()));
                Held { start, bytes, buffer: None }
            }
        };
        while self.held.front().is_some_and(|first| first.end() + BEHIND_BYTES < start) {
            self.held.pop_front();
        }
        self.held.push_back(held);
        true
    }
}

impl Held {
    fn end(&self) -> u64 {
        self.start + self.bytes
    }

    /// A part of it, if there are bytes.
    fn slice(&self, part: &Range<u64>) -> Option<&[u8]> {
        let buffer = self.buffer.as_ref()?;
        Some(&buffer[(part.start - self.start) as usize..(part.end - self.start) as usize])
    }
}

/// A file or folder that the device does not give.
pub(super) fn unreadable(path: &Path, error: &std::io::Error) -> anyhow::Error {
    UsageError(format!("{} cannot be read: {error}", path.display())).into()
}
