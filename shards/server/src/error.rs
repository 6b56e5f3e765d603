//! Why a shard ends before it was asked to.

use std::fmt;
use std::path::PathBuf;

/// Why a shard ended before it was asked to. The process ends with it.
#[derive(Debug, Clone)]
pub enum ShardError {
    /// The device failed, or what is on it.
    Device {
        /// What was being done.
        doing: &'static str,
        /// Where.
        dir: PathBuf,
        /// What the system said.
        error: String,
    },
    /// The files do not make sense, or are of a newer version.
    Refused {
        /// Where.
        dir: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A block that was acknowledged is damaged, and what it held is not known.
    Corrupt {
        /// The file.
        file: PathBuf,
        /// Where in it.
        position: u64,
        /// What is wrong.
        why: String,
    },
    /// The memory that was set aside is used up.
    Memory {
        /// What was asked.
        error: String,
    },
    /// The runtime could not start.
    Runtime {
        /// What the system said.
        error: String,
    },
}

impl fmt::Display for ShardError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device { doing, dir, error } => {
                write!(f, "{doing} {}: {error}", dir.display())
            }
            Self::Refused { dir, why } => write!(f, "{}: {why}", dir.display()),
            Self::Corrupt { file, position, why } => write!(
                f,
                "{}: what was acknowledged from position {position} on is damaged ({why}); what it \
                 was cannot be told, so this WAL is not opened: restore the file from a copy, or give \
                 it up with `rustmq wal salvage`",
                file.display()
            ),
            Self::Memory { error } => write!(f, "out of the memory set aside: {error}"),
            Self::Runtime { error } => write!(f, "the shard's runtime could not start: {error}"),
        }
    }
}

impl std::error::Error for ShardError {}
