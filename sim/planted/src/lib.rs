//! Bugs planted on purpose: each is a rule of the log that somebody could forget.
//!
//! A proof that never fails proves nothing. The simulation is run once for each of these and has to
//! find it. Without the feature `planted`, which no released build has, [`planted`] is the constant
//! `false` and the compiler leaves nothing of a bug.

/// A rule that is broken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bug {
    /// Blocks are written and never flushed.
    NoFlush,
    /// Producers are answered when their block is handed to the device.
    AckBeforeFlush,
    /// What a start recovers is served without being made durable again.
    NoFlushAfterRecovery,
    /// A start flushes the header of a spare and does not write it again, although the flush of whoever
    /// freed it may have failed.
    SpareOnlyFlushed,
    /// A bad block ends the log although a later one says that it was flushed.
    TailCutBelowDurableEnd,
    /// A segment is freed before the log starts that allow it are durable.
    SegmentReusedTooEarly,
    /// A block of an older use of its file is taken for one of this use.
    StaleGeneration,
    /// The generation in a block is taken for its segment's, so that whoever knows the format can make
    /// a block.
    ForgedBlock,
    /// The index is one entry off.
    IndexOffByOne,
    /// A partition whose segments were all recycled begins anew at offset 0.
    LogEndReset,
    /// What producers had sent is not known after a start.
    ProducersForgotten,
    /// Producer ids are handed out before their block is durable.
    ProducerIdTwice,
    /// A repeated batch is answered before the first one is durable.
    DuplicateAnsweredEarly,
    /// New names are not made durable in their folder.
    NamesNotDurable,
    /// A deletion is answered before it is durable.
    DeletionNotDurable,
    /// Append times follow a clock that goes back.
    AppendTimeBack,
}

impl Bug {
    /// All of them.
    pub const ALL: [Self; 16] = [
        Self::NoFlush,
        Self::AckBeforeFlush,
        Self::NoFlushAfterRecovery,
        Self::SpareOnlyFlushed,
        Self::TailCutBelowDurableEnd,
        Self::SegmentReusedTooEarly,
        Self::StaleGeneration,
        Self::ForgedBlock,
        Self::IndexOffByOne,
        Self::LogEndReset,
        Self::ProducersForgotten,
        Self::ProducerIdTwice,
        Self::DuplicateAnsweredEarly,
        Self::NamesNotDurable,
        Self::DeletionNotDurable,
        Self::AppendTimeBack,
    ];
}

#[cfg(feature = "planted")]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Plants one bug on this thread, or none.
#[cfg(feature = "planted")]
pub fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
}

/// Is this bug planted on this thread?
#[cfg(feature = "planted")]
pub fn planted(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}

/// No bug is planted in a build without them.
#[cfg(not(feature = "planted"))]
pub const fn planted(_: Bug) -> bool {
    false
}
