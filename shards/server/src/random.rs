//! Random numbers from the system, in the shapes that a shard needs.

use rustmq_sys::random::fill_random;

/// Random bytes.
pub(crate) fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    fill_random(&mut bytes).expect("a Linux system always has random numbers");
    bytes
}

/// A random number; the generation of a segment, which nobody outside may guess.
pub(crate) fn number() -> u64 {
    u64::from_le_bytes(bytes())
}

/// A random UUID of version 4 (RFC 9562, section 5.4).
pub(crate) fn uuid() -> [u8; 16] {
    let mut id: [u8; 16] = bytes();
    id[6] = id[6] & 0x0f | 0x40;
    id[8] = id[8] & 0x3f | 0x80;
    id
}
