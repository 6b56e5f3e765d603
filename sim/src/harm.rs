//! Damage to a disk at rest: a bit that turned, a sector or page that was wiped, two pages that changed
//! places, a write that was lost or went elsewhere, a file that is gone.

use std::path::PathBuf;

use rustmq_sys::sim::disk::{Applied, Disk, FileId, PAGE_BYTES, SECTOR_BYTES};

use crate::scenario::SEGMENT_BYTES;

/// What a sector or page is wiped with.
const FILLS: [u8; 2] = [0, 0xff];

/// A place in a file, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) file: FileId,
    pub(crate) position: u64,
}

impl Place {
    fn page(self) -> usize {
        self.position as usize / PAGE_BYTES
    }
}

/// One damage.
pub(crate) enum Harm {
    /// A bit of a byte turned.
    Bit { place: Place, mask: u8 },
    /// So many bytes are all the same now.
    Wiped { place: Place, bytes: usize, with: u8 },
    /// Each of two pages is where the other one was.
    Swapped { one: Place, other: Place },
    /// What was written is as it was before.
    Lost { write: Applied },
    /// The same, and it is in this place instead.
    Misdirected { write: Applied, to: Place },
    /// A file is gone.
    Gone { name: PathBuf },
}

impl Harm {
    /// Does it to a disk. False: nothing of it is there any more.
    pub(crate) fn apply(&self, disk: &mut Disk) -> bool {
        match self {
            Self::Bit { place, mask } => disk.rot(place.file, place.position, *mask),
            Self::Wiped { place, bytes, with } => {
                disk.overwrite(place.file, place.position, &vec![*with; *bytes]);
            }
            Self::Swapped { one, other } => {
                let [first, second] = [one, other].map(|place| page_at(disk, *place));
                disk.overwrite(one.file, one.position, &second);
                disk.overwrite(other.file, other.position, &first);
            }
            Self::Lost { write } => return disk.lose(write),
            Self::Misdirected { write, to } => {
                return disk.misdirect(write, to.file, to.page());
            }
            Self::Gone { name } => return disk.lose_file(name),
        }
        true
    }

    /// May it keep a broker from starting? One bit of the log may not.
    pub(crate) fn may_refuse(&self, disk: &Disk) -> bool {
        let Self::Bit { place, .. } = self else { return true };
        let is_it = |(_, file, bytes): &(_, _, u64)| *file == place.file && *bytes == SEGMENT_BYTES;
        !disk.files().iter().any(is_it)
    }

    /// What is damaged, for whoever reads about it.
    pub(crate) fn describe(&self, disk: &Disk) -> String {
        let name = |place: &Place| {
            let files = disk.files();
            let found = files.iter().find(|(_, file, _)| *file == place.file);
            let name = found.map_or_else(String::new, |(name, _, _)| name.display().to_string());
            format!("{name} at {}", place.position)
        };
        let written = |write: &Applied| {
            let (file, position, bytes) = write.place();
            format!("{}: {bytes} bytes written", name(&Place { file, position }))
        };
        match self {
            Self::Bit { place, mask } => format!("{}: bit {mask:#04x} turned", name(place)),
            Self::Wiped { place, bytes, with } => {
                format!("{}: {bytes} bytes are {with:#04x}", name(place))
            }
            Self::Swapped { one, other } => format!("{} and {} swapped", name(one), name(other)),
            Self::Lost { write } => format!("{} lost", written(write)),
            Self::Misdirected { write, to } => format!("{} went to {}", written(write), name(to)),
            Self::Gone { name } => format!("{} is gone", name.display()),
        }
    }
}

/// There are so many more bits than pairs of pages, or places for a write to go to.
const BITS_PER_PAIR: u64 = 16;

/// Every damage of those kinds to a disk that remembers what was written: of the bits one in `step`, of the
/// pairs of pages and the places where a write went [`BITS_PER_PAIR`] times as many. Pages without anything
/// in them lose nothing: of them it is one bit alone.
pub(crate) fn all(disk: &Disk, step: u64, turn: u64) -> Vec<Harm> {
    let mut harms = Vec::new();
    let (mut places, mut pages) = (Vec::new(), Vec::new());
    for (name, file, bytes) in disk.files() {
        harms.push(Harm::Gone { name });
        for position in (0..bytes).step_by(PAGE_BYTES) {
            let place = Place { file, position };
            places.push(place);
            match page_at(disk, place).iter().all(|byte| *byte == 0) {
                true => harms.push(Harm::Bit { place, mask: 1 << (turn % 8) }),
                false => pages.push(place),
            }
        }
    }
    for page in &pages {
        of_page(*page, step, turn, &mut harms);
    }
    let step_of_pairs = step.div_ceil(BITS_PER_PAIR) as usize;
    let pairs = pages
        .iter()
        .enumerate()
        .flat_map(|(index, one)| pages[index + 1..].iter().map(move |other| (*one, *other)));
    harms.extend(pairs.step_by(step_of_pairs).map(|(one, other)| Harm::Swapped { one, other }));
    let writes: Vec<&Applied> = disk.applied().filter(|write| disk.has(write)).collect();
    harms.extend(writes.iter().map(|write| Harm::Lost { write: (*write).clone() }));
    let elsewhere = writes.iter().flat_map(|write| {
        let places = places.iter().filter(|to| disk.fits(write, to.file, to.page()));
        places.map(|to| Harm::Misdirected { write: (*write).clone(), to: *to })
    });
    harms.extend(elsewhere.step_by(step_of_pairs));
    harms
}

/// Its bits, one of each byte, another one from byte to byte and from `turn` to `turn`; its sectors, and all
/// of it, wiped.
fn of_page(page: Place, step: u64, turn: u64, harms: &mut Vec<Harm>) {
    let within = |at: usize| Place { position: page.position + at as u64, ..page };
    let chosen = |place: &Place| (place.position + turn).is_multiple_of(step);
    for place in (0..PAGE_BYTES).map(within).filter(chosen) {
        harms.push(Harm::Bit { place, mask: 1 << ((place.position * 5 + turn) % 8) });
    }
    for with in FILLS {
        for at in (0..PAGE_BYTES).step_by(SECTOR_BYTES) {
            harms.push(Harm::Wiped { place: within(at), bytes: SECTOR_BYTES, with });
        }
        harms.push(Harm::Wiped { place: page, bytes: PAGE_BYTES, with });
    }
}

fn page_at(disk: &Disk, place: Place) -> Vec<u8> {
    disk.bytes_at(place.file, place.position, PAGE_BYTES)
}
