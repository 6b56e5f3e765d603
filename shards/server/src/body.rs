//! The bytes of a frame's body, still in the buffers that the socket filled, or the disk, or a producer.

use std::cell::RefCell;
use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

/// Chunk lists kept for reuse by each thread; more are freed.
const FREE_LISTS_MAX: usize = 1024;

thread_local! {
    static FREE: RefCell<Vec<VecDeque<Bytes>>> = const { RefCell::new(Vec::new()) };
}

/// A chain of slices. Of receive buffers: nothing is copied until the records go into a WAL block. Or of
/// the hot cache and of read buffers: nothing is copied until QUIC builds packets.
///
/// A body may cross to another shard; the list that it leaves behind is reused by the thread that
/// drops it.
#[derive(Debug, Default)]
pub struct Body {
    chunks: VecDeque<Bytes>,
    bytes: usize,
}

impl Body {
    /// An empty body, in a recycled list.
    pub(crate) fn new() -> Self {
        let chunks = FREE.with(|free| free.borrow_mut().pop()).unwrap_or_default();
        Self { chunks, bytes: 0 }
    }

    /// Appends a chunk.
    pub(crate) fn push(&mut self, chunk: Bytes) {
        self.bytes += chunk.len();
        self.chunks.push_back(chunk);
    }

    /// Copies the chunks below `small` bytes together, from the chunk at `from` on: each would hold all of
    /// the buffer that it lies in. Says where the next call begins, after more were appended.
    pub(crate) fn gather(&mut self, from: usize, small: usize) -> usize {
        if self.chunks.range(from..).any(|chunk| chunk.len() < small) {
            let mut run = BytesMut::new();
            for chunk in self.chunks.split_off(from) {
                if chunk.len() < small {
                    run.extend_from_slice(&chunk);
                } else {
                    self.chunks.extend(frozen(&mut run));
                    self.chunks.push_back(chunk);
                }
            }
            self.chunks.extend(frozen(&mut run));
        }
        let last_is_small = self.chunks.back().is_some_and(|last| last.len() < small);
        self.chunks.len() - usize::from(last_is_small)
    }

    /// Is nothing in it?
    pub(crate) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// The chunks, in order.
    pub(crate) fn chunks(&self) -> impl Iterator<Item = &Bytes> {
        self.chunks.iter()
    }

    /// The chunks side by side, for the transport, which takes from the front of them.
    pub(crate) fn chunks_mut(&mut self) -> &mut [Bytes] {
        self.chunks.make_contiguous()
    }

    /// Forgets what the transport took: whole chunks, and bytes of them and of the next.
    pub(crate) fn handle_taken(&mut self, chunks: usize, bytes: usize) {
        self.chunks.drain(..chunks);
        self.bytes -= bytes;
    }

    /// The last chunk that has bytes.
    pub(crate) fn last_mut(&mut self) -> Option<&mut Bytes> {
        self.chunks.iter_mut().rfind(|chunk| !chunk.is_empty())
    }

    /// Bytes held.
    pub(crate) fn len(&self) -> usize {
        self.bytes
    }

    /// Moves the first `bytes` into a body of their own. Panics when there are not as many.
    pub(crate) fn split_to(&mut self, bytes: usize) -> Self {
        assert!(bytes <= self.bytes, "split within the body");
        let mut first = Self::new();
        while first.bytes < bytes {
            let missing = bytes - first.bytes;
            let chunk = self.chunks.front_mut().expect("the chunks add up to the length");
            if chunk.len() <= missing {
                first.push(self.chunks.pop_front().expect("just seen"));
            } else {
                first.push(chunk.split_to(missing));
            }
        }
        self.bytes -= bytes;
        first
    }

    /// Copies `out.len()` bytes from `from` on. Returns false when the body is shorter.
    pub(crate) fn copy_to(&self, from: usize, out: &mut [u8]) -> bool {
        if self.bytes < from + out.len() {
            return false;
        }
        let (mut skip, mut filled) = (from, 0);
        for chunk in &self.chunks {
            if filled == out.len() {
                break;
            }
            if chunk.len() <= skip {
                skip -= chunk.len();
                continue;
            }
            let part = &chunk[skip..];
            let count = part.len().min(out.len() - filled);
            out[filled..filled + count].copy_from_slice(&part[..count]);
            filled += count;
            skip = 0;
        }
        true
    }

    /// The first `N` bytes, if there are as many.
    pub(crate) fn head<const N: usize>(&self) -> Option<[u8; N]> {
        let mut head = [0; N];
        self.copy_to(0, &mut head).then_some(head)
    }

    /// All bytes in one piece; for requests that are rare and small.
    pub(crate) fn to_vec(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.bytes);
        self.chunks.iter().for_each(|chunk| bytes.extend_from_slice(chunk));
        bytes
    }
}

fn frozen(run: &mut BytesMut) -> Option<Bytes> {
    (!run.is_empty()).then(|| std::mem::take(run).freeze())
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        let mut body = Self::new();
        body.push(bytes);
        body
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        let mut chunks = std::mem::take(&mut self.chunks);
        if chunks.capacity() == 0 {
            return;
        }
        chunks.clear();
        // A thread that is shutting down frees the list instead.
        let _ = FREE.try_with(|free| {
            let mut free = free.borrow_mut();
            if free.len() < FREE_LISTS_MAX {
                free.push(chunks);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(chunks: &[&'static str]) -> Body {
        let mut body = Body::new();
        for chunk in chunks {
            body.push(Bytes::from_static(chunk.as_bytes()));
        }
        body
    }

    #[test]
    fn a_split_may_fall_inside_a_chunk() {
        let mut rest = body(&["abc", "def", "g"]);
        let first = rest.split_to(4);
        assert_eq!(first.to_vec(), b"abcd");
        assert_eq!(rest.to_vec(), b"efg");
    }

    #[test]
    fn small_chunks_are_copied_together_and_large_ones_stay_where_they_are() {
        let mut whole = body(&["a", "b", "long", "c", "larger", "d"]);
        let before: Vec<_> = whole.chunks().map(|chunk| chunk.as_ptr()).collect();
        assert_eq!(whole.gather(0, 4), 4, "the last is small and may grow");
        assert_eq!(whole.to_vec(), b"ablongclargerd");
        let chunks: Vec<_> = whole.chunks().cloned().collect();
        assert_eq!(chunks, ["ab", "long", "c", "larger", "d"]);
        assert_eq!((chunks[1].as_ptr(), chunks[3].as_ptr()), (before[2], before[4]));
        assert!([0, 2, 4].iter().all(|copied| !before.contains(&chunks[*copied].as_ptr())));
        whole.push(Bytes::from_static(b"ef"));
        assert_eq!(whole.gather(4, 4), 4);
        whole.push(Bytes::from_static(b"g"));
        assert_eq!(whole.gather(4, 4), 5, "what was gathered is no longer small");
        assert_eq!(whole.to_vec(), b"ablongclargerdefg");
        assert_eq!(whole.chunks().count(), 5);
    }

    #[test]
    fn a_copy_may_begin_anywhere_and_never_reads_past_the_end() {
        let whole = body(&["abc", "def"]);
        let mut out = [0; 3];
        assert!(whole.copy_to(2, &mut out));
        assert_eq!(&out, b"cde");
        assert!(!whole.copy_to(4, &mut out));
        assert_eq!(whole.head::<2>(), Some(*b"ab"));
        assert_eq!(whole.head::<7>(), None);
    }
}
