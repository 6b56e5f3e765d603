//! All unsafe and all OS: SPSC rings, runtime backends, O_DIRECT files, UDP, buffers, pinning.
