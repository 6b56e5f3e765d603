//! Every decision about records: offsets, epochs, producers, cache, retention, pure.
