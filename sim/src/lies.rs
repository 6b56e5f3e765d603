//! One lie of a disk: a write that was lost or went elsewhere, a flush that did nothing, bits that
//! changed.

use std::path::Path;

use rustmq_sys::sim::choice::Choice;
use rustmq_sys::sim::disk::{Applied, PAGE_BYTES};

use crate::run::Image;

/// What the disk did, for whoever reads about it.
#[derive(Clone, Debug)]
pub(crate) struct Lie {
    #[expect(dead_code, reason = "read through Debug, in the message of a finding")]
    pub(crate) kind: &'static str,
    #[expect(dead_code, reason = "read through Debug, in the message of a finding")]
    pub(crate) file: String,
    #[expect(dead_code, reason = "read through Debug, in the message of a finding")]
    pub(crate) position: u64,
    #[expect(dead_code, reason = "read through Debug, in the message of a finding")]
    pub(crate) bytes: u64,
    /// Nothing is left in its folder that was made durable after it: a log that ends earlier looks as
    /// whole as one that was never longer.
    pub(crate) is_last_write: bool,
}

/// Lies once. `None`: there was nothing to lie about.
pub(crate) fn tell(image: &mut Image, choice: &mut Choice) -> Option<Lie> {
    for _ in 0..16 {
        let lie = match choice.below(4) {
            0 => take_back(image, choice),
            1 => lying_flush(image, choice),
            2 => misdirect(image, choice),
            _ => rot(image, choice),
        };
        if lie.is_some() {
            return lie;
        }
    }
    None
}

fn take_back(image: &mut Image, choice: &mut Choice) -> Option<Lie> {
    let index = recent(image.before.applied().len(), choice)?;
    let before = image.before.clone();
    let write = before.applied().nth(index)?;
    image.disk.lose(write).then(|| describe(image, "lost write", write, index))?
}

fn lying_flush(image: &mut Image, choice: &mut Choice) -> Option<Lie> {
    let index = recent(image.before.applied().len(), choice)?;
    let before = image.before.clone();
    let write = before.applied().nth(index)?;
    let lied = image.disk.lose_sectors(write, choice);
    lied.then(|| describe(image, "lying flush", write, index))?
}

fn misdirect(image: &mut Image, choice: &mut Choice) -> Option<Lie> {
    let index = recent(image.before.applied().len(), choice)?;
    let before = image.before.clone();
    let write = before.applied().nth(index)?;
    let files = image.disk.files();
    let (_, to, bytes) = choice.pick(&files);
    let pages = (*bytes as usize / PAGE_BYTES).max(1);
    let page = choice.below(pages as u64) as usize;
    let lied = image.disk.misdirect(write, *to, page);
    lied.then(|| describe(image, "misdirected write", write, index))?
}

/// Flips bits where something is: a page of zeroes tells little.
fn rot(image: &mut Image, choice: &mut Choice) -> Option<Lie> {
    let files = image.disk.files();
    let (name, file_of, bytes) = choice.pick(&files);
    let position = choice.below((*bytes).max(1));
    let page = position - position % PAGE_BYTES as u64;
    let is_blank = image.disk.bytes_at(*file_of, page, PAGE_BYTES).iter().all(|byte| *byte == 0);
    if is_blank && choice.chance(9, 10) {
        return None;
    }
    image.disk.rot(*file_of, position, 1 << choice.below(8));
    let file = name.display().to_string();
    // What rots may be the last block itself.
    let holds = |write: &Applied| {
        let (written, begin, bytes) = write.place();
        written == *file_of && (begin..begin + bytes).contains(&position)
    };
    let last = image.before.applied().rposition(holds);
    let is_last_write = last.is_some_and(|index| is_last(image, name.parent(), index));
    Some(Lie { kind: "rot", file, position, bytes: 1, is_last_write })
}

fn describe(image: &Image, kind: &'static str, write: &Applied, index: usize) -> Option<Lie> {
    let (file, position, bytes) = write.place();
    let files = image.before.files();
    let (name, _, _) = files.iter().find(|(_, id, _)| *id == file)?;
    let is_last_write = is_last(image, name.parent(), index);
    Some(Lie { kind, file: name.display().to_string(), position, bytes, is_last_write })
}

/// Has no block or catalogue entry survived in this folder that was made durable after the write with
/// this index?
fn is_last(image: &Image, folder: Option<&Path>, index: usize) -> bool {
    let files = image.before.files();
    let in_folder = |other: &&Applied| {
        let (file, _, _) = other.place();
        files.iter().any(|(name, id, _)| *id == file && name.parent() == folder)
    };
    let says_what_is_durable =
        |other: &&Applied| MAGICS.iter().any(|magic| other.first_bytes().starts_with(magic));
    let later = image.before.applied().skip(index + 1);
    !later.filter(in_folder).filter(says_what_is_durable).any(|other| image.disk.has(other))
}

/// How writes begin that tell of those before them: blocks of a WAL, appends to the catalogue.
const MAGICS: [&[u8]; 2] = [b"RQBK", b"RQCA"];

/// Half of the time one of the last few, or most lies would be about what is long gone.
fn recent(count: usize, choice: &mut Choice) -> Option<usize> {
    let count = count as u64;
    let back = match choice.chance(1, 2) {
        true => choice.below(count.clamp(1, 12)),
        false => choice.below(count.max(1)),
    };
    (back < count).then(|| (count - 1 - back) as usize)
}
