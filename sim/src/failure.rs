//! What a simulation can find.

use std::fmt;

use rustmq_server::ShardError;

/// Something that must not happen, or, from an image that a lying disk left, may.
#[derive(Clone, Debug)]
pub enum Failure {
    /// A shard ended with an error.
    Ended {
        /// Its error.
        error: ShardError,
    },
    /// A shard ended without being asked to.
    Stopped,
    /// It never does what it should.
    Stuck {
        /// What it should do.
        doing: &'static str,
    },
    /// A promise to clients was broken.
    Broken {
        /// Which one, and where.
        what: String,
    },
}

impl Failure {
    /// A promise that was broken.
    pub(crate) fn broken(what: impl Into<String>) -> Self {
        Self::Broken { what: what.into() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ended { error } => write!(f, "a shard ended: {error}"),
            Self::Stopped => f.write_str("a shard ended without being asked to"),
            Self::Stuck { doing } => write!(f, "it is stuck: {doing}"),
            Self::Broken { what } => f.write_str(what),
        }
    }
}

impl std::error::Error for Failure {}
