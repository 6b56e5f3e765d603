//! Ids, limits, error codes, record batches, frames and requests: the wire, pure.
