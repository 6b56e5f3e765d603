//! Files in few bytes: pages of which most are zero at their end.

use crate::source::Source;

/// What every part of the WAL and of the catalogue is aligned to.
pub(crate) const PAGE_BYTES: usize = 4096;

/// Pages of one image. 16: more than one block, footer or append of each kind, and few enough for
/// tens of thousands of images in a second.
pub(crate) const PAGES_MAX: usize = 16;

/// The pages that `source` describes, each by a `u16` length modulo a page and one and so many
/// bytes, the rest of it being zero. At most `pages_max`; it ends with the bytes.
pub(crate) fn image(source: &mut Source<'_>, pages_max: usize) -> Vec<u8> {
    let mut image = Vec::with_capacity(pages_max * PAGE_BYTES);
    while !source.is_empty() && image.len() < pages_max * PAGE_BYTES {
        let bytes = usize::from(source.u16()) % (PAGE_BYTES + 1);
        let page = image.len();
        image.extend_from_slice(source.slice(bytes));
        image.resize(page + PAGE_BYTES, 0);
    }
    image
}

/// What `image` reads as these bytes, which are cut to whole pages.
pub fn described(image: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for page in image.chunks_exact(PAGE_BYTES) {
        let used = page.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        out.extend_from_slice(&(used as u16).to_le_bytes());
        out.extend_from_slice(&page[..used]);
    }
    out
}
