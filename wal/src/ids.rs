//! Names of things inside a WAL. All are plain integers on disk; here they cannot be swapped.

use core::fmt;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($int:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
        pub struct $name(pub $int);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

/// Uuid of a WAL, in every segment and block header: a file of another WAL never joins this one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct WalId(pub [u8; 16]);

impl fmt::Display for WalId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

number! {
    /// Place of a segment in its WAL: the first is 1, each activation takes the next.
    SegmentSequence(u64)
}
number! {
    /// Number in a segment's file name. A slot is used again and again, by one segment after another.
    Slot(u32)
}
number! {
    /// 64 random bits, new for each use of a file, seed of every checksum in it. Never leaves the
    /// broker, so nobody outside can make bytes that validate.
    Generation(u64)
}
number! {
    /// Place of a block in its WAL: the first is 1. Goes on from segment to segment.
    BlockSequence(u64)
}
number! {
    /// Counts the times this WAL was opened for writing. Never falls along the chain.
    Incarnation(u64)
}

impl Incarnation {
    /// No opening has it, so that each can be followed by another.
    pub const NEVER: Self = Self(u64::MAX);
}

impl SegmentSequence {
    /// Sequence of the first segment of a WAL.
    pub const FIRST: Self = Self(1);

    /// The segment after this one. A number that only damage explains is not passed.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl BlockSequence {
    /// Sequence of the first block of a WAL. As a durable end it says: nothing is known flushed.
    pub const FIRST: Self = Self(1);

    /// The block after this one. A number that only damage explains is not passed.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl Slot {
    /// Name of this slot's file in the WAL's directory.
    #[must_use]
    pub fn file_name(self) -> String {
        format!("segment-{:05}.wal", self.0)
    }

    /// The slot a file name stands for; `None` if the file is not a segment.
    #[must_use]
    pub fn from_file_name(name: &str) -> Option<Self> {
        let digits = name.strip_prefix("segment-")?.strip_suffix(".wal")?;
        let slot = Self(digits.parse().ok()?);
        // Exactly one name per slot: "segment-1.wal" and "segment-+0001.wal" are strangers.
        (slot.file_name() == name).then_some(slot)
    }
}

/// The segment that comes after a sealed one; in its seal block and in its footer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NextSegment {
    /// Sequence of the segment.
    pub sequence: SegmentSequence,
    /// Slot that holds it.
    pub slot: Slot,
    /// Generation of that use of the slot.
    pub generation: Generation,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_has_exactly_one_file_name() {
        for slot in [Slot(0), Slot(7), Slot(99_999), Slot(100_000), Slot(u32::MAX)] {
            assert_eq!(Slot::from_file_name(&slot.file_name()), Some(slot));
        }
        for name in ["segment-1.wal", "segment-00001.tmp", "segment-+0001.wal", "segment-.wal", "x"]
        {
            assert_eq!(Slot::from_file_name(name), None, "{name}");
        }
    }

    #[test]
    fn the_last_number_that_there_is_has_itself_behind_it() {
        assert_eq!(BlockSequence(u64::MAX).next(), BlockSequence(u64::MAX));
        assert_eq!(SegmentSequence(u64::MAX).next(), SegmentSequence(u64::MAX));
    }

    #[test]
    fn a_wal_id_is_shown_as_a_uuid() {
        let id = WalId(core::array::from_fn(|index| index as u8));
        assert_eq!(id.to_string(), "00010203-0405-0607-0809-0a0b0c0d0e0f");
    }
}
