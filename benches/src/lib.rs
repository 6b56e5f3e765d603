//! Micro benches and the open-loop load generator.
