//! How much is asked at once: by how many, how large, how many at a time.

use super::mtu::Mtu;

pub(super) const KIB: usize = 1024;

/// Producers, or consumers, and what each of them sends or gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) producers: usize,
    pub(super) records: usize,
    pub(super) value_bytes: usize,
    pub(super) window: usize,
    /// The datagrams of both sides.
    pub(super) mtu: Mtu,
}

pub(super) const fn shape(
    producers: usize,
    records: usize,
    value_bytes: usize,
    window: usize,
) -> Shape {
    Shape { producers, records, value_bytes, window, mtu: Mtu::Internet }
}

/// The same by datagrams as large as the loopback takes.
pub(super) const fn large(
    producers: usize,
    records: usize,
    value_bytes: usize,
    window: usize,
) -> Shape {
    Shape { mtu: Mtu::Loopback, ..shape(producers, records, value_bytes, window) }
}
