//! See `targets/src/footer.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rustmq_fuzz_targets::footer::target(data));
