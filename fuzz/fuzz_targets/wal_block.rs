//! See `targets/src/wal_block.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rustmq_fuzz_targets::wal_block::target(data));
