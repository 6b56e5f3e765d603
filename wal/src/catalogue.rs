//! The log of metadata commands: a snapshot and the commands after it, in one of two files of fixed
//! size, so that a full disk never keeps a command from being written.
//!
//! ```text
//! file   = | header page | append | append | …          the first append begins with the snapshot
//! append = | header 64 B | record | record | … | pad to 4 KiB |     one write + one flush
//! record = | length u32 | bytes | pad to 8 |
//! ```
//!
//! When a file is full the state goes as a snapshot to the other one (*switch*), and the full one gets
//! a last append that says it is *retired*: falling back to it would forget what came after.
//! Commands after a switch wait for that. Opening always switches, so that what was read once and may
//! not have been durable is written again.
//!
//! - [`layout`]: the header page and the append.
//! - [`writer`]: in place, or to the other file, or refused.
//! - [`open`]: which file holds the catalogue, and whether to believe it.

pub mod layout;

pub mod writer;

pub mod open;

pub use layout::{
    CATALOGUE_BYTES_DEFAULT, CATALOGUE_BYTES_MAX, CATALOGUE_BYTES_MIN, CatalogueFile,
};
pub use open::{CatalogueError, CatalogueLog, FileError, newer_file, open_catalogue, open_newer};
pub use writer::{CataloguePlan, CatalogueWrite, CatalogueWriter, CommandEffect};

#[cfg(test)]
mod tests;
