//! Records that look like blocks of the log they are in: what a client who has seen the format may
//! send.

use rustmq_sys::sim::World;
use rustmq_sys::sim::choice::Choice;
use rustmq_sys::sim::disk::{Applied, PAGE_BYTES};

use crate::records::VALUE_BYTES_MIN;

/// How a block of the log begins.
const BLOCK_MAGIC: &[u8] = b"RQBK";

/// Where in its block the value of a record lies that is alone in it, in bytes: header, directory,
/// entry header, batch header, record header. Found by looking; a forger finds it the same way.
const VALUE_AT: usize = 744;

/// Blocks to choose from: the latest ones, which are of the segment that is written now.
const CHOICES: u64 = 16;

/// A real block of the log of one page, behind so many bytes that it lies on a page's beginning if
/// the record is alone in its block. `None`: there is no such block yet.
pub(crate) fn block_in_a_record(world: &World, choice: &mut Choice) -> Option<Vec<u8>> {
    let disk = world.disk();
    let is_block = |write: &&Applied| {
        write.first_bytes().starts_with(BLOCK_MAGIC) && write.place().2 == PAGE_BYTES as u64
    };
    let back = choice.below(CHOICES) as usize;
    let write = disk.applied().rev().filter(is_block).nth(back)?;
    let (file, position, _) = write.place();
    let begin = (VALUE_AT + VALUE_BYTES_MIN) % PAGE_BYTES;
    let mut forged = vec![0; PAGE_BYTES - begin];
    forged.extend(disk.bytes_at(file, position, PAGE_BYTES));
    Some(forged)
}
