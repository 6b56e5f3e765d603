//! Reading a segment from front to back: the next pieces are on their way while one is looked at.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::task::Poll;

use rustmq_sys::buffer::{BufferPool, Slice};
use rustmq_sys::file::File;

use crate::segment_io::{read_range, take_buffer};

/// Bytes of one piece: one buffer of the pool that recovery reads with.
const PIECE_BYTES: u64 = 1 << 20;

/// Pieces on their way or looked at. Four keep a disk busy, and the checksums of one take less time than
/// it needs for the next.
const PIECES_AHEAD: usize = 4;

/// A file that is read once, in whole pages. A task owns it; dropped early, what is on its way is left to
/// the runtime.
///
/// Invariant: the pieces lie one behind another, and `next` behind the last of them.
pub(crate) struct ReadThrough<'a> {
    file: &'a File,
    pool: &'a BufferPool,
    /// Where reading ahead ends. What is asked for behind it is read all the same.
    end: u64,
    pieces: VecDeque<Piece<'a>>,
    next: u64,
    /// Where what was handed out last began, if that was less than was asked for.
    short: Option<u64>,
}

struct Piece<'a> {
    range: Range<u64>,
    state: State<'a>,
}

enum State<'a> {
    Reading(Pin<Box<dyn Future<Output = io::Result<Slice>> + 'a>>),
    Read(Slice),
    /// Told to whoever asks for this piece, and to nobody else.
    Failed(io::Error),
}

impl<'a> ReadThrough<'a> {
    /// Reads ahead as far as `end`.
    pub(crate) fn new(file: &'a File, pool: &'a BufferPool, end: u64) -> Self {
        Self { file, pool, end, pieces: VecDeque::new(), next: 0, short: None }
    }

    /// Bytes of the file from the beginning of this range on: all of it, or first as much as is at hand
    /// already. Who asks for the same once more gets all.
    pub(crate) async fn read(&mut self, range: Range<u64>) -> io::Result<Slice> {
        while self.pieces.front().is_some_and(|piece| piece.range.end <= range.start) {
            self.pieces.pop_front();
        }
        let begins = self.pieces.front().map_or(self.next, |piece| piece.range.start);
        if range.start < begins {
            // It was passed already: once in a while damage is looked at twice.
            return self.read_alone(range).await;
        }
        if self.pieces.is_empty() {
            self.next = range.start;
        }
        let whole = self.short.take() == Some(range.start);
        self.fill(&range, whole);
        let Some(first) = self.pieces.front().map(|piece| piece.range.end) else {
            return self.read_alone(range).await;
        };
        if range.end <= first || !whole {
            let bytes = self.front().await?;
            self.short = (first < range.end).then_some(range.start);
            let piece = &self.pieces[0].range;
            let from = (range.start - piece.start) as usize;
            return Ok(bytes.slice(from..(range.end.min(piece.end) - piece.start) as usize));
        }
        self.join(range).await
    }

    /// Begins to read what is missing: ahead, and as far as is asked for.
    fn fill(&mut self, range: &Range<u64>, whole: bool) {
        let wanted = if whole { range.end } else { range.start + 1 };
        while self.next < wanted || self.pieces.len() < PIECES_AHEAD && self.next < self.end {
            let end = (self.next + PIECE_BYTES).min(self.end.max(range.end));
            let piece = self.next..end;
            let (file, pool, reads) = (self.file, self.pool, piece.clone());
            let reading = async move {
                let bytes = (reads.end - reads.start) as usize;
                read_range(file, reads, pool).await.map(|(slice, at)| slice.slice(at..at + bytes))
            };
            self.pieces.push_back(Piece { range: piece, state: State::Reading(Box::pin(reading)) });
            self.next = end;
        }
    }

    /// The bytes of the first piece. The others go on meanwhile.
    async fn front(&mut self) -> io::Result<Slice> {
        poll_fn(|cx| {
            for piece in &mut self.pieces {
                let State::Reading(reading) = &mut piece.state else { continue };
                match reading.as_mut().poll(cx) {
                    Poll::Ready(Ok(bytes)) => piece.state = State::Read(bytes),
                    Poll::Ready(Err(error)) => piece.state = State::Failed(error),
                    Poll::Pending => {}
                }
            }
            let first = self.pieces.front_mut().expect("somebody asks for a piece that there is");
            match &mut first.state {
                State::Read(bytes) => Poll::Ready(Ok(bytes.clone())),
                State::Failed(error) => Poll::Ready(Err(io::Error::from(error.kind()))),
                State::Reading(_) => Poll::Pending,
            }
        })
        .await
    }

    /// A range over several pieces, copied. Those that it passes are done with.
    async fn join(&mut self, range: Range<u64>) -> io::Result<Slice> {
        let bytes = (range.end - range.start) as usize;
        let mut joined = take_buffer(self.pool, bytes)?;
        let mut filled = 0;
        loop {
            let part = self.front().await?;
            let piece = self.pieces[0].range.clone();
            let from = (range.start.max(piece.start) - piece.start) as usize;
            let to = (range.end.min(piece.end) - piece.start) as usize;
            joined[filled..filled + to - from].copy_from_slice(&part[from..to]);
            filled += to - from;
            if filled == bytes {
                return Ok(joined.freeze().slice(0..bytes));
            }
            self.pieces.pop_front();
        }
    }

    async fn read_alone(&self, range: Range<u64>) -> io::Result<Slice> {
        let bytes = (range.end - range.start) as usize;
        let (slice, at) = read_range(self.file, range, self.pool).await?;
        Ok(slice.slice(at..at + bytes))
    }
}
