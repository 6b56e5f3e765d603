//! A stream of frames, as both ends read it.
//!
//! Input: one byte that decides where chunks end, then the stream.

use bytes::Bytes;
use rustmq_protocol::{
    CorrelationId, FRAME_BYTES_MAX, FRAME_HEADER_BYTES, FrameError, FrameFlags, FrameHeader,
    RequestKind, ShardId,
};

use crate::assembler::Assembler;
use crate::memory::{Bound, bounded};
use crate::requests;
use crate::source::Source;

/// A chunk of a stream is a handle of 32 bytes, in a list that doubles; each may have one byte, and
/// each frame a list of its own. The lists are kept for reuse: a table that doubles to 32 KiB, once.
const ASKED_MAX: Bound = Bound { base: 34 << 10, per_byte: 128 };

/// The stream is cut into the same frames wherever its chunks end, and its frames are read.
pub fn target(data: &[u8]) {
    let Some((chunks, stream)) = data.split_first() else { return };
    let (frames, end) = frames_of(stream);
    let chunked = Bytes::copy_from_slice(stream);
    bounded(stream.len(), &ASKED_MAX, || {
        assembles_to(&chunked, *chunks, &frames, end);
    });
    for (header, body) in &frames {
        header_holds(header);
        let kind = RequestKind::from_u16(header.kind);
        if let Some(kind) = kind {
            requests::any_body(kind, header.flags, header.status, body);
        }
    }
    made_header_reads_back(stream);
}

/// How a stream ends: in the middle of a frame (or behind the last), or with what is none.
type End = Option<FrameError>;

/// The frames of a stream that is there as a whole: what a client does with its buffer.
fn frames_of(stream: &[u8]) -> (Vec<(FrameHeader, &[u8])>, End) {
    let mut frames = Vec::new();
    let mut rest = stream;
    while let Some(bytes) = rest.first_chunk::<FRAME_HEADER_BYTES>() {
        let header = match FrameHeader::decode(bytes) {
            Ok(header) => header,
            Err(error) => return (frames, Some(error)),
        };
        assert_eq!(header.encode(), *bytes, "a header is encoded as it was");
        assert!((FRAME_HEADER_BYTES..=FRAME_BYTES_MAX).contains(&(header.length as usize)));
        let Some((frame, after)) = rest.split_at_checked(header.length as usize) else { break };
        frames.push((header, &frame[FRAME_HEADER_BYTES..]));
        rest = after;
    }
    (frames, None)
}

/// What the server gathers from chunks are those frames.
fn assembles_to(stream: &Bytes, chunks: u8, frames: &[(FrameHeader, &[u8])], end: End) {
    let mut assembler = Assembler::default();
    let mut expected = frames.iter();
    let mut at = 0;
    let mut state = u32::from(chunks);
    while at < stream.len() {
        // Chunks of 1 to 64 bytes, or all at once.
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let bytes = if chunks == 0 { stream.len() } else { 1 + (state >> 16) as usize % 64 };
        let to = (at + bytes).min(stream.len());
        assembler.push(stream.slice(at..to));
        at = to;
        loop {
            match assembler.next_frame() {
                Ok(Some((header, body))) => {
                    let (same, bytes) = expected.next().expect("no frame that is not there");
                    assert_eq!(header, *same);
                    assert_eq!(body.to_vec(), *bytes);
                }
                Ok(None) => break,
                Err(error) => {
                    assert_eq!(Some(error), end);
                    assert!(expected.next().is_none(), "the frames before an error are read");
                    return;
                }
            }
        }
        assert!(assembler.len() <= at, "no byte is held twice");
    }
    assert!(expected.next().is_none(), "every frame is read");
    assert_eq!(end, None, "what is no frame is refused");
}

fn header_holds(header: &FrameHeader) {
    assert_eq!(FrameHeader::decode(&header.encode()), Ok(*header));
    let code = header.error_code();
    let answer = header.response(code).moved_to(header.shard);
    assert_eq!(FrameHeader::decode(&answer.encode()), Ok(answer));
}

/// A header of any fields, in front of a body, is read as it was made.
fn made_header_reads_back(bytes: &[u8]) {
    let mut source = Source::new(bytes);
    let header = FrameHeader {
        length: 0,
        kind: source.u16(),
        version: source.u8(),
        flags: FrameFlags::from_bits(source.u8() & 7).expect("three flags are known"),
        correlation: CorrelationId(source.u32()),
        status: source.u16(),
        shard: ShardId(source.u16()),
    };
    let body = source.rest();
    let mut frame = Vec::new();
    header.encode_frame(&mut frame, |out| out.extend_from_slice(body));
    let (frames, end) = frames_of(&frame);
    assert_eq!((frames, end), (vec![(header.with_body_bytes(body.len()), body)], None));
}
