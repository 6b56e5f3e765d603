//! Fields at fixed places, and the seeded checksum of the WAL: written down a second time, from
//! `docs/formats/wal.md`, so that what the product decodes is checked by other code.

/// CRC32C behind the eight bytes of a generation.
pub(crate) fn seeded(generation: u64) -> u32 {
    crc32c::crc32c(&generation.to_le_bytes())
}

/// The same, behind the sequence of a block too.
pub(crate) fn seeded_for_block(generation: u64, sequence: u64) -> u32 {
    crc32c::crc32c_append(seeded(generation), &sequence.to_le_bytes())
}

pub(crate) fn add(crc: u32, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc, bytes)
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array_at(bytes, at))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, at))
}

pub(crate) fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    *bytes[at..].first_chunk().expect("the caller looks where there are bytes")
}

pub(crate) fn put(bytes: &mut [u8], at: usize, field: &[u8]) {
    bytes[at..at + field.len()].copy_from_slice(field);
}
