//! What the sanitizers must find: `.ci/run sanitize` runs these and expects each to fail, so that a
//! sanitizer that is silent because it is not there is noticed.
//!
//! Only with `--cfg sanitizer`; no other build has them.

#![cfg(sanitizer)]
#![allow(unsafe_code, reason = "the faults that sanitizers look for are those of unsafe code")]

use std::cell::UnsafeCell;
use std::hint::black_box;
use std::thread;

/// For AddressSanitizer.
#[test]
fn overflow() {
    let bytes = vec![1_u8; black_box(24)];
    let behind = black_box(bytes.as_ptr().wrapping_add(24));
    // SAFETY: none; the address is one behind the allocation.
    let read = unsafe { behind.read_volatile() };
    println!("read {read} behind the end");
}

/// For AddressSanitizer.
#[test]
fn use_after_free() {
    let freed = {
        let bytes = vec![1_u8; black_box(24)];
        black_box(bytes.as_ptr())
    };
    // SAFETY: none; the allocation is gone.
    let read = unsafe { freed.read_volatile() };
    println!("read {read} after it was freed");
}

struct Shared(UnsafeCell<u64>);

// SAFETY: none; two threads write to it at once.
unsafe impl Sync for Shared {}

/// For ThreadSanitizer.
#[test]
fn race() {
    static SHARED: Shared = Shared(UnsafeCell::new(0));
    let write = || {
        for value in 0..1000 {
            // SAFETY: none; the other thread writes too.
            unsafe { SHARED.0.get().write_volatile(value) };
        }
    };
    let other = thread::spawn(write);
    write();
    other.join().expect("the other thread ends");
}
