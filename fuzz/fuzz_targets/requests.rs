//! See `targets/src/requests.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rustmq_fuzz_targets::requests::target(data));
