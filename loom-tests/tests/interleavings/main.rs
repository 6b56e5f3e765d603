//! Scenarios of two or three threads in every interleaving, and whether these notice it when an
//! ordering is weaker than the source says.

mod channel;
mod doorbell;
mod shutdown;
#[cfg(loom)]
mod weakened;
