//! What live segments hold: where a partition's entries lie, by footer or index, and the bytes there.

use std::io;
use std::ops::Range;
use std::rc::Rc;

use bytes::Bytes;
use rustmq_protocol::TopicPartition;
use rustmq_sys::buffer::Slice;
use rustmq_sys::file::File;
use rustmq_wal::read_plan::Piece;
use rustmq_wal::{
    BlockSequence, FooterTrailer, IndexPoint, Scan, ScanError, SegmentHeader, SegmentIndex,
    SegmentSequence, Slot, footer,
};

use super::SegmentFiles;
use crate::index_cache::Table;
use crate::segment_io::{read_pieces, read_range, store_footer};

impl SegmentFiles {
    /// Picks from the data entries of one partition in one live segment, which are in memory or in
    /// its footer. `None` when the segment is gone or its footer cannot be read now.
    pub(crate) async fn pick_points<R>(
        &self,
        sequence: SegmentSequence,
        partition: TopicPartition,
        pick: impl FnOnce(&[IndexPoint]) -> R,
    ) -> io::Result<Option<R>> {
        let header = {
            let segments = self.segments.borrow();
            let Some(segment) = segments.segment(sequence) else { return Ok(None) };
            let active = segments.active().expect("there is a live segment").header.sequence;
            if sequence == active {
                return Ok(Some(pick(self.index.borrow().points(partition))));
            }
            segment.header
        };
        if let Some(index) = self.unfooted.borrow().get(&sequence) {
            return Ok(Some(pick(index.points(partition))));
        }
        if let Some(points) = self.footer_points(&header, partition).await? {
            return Ok(Some(pick(&points)));
        }
        let index = self.index_anew(sequence).await?;
        Ok(index.map(|index| pick(index.points(partition))))
    }

    /// Makes the index of a sealed segment whose footer is damaged from its blocks, and writes the
    /// footer again. `None`: the segment is gone.
    async fn index_anew(&self, sequence: SegmentSequence) -> io::Result<Option<Rc<SegmentIndex>>> {
        let (header, next) = {
            let segments = self.segments.borrow();
            let Some(segment) = segments.segment(sequence) else { return Ok(None) };
            (segment.header, segments.segment(sequence.next()).map(|next| next.header))
        };
        if self.indexing.replace(true) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let made = self.index_of_blocks(&header, next).await;
        self.indexing.set(false);
        let Some(index) = made? else { return Ok(None) };
        self.unfooted.borrow_mut().insert(sequence, Rc::clone(&index));
        Ok(Some(index))
    }

    async fn index_of_blocks(
        &self,
        header: &SegmentHeader,
        next: Option<SegmentHeader>,
    ) -> io::Result<Option<Rc<SegmentIndex>>> {
        let file = self.file(header.slot);
        let path = self.dir.join(header.slot.file_name());
        tracing::warn!(
            file = %path.display(),
            "the footer of a segment is damaged: its index is made anew from its blocks"
        );
        let durable_end = next.map_or(BlockSequence::FIRST, |next| next.first_block);
        let mut scan = Scan::new(header, durable_end);
        while let Some(range) = scan.next_read() {
            let position = range.start;
            let (bytes, at) = read_range(&file, range, &self.read_pool).await?;
            match scan.feed(position, &bytes[at..], |_, _| {}) {
                Ok(()) => {}
                // What is lost is named when it is asked for.
                Err(ScanError::Corruption(_)) => {
                    if !scan.skip_corruption() {
                        break;
                    }
                }
                Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
            }
        }
        let end = scan.finish();
        let is_live = {
            let segments = self.segments.borrow();
            let now = segments.segment(header.sequence);
            now.is_some_and(|now| now.header.generation == header.generation)
        };
        if !is_live {
            return Ok(None);
        }
        if let Some(segment_end) = end.segment_end() {
            self.footing.borrow_mut().insert(header.sequence);
            let stored = store_footer(&file, header, &end.index, &segment_end, &self.pool).await;
            self.footing.borrow_mut().remove(&header.sequence);
            stored?;
        }
        Ok(Some(Rc::new(end.index)))
    }

    /// Reads pieces of one live segment, side by side. When most of the memory for reading is pinned
    /// by slow consumers, the answer is a copy outside of it.
    pub(crate) async fn read(&self, slot: Slot, pieces: &[Piece]) -> io::Result<Vec<Bytes>> {
        let file = self.file(slot);
        let pages = read_pieces(&file, pieces, &self.read_pool).await?;
        self.count_read(pages.iter().map(|pages| pages.len()).sum());
        let pressed = self.reading_is_pressed();
        let out = |pages: Slice| match pressed {
            true => Bytes::copy_from_slice(&pages),
            false => pages.into_bytes(),
        };
        Ok(pages.into_iter().map(out).collect())
    }

    /// Is most of the memory for reading in use?
    pub(crate) fn reading_is_pressed(&self) -> bool {
        self.read_pool.budget_bytes() / 2 < self.read_pool.used_bytes()
    }

    /// Bytes that one buffer for reading holds; larger ones are made as needed.
    pub(crate) fn read_buffer_bytes(&self) -> usize {
        self.read_pool.buffer_bytes()
    }

    /// Bytes that were read for consumers, footers included.
    pub(crate) fn read_bytes(&self) -> u64 {
        self.read_bytes.get()
    }

    fn count_read(&self, bytes: usize) {
        self.read_bytes.set(self.read_bytes.get() + bytes as u64);
    }

    async fn footer_points(
        &self,
        header: &SegmentHeader,
        partition: TopicPartition,
    ) -> io::Result<Option<Rc<[IndexPoint]>>> {
        if let Some(points) = self.footers.borrow_mut().points(header.sequence, partition) {
            return Ok(Some(points));
        }
        let Some(table) = self.footer_table(header).await? else { return Ok(None) };
        let Some(line) = footer::find_line(&table.lines, partition) else {
            return Ok(Some(Rc::from([])));
        };
        let file = self.file(header.slot);
        let points = table.trailer.points_range(line);
        let (bytes, at) = self.read_footer(&file, points).await?;
        let Ok(points) = line.decode_points(&bytes[at..], header.generation) else {
            return Ok(None);
        };
        let points: Rc<[IndexPoint]> = points.into();
        self.footers.borrow_mut().put_points(header.sequence, partition, &points);
        Ok(Some(points))
    }

    async fn footer_table(&self, header: &SegmentHeader) -> io::Result<Option<Rc<Table>>> {
        if let Some(table) = self.footers.borrow_mut().table(header.sequence) {
            return Ok(Some(table));
        }
        let file = self.file(header.slot);
        let trailer_at = header.segment_bytes - rustmq_wal::FOOTER_TRAILER_BYTES as u64;
        let page = trailer_at..header.segment_bytes;
        let (page, at) = self.read_footer(&file, page).await?;
        let Ok(trailer) = FooterTrailer::decode(&page[at..], header) else {
            return Ok(None);
        };
        let (bytes, at) = self.read_footer(&file, trailer.table_range()).await?;
        let Ok(lines) = trailer.decode_table(&bytes[at..], header.generation) else {
            return Ok(None);
        };
        let table = Rc::new(Table { trailer, lines });
        self.footers.borrow_mut().put_table(header.sequence, &table);
        Ok(Some(table))
    }

    async fn read_footer(&self, file: &File, range: Range<u64>) -> io::Result<(Slice, usize)> {
        let (pages, at) = read_range(file, range, &self.read_pool).await?;
        self.count_read(pages.len());
        Ok((pages, at))
    }
}
