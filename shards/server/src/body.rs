//! The bytes of a frame's body, still in the buffers that the socket filled, or the disk, or a producer.

use std::cell::RefCell;
use std::collections::VecDeque;

use bytes::Bytes;

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
