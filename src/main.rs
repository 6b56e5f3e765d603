//! The `rustmq` executable.
fn main() {}
