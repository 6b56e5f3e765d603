//! What was found, short enough to be read.

use std::fmt;

use crate::{Anomaly, Partition, Process};

/// Findings of one kind that a report shows; the others are counted. Five: enough to see a pattern
/// in a failed test's output, few enough to see the other kinds beside it.
pub const EXAMPLES_MAX: usize = 5;

/// What a check found.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Report {
    counts: [u64; Anomaly::ALL.len()],
    examples: Vec<Finding>,
}

/// One anomaly, at one place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Finding {
    /// Its kind.
    pub anomaly: Anomaly,
    /// The partition.
    pub partition: Partition,
    /// Where in it.
    pub offset: u64,
    /// Who sent, or where the sender does not matter or is not known, who read it.
    pub process: Process,
    /// The offset with which it is at odds, if that is another one.
    pub against: u64,
}

impl Report {
    /// Nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.counts.iter().all(|count| *count == 0)
    }

    /// How many of this kind there are.
    pub fn count(&self, anomaly: Anomaly) -> u64 {
        self.counts[anomaly as usize]
    }

    /// The kinds that there are.
    pub fn anomalies(&self) -> impl Iterator<Item = Anomaly> {
        Anomaly::ALL.into_iter().filter(|anomaly| 0 < self.count(*anomaly))
    }

    /// The first [`EXAMPLES_MAX`] of each kind.
    pub fn examples(&self) -> &[Finding] {
        &self.examples
    }

    pub(crate) fn add(&mut self, finding: Finding) {
        let count = &mut self.counts[finding.anomaly as usize];
        *count += 1;
        if *count <= EXAMPLES_MAX as u64 {
            self.examples.push(finding);
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_clean() {
            return f.write_str("no anomalies");
        }
        let counted: Vec<String> =
            self.anomalies().map(|anomaly| format!("{} {anomaly}", self.count(anomaly))).collect();
        write!(f, "{}", counted.join(", "))?;
        for example in &self.examples {
            write!(f, "\n  {example}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Finding { anomaly, partition, offset, process, against } = self;
        write!(
            f,
            "{anomaly}: partition {}, offset {offset}, process {}: ",
            partition.0, process.0
        )?;
        match anomaly {
            Anomaly::InconsistentOffsets => write!(f, "others have another value there"),
            Anomaly::Duplicate => write!(f, "the same value is at {against}"),
            Anomaly::ConflictingAcknowledgements if against == offset => {
                write!(f, "another value was acknowledged there")
            }
            Anomaly::ConflictingAcknowledgements => {
                write!(f, "the same value was acknowledged at {against}")
            }
            Anomaly::LostWrite => {
                write!(f, "acknowledged, and missing in a reading that went on to {against}")
            }
            Anomaly::Unseen => write!(f, "acknowledged, and a later reading ended at {against}"),
            Anomaly::ReadThenLost => write!(
                f,
                "read, but not there to stay: the high watermark was, or a later reading ended at, \
                 {against}"
            ),
            Anomaly::NonmonotonicSend => write!(f, "sent after what is at {against}"),
            Anomaly::NonmonotonicPoll => write!(f, "read when {against} was the next"),
            Anomaly::PollSkip => write!(f, "left out; the next one read is {against}"),
            Anomaly::Phantom => write!(f, "nobody sent what was read"),
            Anomaly::ReadBeforeSend => write!(f, "read before it was sent"),
            Anomaly::FailedWrite => write!(f, "it was said to have failed"),
        }
    }
}
