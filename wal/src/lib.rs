//! The write-ahead log's layouts and decisions.
//!
//! This crate *decides* how entries are laid out in blocks, blocks in segments and segments in a
//! WAL; when waiting entries are closed into a block; which segment file is used or freed next; what
//! a start may believe of what it reads; and how the log of metadata commands is kept. Everything
//! it reads from disk is checked and answered with an error, never trusted.
//!
//! It *never* does I/O, reads a clock, draws random numbers, starts threads or awaits: the shell
//! reads and writes, brings time as plain numbers and brings the random bits of a generation.
//!
//! It runs on the core of the shard that owns the WAL; the catalogue on the control core.
//!
//! In reading order, along the path of a record:
//!
//! - [`ids`]: newtypes for whatever could be swapped.
//! - [`entry`]: a batch with its header, by itself.
//! - [`block`]: the layout of one write, and its checking.
//! - [`builder`]: a block while it gathers entries in memory.
//! - [`commit`]: when a block is closed.
//! - [`chain`]: which place a block gets.
//! - [`segment`]: the header of a segment file.
//! - [`index`], [`footer`]: where in a segment a partition's entries are.
//! - [`read_plan`]: which parts of a segment bring them to a consumer.
//! - [`segments`]: which files there are, which comes next, which may be freed.
//! - [`checkpoint`]: what a segment repeats of the ones before it.
//! - [`scan`], [`recovery`]: what a start finds, and what it may believe.
//! - [`verify`]: what is wrong with a segment, all of it, for people.
//! - [`salvage`]: what is left of a WAL, written anew.
//! - [`catalogue`]: the log of metadata commands.
//!
//! The layouts are drawn in `docs/formats/wal.md`.

pub mod ids;

pub mod entry;

pub mod block;

pub mod builder;

pub mod commit;

pub mod chain;

pub mod segment;

pub mod index;

pub mod footer;

pub mod read_plan;

pub mod segments;

pub mod checkpoint;

pub mod reach;

pub mod scan;

pub mod recovery;

pub mod verify;

pub mod salvage;

pub mod catalogue;

mod bytes;
mod checksum;
mod mean;
mod returns;

pub use block::{
    BLOCK_ALIGN, BLOCK_BYTES_MAX, BLOCK_HEADER_BYTES, BlockError, BlockFlags, BlockHeader,
    BlockView, ChainPoint, DIRECTORY_LINE_BYTES, DirectoryLine, Entry, decode_block,
};
pub use builder::{
    BlockBuilder, BlockContext, DIRECTORY_CAPACITY_MAX, DIRECTORY_CAPACITY_MIN, SealedBlock,
};
pub use catalogue::{
    CatalogueError, CatalogueFile, CatalogueLog, CataloguePlan, CatalogueWrite, CatalogueWriter,
    CommandEffect, open_catalogue,
};
pub use chain::Chain;
pub use checkpoint::{
    BatchCheckpoint, CheckpointError, PartitionCheckpoint, ProducerCheckpoint, WalCheckpoint,
};
pub use commit::{Commit, FlushPolicy, GroupCommit};
pub use entry::{
    ENTRY_ALIGN, ENTRY_HEADER_BYTES, EntryError, EntryExpect, EntryHeader, EntryKind, EntryMeta,
    WAL_ITSELF, decode_entry,
};
pub use footer::{
    FOOTER_TRAILER_BYTES, FooterError, FooterLine, FooterTrailer, SegmentEnd, encode_footer,
    find_line, footer_bytes,
};
pub use ids::{BlockSequence, Generation, Incarnation, NextSegment, SegmentSequence, Slot, WalId};
pub use index::{IndexPoint, PartitionRange, PartitionSummary, SegmentIndex};
pub use recovery::{Activation, OpenError, RecoveryPlan, judge_newest, plan};
pub use scan::{Corruption, Scan, ScanEnd, ScanError};
pub use segment::{
    SEGMENT_BYTES_DEFAULT, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN, SEGMENT_HEADER_BYTES,
    SegmentHeader, SegmentHeaderError, SegmentState,
};
pub use segments::{NextSlot, Segments};
