//! The shell of one core: sessions, produce, fetch, WAL writing, recovery, mesh.
