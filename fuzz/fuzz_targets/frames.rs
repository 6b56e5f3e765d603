//! See `targets/src/frames.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rustmq_fuzz_targets::frames::target(data));
