//! Commands and images as bytes: an envelope, then CBOR with numbered fields.
//!
//! ```text
//!  0      2      4         6               8        12       16
//!  | magic | kind | version | feature level | length | crc32c | body: length bytes |
//!  ```
//!
//! All integers are little-endian; the checksum covers the 12 bytes before it and the body. The kind
//! names the command (or the image), the version the envelope's own layout, and the feature level
//! the oldest software that understands the body. Fields of a body are never numbered anew; new
//! ones are optional, and a reader passes over the ones that it does not know. A kind, version or
//! feature level that it does not know it refuses: a node that skipped a command would no longer
//! agree with the others.

use crate::apply::apply;
use crate::body;
use crate::command::Command;
use crate::image::Image;
use crate::limits::{COMMAND_BYTES_MAX, IMAGE_BYTES_MAX};

pub use crate::decode_error::{DecodeError, ReplayError};

/// Bytes before the body.
pub const ENVELOPE_BYTES: usize = 16;

/// "RM": what follows is metadata.
pub const ENVELOPE_MAGIC: u16 = u16::from_le_bytes(*b"RM");

/// The layout of the envelope that this software writes, and the newest that it reads.
pub const ENVELOPE_VERSION: u16 = 1;

/// The feature level that this software writes, and the highest that it reads.
pub const FEATURE_LEVEL: u16 = 1;

/// Bytes of the envelope that the checksum covers: all before the checksum.
const CHECKED_BYTES: usize = 12;

/// Appends a command to `out`. A command that [`check`](crate::check) accepts stays below
/// [`COMMAND_BYTES_MAX`]; check before making it durable.
pub fn encode_command(command: &Command, out: &mut Vec<u8>) {
    let envelope = begin(body::command_kind(command), out);
    body::encode_command(command, out);
    finish(envelope, out);
}

/// Reads one command that takes up all of `bytes`. It is well-formed, not yet accepted.
pub fn decode_command(bytes: &[u8]) -> Result<Command, DecodeError> {
    let (kind, body) = open(bytes, COMMAND_BYTES_MAX)?;
    body::decode_command(kind, body)
}

/// Appends a snapshot of the image to `out`: below [`IMAGE_BYTES_MAX`] for every image that keeps
/// its invariants.
pub fn encode_image(image: &Image, out: &mut Vec<u8>) {
    let envelope = begin(body::KIND_IMAGE, out);
    body::encode_image(image, out);
    finish(envelope, out);
}

/// Reads a snapshot that takes up all of `bytes`, and checks every invariant.
pub fn decode_image(bytes: &[u8]) -> Result<Image, DecodeError> {
    let (kind, body) = open(bytes, IMAGE_BYTES_MAX)?;
    if kind != body::KIND_IMAGE {
        return Err(DecodeError::UnknownKind { found: kind });
    }
    let image = body::decode_image(body)?;
    image.check().map_err(DecodeError::Inconsistent)?;
    Ok(image)
}

/// The image that a snapshot and the commands after it, in order, add up to.
pub fn replay(snapshot: &[u8], commands: &[&[u8]]) -> Result<Image, ReplayError> {
    let mut image = decode_image(snapshot).map_err(ReplayError::Snapshot)?;
    for bytes in commands {
        let command = decode_command(bytes).map_err(ReplayError::Command)?;
        apply(&mut image, &command).map_err(ReplayError::Apply)?;
    }
    Ok(image)
}

/// Writes the envelope with room for length and checksum; returns where it is.
fn begin(kind: u16, out: &mut Vec<u8>) -> usize {
    let envelope = out.len();
    for field in [ENVELOPE_MAGIC, kind, ENVELOPE_VERSION, FEATURE_LEVEL] {
        out.extend_from_slice(&field.to_le_bytes());
    }
    out.extend_from_slice(&[0; ENVELOPE_BYTES - 8]);
    envelope
}

fn finish(envelope: usize, out: &mut [u8]) {
    let (head, body) = out[envelope..].split_at_mut(ENVELOPE_BYTES);
    let length = u32::try_from(body.len()).expect("limits keep bodies far below 4 GiB");
    head[8..CHECKED_BYTES].copy_from_slice(&length.to_le_bytes());
    let crc = checksum(&head[..CHECKED_BYTES], body);
    head[CHECKED_BYTES..].copy_from_slice(&crc.to_le_bytes());
}

/// Checks the envelope; returns the kind and the body.
fn open(bytes: &[u8], bytes_max: usize) -> Result<(u16, &[u8]), DecodeError> {
    let short = DecodeError::Length { found: bytes.len(), expected: ENVELOPE_BYTES };
    if bytes_max < bytes.len() {
        return Err(DecodeError::TooLong { bytes: bytes.len(), max: bytes_max });
    }
    let Some((head, body)) = bytes.split_first_chunk::<ENVELOPE_BYTES>() else {
        return Err(short);
    };
    let [m0, m1, k0, k1, v0, v1, f0, f1, length @ .., c0, c1, c2, c3] = *head;
    let found = u16::from_le_bytes([m0, m1]);
    if found != ENVELOPE_MAGIC {
        return Err(DecodeError::Magic { found });
    }
    // The version comes before all that it could change, the checksum's place included.
    let (found, supported) = (u16::from_le_bytes([v0, v1]), ENVELOPE_VERSION);
    if found == 0 {
        return Err(DecodeError::Version { found });
    }
    if supported < found {
        return Err(DecodeError::NewerVersion { found, supported });
    }
    let length = u32::from_le_bytes(length) as usize;
    if body.len() != length {
        let expected = ENVELOPE_BYTES.saturating_add(length);
        return Err(DecodeError::Length { found: bytes.len(), expected });
    }
    let stored = u32::from_le_bytes([c0, c1, c2, c3]);
    let computed = checksum(&bytes[..CHECKED_BYTES], body);
    if computed != stored {
        return Err(DecodeError::Checksum { computed, stored });
    }
    let (found, supported) = (u16::from_le_bytes([f0, f1]), FEATURE_LEVEL);
    if supported < found {
        return Err(DecodeError::NewerFeatureLevel { found, supported });
    }
    Ok((u16::from_le_bytes([k0, k1]), body))
}

fn checksum(head: &[u8], body: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(head), body)
}

#[cfg(test)]
mod tests;
