//! Records that look like blocks of the log they are in: what a client who has seen the format may
//! send.

use rustmq_sys::sim::World;
use rustmq_sys::sim::choice::Choice;
use rustmq_sys::sim::disk::PAGE_BYTES;

use crate::records::VALUE_BYTES_MIN;

/// How a block of the log begins.
const BLOCK_MAGIC: &[u8] = b"RQBK";

/// Where in its block the value of a record lies that is alone in it, in bytes: header, directory,
/// entry header, batch header, record header. Found by looking; a forger finds it the same way.
const VALUE_AT: usize = 744;

/// Pages looked at for a block's beginning.
const TRIES: usize = 32;

/// A real block of the log, behind so many bytes that it lies on a page's beginning if the record is
/// alone in its block. `None`: there is no block yet.
pub(crate) fn block_in_a_record(world: &World, choice: &mut Choice) -> Option<Vec<u8>> {
    let disk = world.disk();
    let files = disk.files();
    let logs: Vec<_> = files
        .iter()
        .filter(|(name, _, _)| name.extension().is_some_and(|extension| extension == "wal"))
        .collect();
    if logs.is_empty() {
        return None;
    }
    for _ in 0..TRIES {
        let (_, file, bytes) = choice.pick(&logs);
        let at = choice.below(*bytes / PAGE_BYTES as u64) * PAGE_BYTES as u64;
        let page = disk.bytes_at(*file, at, PAGE_BYTES);
        if page.starts_with(BLOCK_MAGIC) {
            let begin = (VALUE_AT + VALUE_BYTES_MIN) % PAGE_BYTES;
            let mut forged = vec![0; PAGE_BYTES - begin];
            forged.extend_from_slice(&page);
            return Some(forged);
        }
    }
    None
}
