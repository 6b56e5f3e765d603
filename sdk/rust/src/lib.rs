//! The Rust client of RustMQ.
