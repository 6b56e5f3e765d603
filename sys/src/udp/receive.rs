//! Buffers that the kernel receives into and the protocol above then owns, without a copy.
//!
//! ```text
//!   buffer (64 KiB) --train received--> | bytes, handed out | empty tail, kept here |
//!                                            dropped by the protocol later -> the tail can take
//!                                            the whole allocation back, without the allocator
//! ```

use std::array;
use std::collections::VecDeque;
use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::UdpSocket;

use bytes::BytesMut;
use quinn_udp::{BATCH_SIZE, RecvMeta, UdpSockRef, UdpSocketState};

use super::DatagramMeta;

/// 64 KiB: the longest train there is.
pub const RECEIVE_BUFFER_BYTES: usize = 64 * 1024;

/// 32: the most trains one system call receives.
pub const TRAINS_MAX: usize = BATCH_SIZE;

/// 128 KiB: what one system call should receive at most, a tenth of a millisecond of work. As trains
/// differ in length, the next call asks for fewer of them when one brought more.
const CALL_BYTES: usize = 128 * 1024;

/// 2 KiB: shorter trains are copied, so that an acknowledgement does not keep 64 KiB busy.
const COPY_BELOW_BYTES: usize = 2 * 1024;

/// Buffers that short trains are copied to, one after another: a connection that keeps what it was
/// given can pin all of them, and then copies are allocated again.
const SHORT_BUFFERS: usize = 4;

/// How many tails are tried before another buffer is made: the oldest were handed out first and are
/// the likeliest to be free.
const RECLAIM_TRIES: usize = 4;

/// The receive buffers of one shard, of a fixed budget.
///
/// At the limit, when the protocol keeps them all, trains are copied to memory of just their size,
/// which the protocol's own flow control bounds.
/// All memory is asked for at the start. Invariants: `ready` and `spare` are empty and whole, `tails`
/// are those handed out; the three together are `buffers_max`, and never fewer than one is ready.
pub struct ReceiveBuffers {
    ready: VecDeque<BytesMut>,
    tails: VecDeque<BytesMut>,
    /// Whole buffers that were never needed so far.
    spare: Vec<BytesMut>,
    /// Where short trains are copied to; the first is in use, the last was used up latest.
    short: VecDeque<BytesMut>,
    buffers_max: usize,
    /// How many trains the next call asks for.
    trains_wanted: usize,
}

impl ReceiveBuffers {
    /// Buffers of together at most `budget_bytes`, but at least one of [`RECEIVE_BUFFER_BYTES`].
    /// Two megabytes let one system call receive as much as it can.
    pub fn new(budget_bytes: usize) -> Self {
        // A modelled network hands out memory of its own.
        #[cfg(feature = "sim")]
        let budget_bytes = if crate::sim::is_entered() { 0 } else { budget_bytes };
        let buffers_max = (budget_bytes / RECEIVE_BUFFER_BYTES).max(1);
        let mut buffers = Self {
            ready: VecDeque::new(),
            tails: VecDeque::new(),
            spare: (0..buffers_max).map(|_| buffer()).collect(),
            short: (0..SHORT_BUFFERS).map(|_| buffer()).collect(),
            buffers_max,
            trains_wanted: TRAINS_MAX,
        };
        buffers.refill();
        buffers
    }

    /// Memory in the hands of the protocol, as far as it was not taken back yet.
    pub fn handed_out_bytes(&self) -> usize {
        self.tails.len() * RECEIVE_BUFFER_BYTES
    }

    /// Receives, and returns how many trains there were and how many there was room for.
    pub(super) fn receive(
        &mut self,
        state: &UdpSocketState,
        socket: &UdpSocket,
        take: &mut impl FnMut(DatagramMeta, BytesMut),
    ) -> io::Result<(usize, usize)> {
        self.refill();
        let room = self.ready.len().min(self.trains_wanted);
        let mut metas = [RecvMeta::default(); TRAINS_MAX];
        let count = {
            let mut ready = self.ready.iter_mut();
            let mut slices: [IoSliceMut<'_>; TRAINS_MAX] =
                array::from_fn(|_| IoSliceMut::new(ready.next().map_or(&mut [], whole)));
            state.recv(UdpSockRef::from(socket), &mut slices[..room], &mut metas[..room])?
        };
        let bytes: usize = metas.iter().take(count).map(|meta| meta.len).sum();
        self.trains_wanted = match bytes {
            _ if CALL_BYTES < bytes => (count / 2).max(1),
            _ if count == room => (room * 2).min(TRAINS_MAX),
            _ => self.trains_wanted,
        };
        for meta in metas.iter().take(count) {
            let len = meta.len.min(RECEIVE_BUFFER_BYTES);
            let stride = if meta.stride == 0 { len } else { meta.stride }.max(1);
            let (remote, local_ip) = (meta.addr, meta.dst_ip);
            let ecn = meta.ecn.map_or(0, |ecn| ecn as u8);
            self.take_train(DatagramMeta { remote, local_ip, ecn, stride, len }, take);
        }
        Ok((count, room))
    }

    /// Hands out the first ready buffer: itself, or copied if the train is short. When this is the last
    /// buffer there is, each datagram is copied to memory of its own: whoever keeps one byte of it
    /// keeps no more than the datagram.
    fn take_train(&mut self, meta: DatagramMeta, take: &mut impl FnMut(DatagramMeta, BytesMut)) {
        let Some(mut buffer) = self.ready.pop_front() else { return };
        // SAFETY: the whole buffer is initialised, see `whole`, and at least this long.
        unsafe { buffer.set_len(meta.len) };
        let last = self.tails.len() + 1 >= self.buffers_max;
        if !last && COPY_BELOW_BYTES <= meta.len {
            self.tails.push_back(buffer.split_off(meta.len));
            return take(meta, buffer);
        }
        if last {
            for datagram in buffer.chunks(meta.stride) {
                take(DatagramMeta { len: datagram.len(), ..meta }, BytesMut::from(datagram));
            }
        } else {
            let copy = self.copy(&buffer);
            take(meta, copy);
        }
        buffer.clear();
        // To the end: the buffers before it hold the trains that follow.
        self.ready.push_back(buffer);
    }

    /// A copy in memory that is used again, or, when all of that is handed out, in memory of its own.
    fn copy(&mut self, train: &[u8]) -> BytesMut {
        let mut tries = self.short.len();
        while let Some(buffer) = self.short.front_mut() {
            if train.len() <= buffer.capacity() {
                buffer.extend_from_slice(train);
                return buffer.split();
            }
            if tries == 0 {
                break;
            }
            tries -= 1;
            self.short.rotate_left(1);
            if let Some(oldest) = self.short.front_mut() {
                // It stays too small if some of it is still in use.
                let _ = oldest.try_reclaim(RECEIVE_BUFFER_BYTES);
            }
        }
        BytesMut::from(train)
    }

    /// Makes as many buffers ready as one call can use: those that came back, then new ones.
    fn refill(&mut self) {
        for _ in 0..RECLAIM_TRIES * TRAINS_MAX {
            if self.ready.len() >= TRAINS_MAX {
                return;
            }
            let Some(mut tail) = self.tails.pop_front() else { break };
            if tail.try_reclaim(RECEIVE_BUFFER_BYTES) {
                tail.clear();
                self.ready.push_back(tail);
            } else {
                self.tails.push_back(tail);
                break;
            }
        }
        while self.ready.len() < TRAINS_MAX {
            let Some(buffer) = self.spare.pop() else { return };
            self.ready.push_back(buffer);
        }
    }
}

/// An empty buffer that can be split without the allocator.
fn buffer() -> BytesMut {
    let mut buffer = BytesMut::zeroed(RECEIVE_BUFFER_BYTES);
    // The first split asks for memory to count references in, and it stays.
    drop(buffer.split_off(RECEIVE_BUFFER_BYTES));
    buffer.clear();
    buffer
}

/// All of an empty buffer's memory.
fn whole(buffer: &mut BytesMut) -> &mut [u8] {
    let start = buffer.as_mut_ptr();
    assert!(buffer.capacity() >= RECEIVE_BUFFER_BYTES, "ready buffers are whole");
    // SAFETY: within the capacity, exclusively borrowed, and initialised: the memory was zeroed when
    // it was allocated, and taking it back neither moves nor replaces it.
    unsafe { std::slice::from_raw_parts_mut(start, RECEIVE_BUFFER_BYTES) }
}

impl fmt::Debug for ReceiveBuffers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReceiveBuffers")
            .field("ready", &self.ready.len())
            .field("handed_out", &self.tails.len())
            .field("buffers_max", &self.buffers_max)
            .finish()
    }
}
