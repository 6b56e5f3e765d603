//! Bytes of one stream become frames.

use bytes::Bytes;
use rustmq_protocol::frame::{FrameError, FrameHeader};
use rustmq_protocol::limits::FRAME_HEADER_BYTES;

use crate::body::Body;

/// Gathers the chunks of one stream until a frame is whole.
///
/// A header is checked as soon as its 16 bytes are there, before anything is gathered for it. After
/// an error the stream has lost its framing: the caller refuses the rest of it.
#[derive(Default)]
pub(crate) struct Assembler {
    held: Body,
    header: Option<FrameHeader>,
    /// Chunks that hold no more memory than is worth it.
    settled: usize,
}

impl Assembler {
    /// Adds what arrived.
    pub(crate) fn push(&mut self, chunk: Bytes) {
        self.held.push(chunk);
    }

    /// What is here waits for the rest of its frame: chunks of fewer than `small` bytes are copied, so
    /// that none of them keeps a datagram that is much larger.
    pub(crate) fn settle(&mut self, small: usize) {
        self.settled = self.held.gather(self.settled, small);
    }

    /// Bytes gathered for the frame that is not whole yet.
    pub(crate) fn len(&self) -> usize {
        self.held.len()
    }

    /// Is nothing begun?
    pub(crate) fn is_empty(&self) -> bool {
        self.held.len() == 0 && self.header.is_none()
    }

    /// The next whole frame, if there is one.
    pub(crate) fn next_frame(&mut self) -> Result<Option<(FrameHeader, Body)>, FrameError> {
        let header = match self.header {
            Some(header) => header,
            None => {
                if self.held.len() < FRAME_HEADER_BYTES {
                    return Ok(None);
                }
                let bytes = self.held.split_to(FRAME_HEADER_BYTES);
                self.settled = 0;
                let bytes = bytes.head().expect("split to this length");
                let header = FrameHeader::decode(&bytes)?;
                self.header = Some(header);
                header
            }
        };
        let body_bytes = header.length as usize - FRAME_HEADER_BYTES;
        if self.held.len() < body_bytes {
            return Ok(None);
        }
        (self.header, self.settled) = (None, 0);
        Ok(Some((header, self.held.split_to(body_bytes))))
    }
}
