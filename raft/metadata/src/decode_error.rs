//! Why bytes are no command or no image.

use std::fmt;

use crate::apply::ApplyError;
use crate::image::ImageFault;

/// Why bytes are no command or no image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// Fewer or more bytes than the envelope says, or too few for an envelope.
    Length {
        /// Bytes that were given.
        found: usize,
        /// Bytes that the envelope says.
        expected: usize,
    },
    /// More bytes than the limit of that name allows.
    TooLong {
        /// Bytes that were given.
        bytes: usize,
        /// [`COMMAND_BYTES_MAX`](crate::limits::COMMAND_BYTES_MAX) or
        /// [`IMAGE_BYTES_MAX`](crate::limits::IMAGE_BYTES_MAX).
        max: usize,
    },
    /// Not an envelope.
    Magic {
        /// What stands in its place.
        found: u16,
    },
    /// Written by newer software: this one has to be upgraded before it goes on.
    NewerVersion {
        /// The envelope's version.
        found: u16,
        /// The newest that is read.
        supported: u16,
    },
    /// Needs features that this software does not have.
    NewerFeatureLevel {
        /// The level that the body needs.
        found: u16,
        /// The highest that is read.
        supported: u16,
    },
    /// A version of 0, which was never written.
    Version {
        /// The envelope's version.
        found: u16,
    },
    /// A kind that this software does not know, or one that does not belong here.
    UnknownKind {
        /// The kind.
        found: u16,
    },
    /// The bytes are not the ones that were written.
    Checksum {
        /// The checksum of what is there.
        computed: u32,
        /// The checksum of what was written.
        stored: u32,
    },
    /// The body is not CBOR of the kind's fields.
    Body {
        /// The kind.
        kind: u16,
        /// Where in the body.
        position: usize,
    },
    /// A list is longer than its limit.
    TooMany {
        /// The limit's value.
        max: usize,
    },
    /// A value that the field never has.
    Value {
        /// The field.
        field: &'static str,
    },
    /// The image breaks an invariant.
    Inconsistent(ImageFault),
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length { found, expected } => {
                write!(f, "metadata of {found} bytes where {expected} belong")
            }
            Self::TooLong { bytes, max } => {
                write!(f, "metadata of {bytes} bytes: allowed are {max}")
            }
            Self::Magic { found } => write!(f, "{found:#06x} is not the mark of metadata"),
            Self::NewerVersion { found, supported } => write!(
                f,
                "metadata of version {found} needs newer software: this one reads up to {supported}"
            ),
            Self::NewerFeatureLevel { found, supported } => write!(
                f,
                "metadata of feature level {found} needs newer software: this one reads up to \
                 {supported}"
            ),
            Self::Version { found } => write!(f, "metadata of version {found} does not exist"),
            Self::UnknownKind { found } => write!(f, "metadata of kind {found} is not known here"),
            Self::Checksum { computed, stored } => write!(
                f,
                "metadata is damaged: its checksum is {computed:#010x} and not {stored:#010x}"
            ),
            Self::Body { kind, position } => {
                write!(f, "metadata of kind {kind} cannot be read at byte {position} of its body")
            }
            Self::TooMany { max } => write!(f, "a metadata list is too long: allowed are {max}"),
            Self::Value { field } => write!(f, "the metadata field {field} is out of bounds"),
            Self::Inconsistent(fault) => write!(f, "the metadata image is inconsistent: {fault}"),
        }
    }
}

impl std::error::Error for DecodeError {}

/// Why a snapshot and commands are no image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplayError {
    /// The snapshot cannot be read.
    Snapshot(DecodeError),
    /// A command cannot be read.
    Command(DecodeError),
    /// A command is refused by the image before it.
    Apply(ApplyError),
}

impl fmt::Display for ReplayError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Snapshot(error) => write!(f, "the catalogue's snapshot: {error}"),
            Self::Command(error) => write!(f, "a command of the catalogue: {error}"),
            Self::Apply(error) => write!(f, "a command of the catalogue does not apply: {error}"),
        }
    }
}

impl std::error::Error for ReplayError {}
