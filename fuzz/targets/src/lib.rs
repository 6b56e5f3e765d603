//! What holds for any bytes that a decoder is given: the bodies of the fuzz targets.
//!
//! Each target is a function of bytes that panics when something does not hold. libFuzzer calls it
//! (`fuzz/fuzz_targets/`), and so does `tests/replay.rs` with the corpus and with mutations of it,
//! on every toolchain. Three kinds of things are checked: no decoder panics, none asks for more memory
//! than a constant for each byte that it was given, and encoding and decoding undo each other.
//!
//! Checksums would keep nearly all bytes out. So the targets *repair* them, in most of the layout or
//! in all of it as the input says: what is behind a checksum is met as it would be by somebody who
//! can write to the disk and knows the generation, which is more than any peer can do.
//!
//! It runs on one thread at a time: the allocator counts for all threads together.
//!
//! In reading order: [`frames`], [`requests`], [`batch`], [`wal_block`], [`footer`],
//! [`catalogue`].

#![allow(clippy::missing_panics_doc, reason = "a target says by a panic what does not hold")]

mod layout;
mod memory;
pub mod pages;
mod source;

pub mod frames;

pub mod requests;

pub mod batch;

pub mod wal_block;

pub mod footer;

pub mod catalogue;

#[allow(dead_code, unreachable_pub, reason = "the server uses the rest")]
#[path = "../../../shards/server/src/frames.rs"]
mod assembler;
/// The server's own files, which need nothing but `bytes` and `protocol`: what gathers the chunks
/// of a stream is met here without a connection.
#[allow(dead_code, unreachable_pub, reason = "the server uses the rest")]
#[path = "../../../shards/server/src/body.rs"]
mod body;

/// A target: the name of its corpus, and what holds for any bytes.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: &[Target] = &[
    ("frames", frames::target),
    ("requests", requests::target),
    ("batch", batch::target),
    ("wal_block", wal_block::target),
    ("footer", footer::target),
    ("catalogue", catalogue::target),
];
