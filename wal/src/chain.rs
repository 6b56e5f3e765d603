//! Where the WAL's next block goes and what it follows.

use crate::block::{BlockFlags, ChainPoint};
use crate::builder::{BlockContext, SealedBlock};
use crate::ids::{BlockSequence, Generation, Incarnation, NextSegment};

/// The writing end of a WAL: gives each block its place in the chain.
///
/// Owned by the WAL's writer on its shard. Begins from what recovery found (or a new WAL), moves
/// with every block and into every segment. Invariant: `durable_end <= sequence`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    point: ChainPoint,
    durable_end: BlockSequence,
}

impl Chain {
    /// Goes on at `point` in a new incarnation; blocks below `durable_end` are known flushed.
    #[must_use]
    pub fn new(point: &ChainPoint, incarnation: Incarnation, durable_end: BlockSequence) -> Self {
        assert!(point.incarnation < incarnation, "each opening is a new incarnation");
        assert!(durable_end <= point.sequence, "a block is not durable before it exists");
        Self { point: ChainPoint { incarnation, ..*point }, durable_end }
    }

    /// Context of the next block. For a seal or clean block everything before must be flushed.
    #[must_use]
    pub fn context(&self, flags: BlockFlags, next: Option<NextSegment>) -> BlockContext {
        BlockContext { at: self.point, durable_end: self.durable_end, flags, next }
    }

    /// A block was sealed with the last context: the next one follows it.
    pub fn advance(&mut self, sealed: &SealedBlock) {
        assert!(sealed.sequence == self.point.sequence, "blocks are sealed in order");
        assert!(sealed.position == self.point.position, "blocks lie one after another");
        self.point.position += sealed.bytes() as u64;
        self.point.sequence = sealed.sequence.next();
        self.point.prev_crc = sealed.crc;
    }

    /// Every block up to and with `sequence` is flushed.
    pub fn handle_flushed(&mut self, sequence: BlockSequence) {
        assert!(sequence < self.point.sequence, "only written blocks can be flushed");
        self.durable_end = self.durable_end.max(sequence.next());
    }

    /// The next block goes to another segment, after its header.
    pub fn enter(&mut self, generation: Generation, position: u64) {
        self.point.generation = generation;
        self.point.position = position;
    }

    /// Where the next block goes.
    #[must_use]
    pub fn point(&self) -> ChainPoint {
        self.point
    }

    /// First block not known flushed.
    #[must_use]
    pub fn durable_end(&self) -> BlockSequence {
        self.durable_end
    }

    /// This opening of the WAL.
    #[must_use]
    pub fn incarnation(&self) -> Incarnation {
        self.point.incarnation
    }
}
