//! Reading the catalogue: which file holds it, and whether to believe it.

use core::cmp::Ordering;
use core::fmt;

use super::layout::{
    AppendHeader, CATALOGUE_VERSION, CatalogueFile, FileHeader, HeaderRead, MARK, PAGE_BYTES,
    RETIRED, SNAPSHOT,
};
use super::writer::FileTail;
use crate::ids::BlockSequence;

/// The catalogue as it was read.
#[derive(Clone, Debug)]
pub struct CatalogueLog<'a> {
    /// State before the commands.
    pub snapshot: &'a [u8],
    /// Commands after it, in order.
    pub commands: Vec<&'a [u8]>,
    /// Where in the file the torn end of the last write was cut, if there was one.
    pub torn: Option<u64>,
    /// Size of both files.
    pub file_bytes: usize,
    pub(super) tail: FileTail,
}

impl CatalogueLog<'_> {
    /// The file it was read from.
    #[must_use]
    pub fn file(&self) -> CatalogueFile {
        self.tail.file
    }
}

/// One file, judged by itself.
enum FileRead<'a> {
    /// Never written.
    Blank,
    /// Its header says nothing.
    Unreadable,
    /// Its header is good, its snapshot is not, and nothing says it ever was: a switch was cut off.
    Unfinished {
        use_number: u64,
    },
    /// Something in it was flushed and is damaged.
    Corrupt {
        use_number: u64,
        error: FileError,
    },
    Whole {
        log: CatalogueLog<'a>,
        retired: bool,
    },
}

impl FileRead<'_> {
    fn use_number(&self) -> u64 {
        match self {
            Self::Blank | Self::Unreadable => 0,
            Self::Unfinished { use_number } | Self::Corrupt { use_number, .. } => *use_number,
            Self::Whole { log, .. } => log.tail.use_number,
        }
    }
}

/// Finds the catalogue in its two files, each given whole. `None`: there is none yet.
///
/// # Errors
/// A catalogue was there and cannot be believed, or not by this version. Nothing may be assumed:
/// a topic that is not found was not deleted by that.
pub fn open_catalogue<'a>(
    a: &'a [u8],
    b: &'a [u8],
) -> Result<Option<CatalogueLog<'a>>, CatalogueError> {
    let (bytes_of_a, bytes_of_b) = (a, b);
    let a = read_file(CatalogueFile::A, a, a.len())?;
    let b = read_file(CatalogueFile::B, b, b.len())?;
    for (file, other) in [(&a, bytes_of_b), (&b, bytes_of_a)] {
        if let FileRead::Whole { log, retired: false } = file {
            goes_on_in(&log.tail, other)?;
        }
    }
    let (newer, older) = if b.use_number() < a.use_number() { (a, b) } else { (b, a) };
    match (newer, older) {
        // Whatever the other file is: a switch away from this one was never answered.
        (FileRead::Whole { log, retired: false }, _)
        | (FileRead::Unfinished { .. }, FileRead::Whole { log, retired: false }) => Ok(Some(log)),
        (FileRead::Whole { log, retired: true }, _)
        | (FileRead::Unfinished { .. }, FileRead::Whole { log, retired: true }) => {
            Err(CatalogueError::SuccessorLost { retired: log.tail.file })
        }
        (FileRead::Corrupt { error, .. }, _) | (_, FileRead::Corrupt { error, .. }) => {
            Err(CatalogueError::Corrupt(error))
        }
        // The very first write of a catalogue was cut off: nothing was answered before it.
        (FileRead::Unfinished { use_number: 1 } | FileRead::Blank, FileRead::Blank) => Ok(None),
        (FileRead::Unfinished { .. } | FileRead::Blank | FileRead::Unreadable, _) => {
            Err(CatalogueError::NoSnapshot)
        }
    }
}

/// Which of the two files is to be read first, by their first pages and sizes in bytes, and how many
/// bytes of it: the newer one, where both headers say what the file is. `None`: both have to be read.
#[must_use]
pub fn newer_file(a: (&[u8], u64), b: (&[u8], u64)) -> Option<(CatalogueFile, usize)> {
    let read = |file, (page, file_bytes): (&[u8], u64)| {
        let file_bytes = usize::try_from(file_bytes).ok()?;
        match FileHeader::read(file, page, file_bytes) {
            HeaderRead::Header(header) => Some((header.use_number, header.end as usize)),
            HeaderRead::Blank => Some((0, 0)),
            HeaderRead::Unreadable | HeaderRead::NewerVersion(_) => None,
        }
    };
    let (a, b) = (read(CatalogueFile::A, a)?, read(CatalogueFile::B, b)?);
    match a.0.cmp(&b.0) {
        Ordering::Less => Some((CatalogueFile::B, b.1)),
        Ordering::Equal => None,
        Ordering::Greater => Some((CatalogueFile::A, a.1)),
    }
}

/// The catalogue from its newer file of `file_bytes`, given as far as [`newer_file`] said. `None`: this
/// file does not say it by itself, and [`open_catalogue`] has to see both.
#[must_use]
pub fn open_newer(
    file: CatalogueFile,
    bytes: &[u8],
    file_bytes: usize,
) -> Option<CatalogueLog<'_>> {
    match read_file(file, bytes, file_bytes) {
        Ok(FileRead::Whole { log, retired: false }) => Some(log),
        _ => None,
    }
}

fn read_file(
    file: CatalogueFile,
    bytes: &[u8],
    file_bytes: usize,
) -> Result<FileRead<'_>, CatalogueError> {
    match FileHeader::read(file, bytes, file_bytes) {
        HeaderRead::Blank => Ok(FileRead::Blank),
        HeaderRead::Unreadable => Ok(FileRead::Unreadable),
        HeaderRead::NewerVersion(found) => Err(newer_version(file, found)),
        // What lies behind the end is of earlier uses.
        HeaderRead::Header(header) => {
            let end = bytes.len().min(header.end as usize);
            follow(&header, bytes.get(..end).unwrap_or_default())
        }
    }
}

fn follow<'a>(header: &FileHeader, bytes: &'a [u8]) -> Result<FileRead<'a>, CatalogueError> {
    let use_number = header.use_number;
    let mut tail = FileTail {
        file: header.file,
        generation: header.generation,
        use_number,
        end: header.end as usize,
        position: PAGE_BYTES,
        sequence: BlockSequence::FIRST,
        prev_crc: 0,
        durable_end: BlockSequence::FIRST,
    };
    let mut snapshot = None;
    let mut commands = Vec::new();
    let mut retired = false;
    while let Some((append, mut records)) = read_append(&tail, bytes)? {
        tail.position += append.length as usize;
        tail.sequence = append.sequence.next();
        tail.prev_crc = append.crc;
        tail.durable_end = append.durable_end;
        retired = append.flags & RETIRED != 0;
        if append.flags & SNAPSHOT != 0 && !records.is_empty() {
            snapshot = Some(records.remove(0));
        }
        commands.append(&mut records);
        if retired {
            break;
        }
    }
    let begun = bytes.get(tail.position..).unwrap_or_default();
    // Its retirement, if it had one, may be where the device put the switch.
    retired = retired || holds_successor(header, begun);
    // A writer keeps room for the retirement: without it the last append is not one of a writer's.
    let has_room = tail.position + PAGE_BYTES <= bytes.len();
    if !retired && (!has_room || proves_flushed(&tail, begun)?) {
        let error = FileError {
            file: header.file,
            position: tail.position as u64,
            append: tail.sequence.0,
        };
        return Ok(FileRead::Corrupt { use_number, error });
    }
    let Some(snapshot) = snapshot else { return Ok(FileRead::Unfinished { use_number }) };
    let decoded = AppendHeader::decode(begun, tail.generation, tail.position as u64)
        .map_err(|found| newer_version(header.file, found))?;
    let torn = (decoded.is_some() && !retired).then_some(tail.position as u64);
    let file_bytes = header.file_bytes as usize;
    let log = CatalogueLog { snapshot, commands, torn, file_bytes, tail };
    Ok(FileRead::Whole { log, retired })
}

/// An append's header and records.
type Append<'a> = (AppendHeader, Vec<&'a [u8]>);

/// The append at the tail, whole and in its place.
fn read_append<'a>(tail: &FileTail, bytes: &'a [u8]) -> Result<Option<Append<'a>>, CatalogueError> {
    let Some(bytes) = bytes.get(tail.position..) else { return Ok(None) };
    let header = AppendHeader::decode(bytes, tail.generation, tail.position as u64)
        .map_err(|found| newer_version(tail.file, found))?;
    let Some(header) = header else { return Ok(None) };
    if header.sequence != tail.sequence || header.prev_crc != tail.prev_crc {
        return Ok(None);
    }
    Ok(header.records(bytes).map(|records| (header, records)))
}

/// Whether a later append says that the one missing at the tail was flushed.
fn proves_flushed(tail: &FileTail, rest: &[u8]) -> Result<bool, CatalogueError> {
    for (index, page) in rest.chunks(PAGE_BYTES).enumerate().skip(1) {
        let position = (tail.position + index * PAGE_BYTES) as u64;
        let later = AppendHeader::decode(page, tail.generation, position)
            .map_err(|found| newer_version(tail.file, found))?;
        if later.is_some_and(|later| tail.sequence < later.durable_end) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether a page is the header of a later use of the other file: a switch that is not where it belongs.
fn holds_successor(header: &FileHeader, rest: &[u8]) -> bool {
    let file_bytes = header.file_bytes as usize;
    rest.chunks(PAGE_BYTES).any(|page| {
        let read = FileHeader::decode(header.file.other(), page, file_bytes);
        matches!(read, HeaderRead::Header(other) if header.use_number < other.use_number)
    })
}

/// Fails if the append behind this tail is where the other file has its header: the device put it there.
fn goes_on_in(tail: &FileTail, other: &[u8]) -> Result<(), CatalogueError> {
    let found = AppendHeader::decode(other, tail.generation, tail.position as u64)
        .map_err(|found| newer_version(tail.file, found))?;
    let Some(next) = found else { return Ok(()) };
    if next.sequence != tail.sequence || next.prev_crc != tail.prev_crc || next.flags & MARK != 0 {
        return Ok(());
    }
    Err(match next.flags & RETIRED != 0 {
        true => CatalogueError::SuccessorLost { retired: tail.file },
        false => CatalogueError::Corrupt(FileError {
            file: tail.file,
            position: tail.position as u64,
            append: tail.sequence.0,
        }),
    })
}

fn newer_version(file: CatalogueFile, found: u16) -> CatalogueError {
    CatalogueError::NewerVersion { file, found, supported: CATALOGUE_VERSION }
}

/// Where a catalogue file is damaged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileError {
    /// The file.
    pub file: CatalogueFile,
    /// Where in it the damaged append begins.
    pub position: u64,
    /// Its number in the file, from 1.
    pub append: u64,
}

/// Why the catalogue is not opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CatalogueError {
    /// A file of a later version.
    NewerVersion {
        /// The file.
        file: CatalogueFile,
        /// Its version.
        found: u16,
        /// The newest this program reads.
        supported: u16,
    },
    /// Commands that were flushed are damaged.
    Corrupt(FileError),
    /// This file says that the other one goes on, and the other one is damaged.
    SuccessorLost {
        /// The file that was given up.
        retired: CatalogueFile,
    },
    /// Something was written and neither file has a whole snapshot.
    NoSnapshot,
}

impl fmt::Display for CatalogueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NewerVersion { file, found, supported } => write!(
                f,
                "{} has version {found}, this program reads up to {supported}",
                file.file_name()
            ),
            Self::Corrupt(FileError { file, position, append }) => write!(
                f,
                "append {append} of {} at position {position} was flushed and is damaged",
                file.file_name()
            ),
            Self::SuccessorLost { retired } => write!(
                f,
                "{} was given up for {}, which has no whole snapshot",
                retired.file_name(),
                retired.other().file_name()
            ),
            Self::NoSnapshot => write!(
                f,
                "neither {} nor {} has a whole snapshot",
                CatalogueFile::A.file_name(),
                CatalogueFile::B.file_name()
            ),
        }
    }
}

impl std::error::Error for CatalogueError {}
