//! Blocks, segments, footers, group commit and recovery of the write-ahead log, pure.
