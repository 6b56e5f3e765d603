//! The twelve things that must never be found.

use std::fmt;

/// A kind of contradiction. Names in text are those of the Jepsen workload for Kafka where it has
/// one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Anomaly {
    /// One offset, two values: two readers, or a reader and an acknowledgement, disagree.
    InconsistentOffsets,
    /// One value, two offsets, at least one of them seen by a reader. The log took a record twice,
    /// or it moved.
    Duplicate,
    /// Two acknowledgements contradict each other: two values at one offset, or one value, sent
    /// again, at two.
    ConflictingAcknowledgements,
    /// Acknowledged, and a later reading to the end has others after it, but not it.
    LostWrite,
    /// Acknowledged, and a later reading ends before it: the end of the log was cut off.
    Unseen,
    /// A reader was given a record that a later reading does not have, although nobody ever
    /// acknowledged it; or a record at or above the high watermark that came with it.
    ReadThenLost,
    /// The log's order is not that of the sends: one process began the later record first, or a
    /// send that began after an acknowledgement was put before what was acknowledged.
    NonmonotonicSend,
    /// A reader went back within one assignment.
    NonmonotonicPoll,
    /// A reader went over offsets within one assignment, or ended before the end that it was told.
    PollSkip,
    /// A value that nobody sent to this partition.
    Phantom,
    /// A value that was read before its send began.
    ReadBeforeSend,
    /// A value in the log of which every send has definitely failed.
    FailedWrite,
}

impl Anomaly {
    /// All of them.
    pub const ALL: [Anomaly; 12] = [
        Anomaly::InconsistentOffsets,
        Anomaly::Duplicate,
        Anomaly::ConflictingAcknowledgements,
        Anomaly::LostWrite,
        Anomaly::Unseen,
        Anomaly::ReadThenLost,
        Anomaly::NonmonotonicSend,
        Anomaly::NonmonotonicPoll,
        Anomaly::PollSkip,
        Anomaly::Phantom,
        Anomaly::ReadBeforeSend,
        Anomaly::FailedWrite,
    ];

    /// As it is written in reports.
    pub fn name(self) -> &'static str {
        match self {
            Anomaly::InconsistentOffsets => "inconsistent-offsets",
            Anomaly::Duplicate => "duplicate",
            Anomaly::ConflictingAcknowledgements => "conflicting-acknowledgements",
            Anomaly::LostWrite => "lost-write",
            Anomaly::Unseen => "unseen",
            Anomaly::ReadThenLost => "read-then-lost",
            Anomaly::NonmonotonicSend => "nonmonotonic-send",
            Anomaly::NonmonotonicPoll => "nonmonotonic-poll",
            Anomaly::PollSkip => "poll-skip",
            Anomaly::Phantom => "phantom",
            Anomaly::ReadBeforeSend => "read-before-send",
            Anomaly::FailedWrite => "failed-write",
        }
    }
}

impl fmt::Display for Anomaly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
