//! What is wrong with a configuration, where it was written, and what would be right.

use std::fmt;
use std::path::PathBuf;

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// A line of a file.
    File {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// An environment variable.
    Env {
        /// Its name.
        variable: String,
    },
    /// `--set` on the command line.
    Set,
}

/// Why there is no configuration.
#[derive(Debug)]
pub enum ConfigError {
    /// The file cannot be read.
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// The file is larger than any configuration.
    FileTooLarge {
        /// The file.
        path: PathBuf,
        /// [`FILE_BYTES_MAX`](crate::load::FILE_BYTES_MAX).
        bytes_max: u64,
    },
    /// The file is not TOML.
    Syntax {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What the parser says.
        message: String,
    },
    /// `--set` without `section.key=value`.
    SetSyntax {
        /// What was there.
        text: String,
    },
    /// No option has this name.
    UnknownKey {
        /// Where.
        origin: Origin,
        /// The name.
        key: String,
        /// The names that there are.
        allowed: String,
    },
    /// The value is not allowed, or not together with the values of other options.
    BadValue {
        /// Where.
        origin: Origin,
        /// The option.
        key: String,
        /// The value.
        value: String,
        /// What is allowed.
        allowed: String,
    },
    /// An option of the section `test` without `test.enabled = true`.
    TestOnly {
        /// Where.
        origin: Origin,
        /// The option.
        key: String,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => write!(f, "default"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Env { variable } => write!(f, "environment variable {variable}"),
            Self::Set => write!(f, "--set"),
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read { path, source } => write!(f, "reading {}: {source}", path.display()),
            Self::FileTooLarge { path, bytes_max } => {
                let path = path.display();
                write!(f, "{path} is too large: allowed are {bytes_max} bytes")
            }
            Self::Syntax { path, line, message } => {
                write!(f, "{}:{line}: not TOML: {message}", path.display())
            }
            Self::SetSyntax { text } => {
                write!(f, "--set {text}: not valid: allowed is section.key=value")
            }
            Self::UnknownKey { origin, key, allowed } => {
                write!(f, "{origin}: {key} is not an option: allowed is {allowed}")
            }
            Self::BadValue { origin, key, value, allowed } => {
                write!(f, "{origin}: {key} = {value} is not valid: allowed is {allowed}")
            }
            Self::TestOnly { origin, key } => {
                write!(f, "{origin}: {key} is for tests: allowed only with test.enabled = true")
            }
        }
    }
}

impl std::error::Error for ConfigError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Read { source, .. } => Some(source),
            _ => None,
        }
    }
}
