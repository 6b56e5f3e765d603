//! See `targets/src/catalogue.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rustmq_fuzz_targets::catalogue::target(data));
