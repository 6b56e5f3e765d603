//! One lie of a disk: a write that was lost or went elsewhere, a flush that did nothing, bits that
//! changed.

use std::collections::BTreeMap;
use std::path::Path;

use rustmq_sys::sim::choice::Choice;
use rustmq_sys::sim::disk::{Applied, Disk, PAGE_BYTES};

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
    #[expect(dead_code, reason = "read through Debug, in the message of a finding")]
    pub(crate) to: Option<String>,
    /// The last block of a WAL or of the catalogue is gone or damaged: a log that ends earlier looks as
    /// whole as one that was never longer.
    pub(crate) takes_an_end: bool,
}

/// Lies once. `None`: there was nothing to lie about.
pub(crate) fn tell(image: &mut Image, choice: &mut Choice) -> Option<Lie> {
    let before = image.before.take()?;
    let last = last_of_each_folder(&image.disk, &before);
    for _ in 0..16 {
        let lie = match choice.below(4) {
            0 => take_back(image, &before, choice),
            1 => lying_flush(image, &before, choice),
            2 => misdirect(image, &before, choice),
            _ => rot(image, choice),
        };
        if let Some(lie) = lie {
            let takes_an_end = last.iter().any(|write| !image.disk.has(write));
            return Some(Lie { takes_an_end, ..lie });
        }
    }
    None
}

/// Of each folder the last block or append that tells of those before it, if the crash has left it.
/// One that the device took in parts is several writes.
pub(crate) fn last_of_each_folder(after: &Disk, before: &Disk) -> Vec<Applied> {
    let files = before.files();
    let folder_of = |write: &Applied| {
        let (file, _, _) = write.place();
        let (name, _, _) = files.iter().find(|(_, id, _)| *id == file)?;
        name.parent()
    };
    let mut last: BTreeMap<&Path, Vec<&Applied>> = BTreeMap::new();
    for write in before.applied().filter(|write| after.has(write)) {
        let Some(folder) = folder_of(write) else { continue };
        let parts = last.entry(folder).or_default();
        // What goes on with a block is no block, even if a forger made it look like one.
        let goes_on = match (parts.first(), parts.last()) {
            (Some(first), Some(part)) => {
                let ((file, position, bytes), place) = (part.place(), write.place());
                let joins = (file, position + bytes) == (place.0, place.1);
                joins && place.1 < first.place().1 + length_of(first).unwrap_or_default()
            }
            _ => false,
        };
        let tells = !goes_on && length_of(write).is_some();
        if tells {
            parts.clear();
        }
        if tells || goes_on {
            parts.push(write);
        }
    }
    last.into_values().flatten().cloned().collect()
}

/// How writes begin that tell of those before them, and where they have their length: blocks of a WAL,
/// appends to the catalogue.
const MAGICS: [(&[u8], usize); 2] = [(b"RQBK", 64), (b"RQCA", 40)];

/// The length of the block or append that a write begins with.
fn length_of(write: &Applied) -> Option<u64> {
    let bytes = write.first_bytes();
    let (_, at) = MAGICS.iter().find(|(magic, _)| bytes.starts_with(magic))?;
    bytes[*at..].first_chunk().map(|length| u64::from(u32::from_le_bytes(*length)))
}

fn take_back(image: &mut Image, before: &Disk, choice: &mut Choice) -> Option<Lie> {
    let index = recent(before.applied().len(), choice)?;
    let write = before.applied().nth(index)?;
    image.disk.lose(write).then(|| describe(before, "lost write", write))?
}

fn lying_flush(image: &mut Image, before: &Disk, choice: &mut Choice) -> Option<Lie> {
    let index = recent(before.applied().len(), choice)?;
    let write = before.applied().nth(index)?;
    let lied = image.disk.lose_sectors(write, choice);
    lied.then(|| describe(before, "lying flush", write))?
}

fn misdirect(image: &mut Image, before: &Disk, choice: &mut Choice) -> Option<Lie> {
    let index = recent(before.applied().len(), choice)?;
    let write = before.applied().nth(index)?;
    let files = image.disk.files();
    let (_, to, bytes) = choice.pick(&files);
    let pages = (*bytes as usize / PAGE_BYTES).max(1);
    let page = choice.below(pages as u64) as usize;
    if !image.disk.misdirect(write, *to, page) {
        return None;
    }
    let to = files.iter().find(|(_, file, _)| file == to)?;
    let to = format!("{} at {}", to.0.display(), page * PAGE_BYTES);
    Some(Lie { to: Some(to), ..describe(before, "misdirected write", write)? })
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
    Some(Lie { kind: "rot", file, position, bytes: 1, to: None, takes_an_end: false })
}

fn describe(before: &Disk, kind: &'static str, write: &Applied) -> Option<Lie> {
    let (file, position, bytes) = write.place();
    let files = before.files();
    let (name, _, _) = files.iter().find(|(_, id, _)| *id == file)?;
    let file = name.display().to_string();
    Some(Lie { kind, file, position, bytes, to: None, takes_an_end: false })
}

/// Half of the time one of the last few, or most lies would be about what is long gone.
fn recent(count: usize, choice: &mut Choice) -> Option<usize> {
    let count = count as u64;
    let back = match choice.chance(1, 2) {
        true => choice.below(count.clamp(1, 12)),
        false => choice.below(count.max(1)),
    };
    (back < count).then(|| (count - 1 - back) as usize)
}
