//! Interleavings of the SPSC ring, the doorbell and shutdown under loom.
