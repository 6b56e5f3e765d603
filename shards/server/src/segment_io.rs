//! One segment file: made, given a header and a footer, read.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use rustmq_planted::{Bug, planted};
use rustmq_sys::buffer::{Buffer, BufferPool, Slice};
use rustmq_sys::file::File;
use rustmq_sys::fs;
use rustmq_sys::runtime;
use rustmq_wal::reach::{REACH_BYTES, decode_reach, encode_reach, reach_position};
use rustmq_wal::read_plan::Piece;
use rustmq_wal::{
    FOOTER_TRAILER_BYTES, SEGMENT_HEADER_BYTES, SegmentEnd, SegmentHeader, SegmentIndex, Slot,
    WalId, encode_footer, footer_bytes,
};

use crate::limits::{ZERO_CHUNK_BYTES, ZERO_PAUSE_MS};
use crate::notify::all;

/// Writes the footer of a sealed segment: its body, flushed, and only then the trailer, flushed. A
/// crash leaves no trailer whose body is torn.
pub(crate) async fn store_footer(
    file: &File,
    header: &SegmentHeader,
    index: &SegmentIndex,
    end: &SegmentEnd,
    pool: &BufferPool,
) -> io::Result<()> {
    let bytes = footer_bytes(index.partition_count(), index.point_count());
    let mut buffer = take_buffer(pool, bytes)?;
    encode_footer(index, header, end, &mut buffer[..bytes]);
    let memory = buffer.freeze();
    let body_bytes = bytes - FOOTER_TRAILER_BYTES;
    let begin = header.segment_bytes - bytes as u64;
    if 0 < body_bytes {
        file.write_durable(memory.slice(0..body_bytes), begin).await?;
    }
    file.write_durable(memory.slice(body_bytes..bytes), begin + body_bytes as u64).await
}

/// Makes a segment file: of full size, zeroed, with a spare's header, durable with its name.
pub(crate) async fn create_segment(
    dir: &Path,
    wal: WalId,
    slot: Slot,
    bytes: u64,
    pool: &BufferPool,
    pause: bool,
) -> io::Result<File> {
    let path = dir.join(slot.file_name());
    // What an attempt before left behind is not a segment: its header was not written.
    if let Err(error) = fs::remove(&path).await
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(error);
    }
    let file = fs::create(&path, bytes).await?;
    let zeroed = zero(&file, bytes, pool, pause).await;
    let made = match zeroed {
        Ok(()) => write_header(&file, &SegmentHeader::spare(wal, slot, bytes), pool).await,
        Err(error) => Err(error),
    };
    if let Err(error) = made {
        // The space goes back; if that fails too, the next attempt removes the file.
        let _ = fs::remove(&path).await;
        return Err(error);
    }
    if !planted(Bug::NamesNotDurable) {
        fs::sync_dir(dir).await?;
    }
    Ok(file)
}

async fn zero(file: &File, bytes: u64, pool: &BufferPool, pause: bool) -> io::Result<()> {
    let mut buffer = take_buffer(pool, ZERO_CHUNK_BYTES.min(bytes as usize))?;
    buffer.fill(0);
    let zeroes = buffer.freeze();
    let mut position = 0;
    while position < bytes {
        let count = (bytes - position).min(ZERO_CHUNK_BYTES as u64);
        file.write(zeroes.slice(0..count as usize), position).await?;
        position += count;
        if pause {
            runtime::sleep(Duration::from_millis(ZERO_PAUSE_MS)).await;
        }
    }
    file.flush().await
}

/// Writes a segment's header, durably.
pub(crate) async fn write_header(
    file: &File,
    header: &SegmentHeader,
    pool: &BufferPool,
) -> io::Result<()> {
    file.write_durable(header_page(header, pool)?, 0).await
}

/// A segment's header, as it lies at the beginning of its file.
pub(crate) fn header_page(header: &SegmentHeader, pool: &BufferPool) -> io::Result<Slice> {
    let mut buffer = take_buffer(pool, SEGMENT_HEADER_BYTES)?;
    let page = buffer.first_chunk_mut().expect("a buffer has at least a page");
    header.encode(page);
    Ok(buffer.freeze().slice(0..SEGMENT_HEADER_BYTES))
}

/// How far blocks may lie in a segment, by the mark in its last page.
pub(crate) async fn read_reach(
    file: &File,
    header: &SegmentHeader,
    pool: &BufferPool,
) -> io::Result<Option<u64>> {
    if file.bytes() < header.segment_bytes {
        return Ok(None);
    }
    let at = reach_position(header.segment_bytes);
    let (page, from) = read_range(file, at..header.segment_bytes, pool).await?;
    Ok(decode_reach(&page[from..], header))
}

/// Writes a mark, durably.
pub(crate) async fn write_reach(
    file: &File,
    header: &SegmentHeader,
    reach: u64,
    pool: &BufferPool,
) -> io::Result<()> {
    let (page, position) = reach_page(header, reach, pool)?;
    file.write_durable(page, position).await
}

/// The page of a mark, and where it lies.
pub(crate) fn reach_page(
    header: &SegmentHeader,
    reach: u64,
    pool: &BufferPool,
) -> io::Result<(Slice, u64)> {
    let mut buffer = take_buffer(pool, REACH_BYTES)?;
    let page = buffer.first_chunk_mut().expect("a buffer has at least a page");
    encode_reach(header, reach, page);
    Ok((buffer.freeze().slice(0..REACH_BYTES), reach_position(header.segment_bytes)))
}

/// Writes both side by side, each to its position: durable when this returns.
pub(crate) async fn write_both_durable(file: &File, writes: [(Slice, u64); 2]) -> io::Result<()> {
    let writes = writes.into_iter().map(|(memory, position)| file.write_durable(memory, position));
    all(writes).await.into_iter().collect()
}

/// Reads any range of a file; the answer is the pages around it and where in them it begins.
pub(crate) async fn read_range(
    file: &File,
    range: Range<u64>,
    pool: &BufferPool,
) -> io::Result<(Slice, usize)> {
    const PAGE: u64 = rustmq_sys::buffer::ALIGN as u64;
    let start = range.start - range.start % PAGE;
    let end = range.end.next_multiple_of(PAGE);
    let bytes = (end - start) as usize;
    let buffer = take_buffer(pool, bytes.max(PAGE as usize))?;
    let (read, buffer) = file.read(buffer, start, bytes).await;
    let read = read?;
    if (read as u64) < range.end - start {
        return Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            format!("bytes {range:?} were asked for, the file has {}", start + read as u64),
        ));
    }
    Ok((buffer.freeze().slice(0..read), (range.start - start) as usize))
}

/// Reads pieces of a file side by side, into one buffer; the answer is the pages of each.
pub(crate) async fn read_pieces(
    file: &File,
    pieces: &[Piece],
    pool: &BufferPool,
) -> io::Result<Vec<Slice>> {
    let bytes = |piece: &Piece| (piece.pages.end - piece.pages.start) as usize;
    let mut buffer = take_buffer(pool, pieces.iter().map(bytes).sum())?;
    let reads = pieces.iter().map(|piece| {
        let (bytes, part) = (bytes(piece), buffer.cut(bytes(piece)));
        async move {
            let (read, part) = file.read(part, piece.pages.start, bytes).await;
            match read? {
                read if read == bytes => Ok(part.freeze()),
                read => Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    format!("{bytes} bytes were asked for at {}, {read} came", piece.pages.start),
                )),
            }
        }
    });
    all(reads).await.into_iter().collect()
}

/// A buffer of at least this size, or an error that says that memory is used up.
pub(crate) fn take_buffer(pool: &BufferPool, bytes: usize) -> io::Result<Buffer> {
    pool.try_get(bytes).ok_or_else(|| {
        let (used, budget) = (pool.used_bytes(), pool.budget_bytes());
        io::Error::new(
            io::ErrorKind::OutOfMemory,
            format!("{bytes} bytes asked of buffers with {used} of {budget} bytes in use"),
        )
    })
}
