use proptest::prelude::*;

use super::layout::PAGE_BYTES;
use super::*;
use crate::ids::Generation;

const FILE_BYTES: usize = CATALOGUE_BYTES_MIN;
const SECTOR_BYTES: usize = 512;

#[derive(Clone)]
struct Files([Vec<u8>; 2]);

impl Files {
    fn new() -> Self {
        Self([vec![0; FILE_BYTES], vec![0; FILE_BYTES]])
    }

    fn file(&mut self, file: CatalogueFile) -> &mut Vec<u8> {
        &mut self.0[file as usize - 1]
    }

    fn put(&mut self, write: CatalogueWrite, bytes: &[u8], survives: &dyn Fn(usize) -> bool) {
        for (sector, chunk) in bytes.chunks(SECTOR_BYTES).enumerate() {
            if survives(sector) {
                let start = write.position as usize + sector * SECTOR_BYTES;
                self.file(write.file)[start..start + chunk.len()].copy_from_slice(chunk);
            }
        }
    }

    fn open(&self) -> Result<Option<CatalogueLog<'_>>, CatalogueError> {
        let opened = open_catalogue(&self.0[0], &self.0[1]);
        // What is read of the newer file alone is what both of them say.
        if let Some(alone) = self.open_newer() {
            let both = opened.as_ref().expect("believed").as_ref().expect("found");
            assert_eq!((alone.file(), alone.torn), (both.file(), both.torn));
            assert_eq!((alone.snapshot, &alone.commands), (both.snapshot, &both.commands));
        }
        opened
    }

    fn open_newer(&self) -> Option<CatalogueLog<'_>> {
        let [a, b] = self.0.each_ref().map(|file| (&file[..PAGE_BYTES], file.len() as u64));
        let (newer, end) = newer_file(a, b)?;
        let bytes = &self.0[newer as usize - 1];
        open_newer(newer, &bytes[..end], bytes.len())
    }
}

/// A catalogue whose state is the list of its commands; a snapshot is all of them, one per line.
struct Catalogue {
    files: Files,
    writer: CatalogueWriter,
    state: Vec<String>,
    generation: u64,
    out: Vec<u8>,
    /// The files before each write that was not yet flushed then, and the write.
    writes: Vec<(Files, CatalogueWrite, Vec<u8>, Vec<String>)>,
}

impl Catalogue {
    fn create() -> Self {
        let mut catalogue = Self {
            files: Files::new(),
            writer: CatalogueWriter::create(FILE_BYTES),
            state: Vec::new(),
            generation: 100,
            out: Vec::new(),
            writes: Vec::new(),
        };
        catalogue.switch(&[]);
        catalogue
    }

    fn reopen(files: Files, generation: u64) -> Self {
        let log = files.open().unwrap().expect("a catalogue is there");
        let mut state = parse(log.snapshot);
        state.extend(log.commands.iter().flat_map(|command| parse(command)));
        let writer = CatalogueWriter::resume(&log);
        let (out, writes) = (Vec::new(), Vec::new());
        let mut catalogue = Self { files, writer, state, generation, out, writes };
        catalogue.switch(&[]);
        catalogue
    }

    fn snapshot(&self) -> Vec<u8> {
        self.state.join("\n").into_bytes()
    }

    fn apply(&mut self, command: &str) -> CataloguePlan {
        let snapshot_bytes = self.snapshot().len();
        let plan = self.writer.plan(snapshot_bytes, &[command.len()], CommandEffect::Grows);
        match plan {
            CataloguePlan::Append => {
                let write = self.writer.append(&[command.as_bytes()], &mut self.out);
                self.state.push(command.to_owned());
                self.write(write);
            }
            CataloguePlan::Switch => self.switch(&[command]),
            CataloguePlan::Full => {}
        }
        plan
    }

    fn switch(&mut self, commands: &[&str]) {
        self.generation += 1;
        let snapshot = self.snapshot();
        let bytes: Vec<&[u8]> = commands.iter().map(|command| command.as_bytes()).collect();
        let generation = Generation(self.generation);
        let write = self.writer.switch(generation, &snapshot, &bytes, &mut self.out);
        self.state.extend(commands.iter().map(|command| (*command).to_owned()));
        self.write(write);
        if let Some(write) = self.writer.retire(&mut self.out) {
            self.write(write);
        }
    }

    fn mark(&mut self) {
        if self.writer.wants_mark() {
            let write = self.writer.mark(&mut self.out);
            self.write(write);
        }
    }

    fn write(&mut self, write: CatalogueWrite) {
        let before = self.files.clone();
        self.files.put(write, &self.out, &|_| true);
        self.writer.handle_flushed();
        self.writes.push((before, write, self.out.clone(), self.state.clone()));
    }
}

fn parse(bytes: &[u8]) -> Vec<String> {
    let text = core::str::from_utf8(bytes).unwrap();
    if text.is_empty() { Vec::new() } else { text.split('\n').map(str::to_owned).collect() }
}

fn state_of(files: &Files) -> Vec<String> {
    let log = files.open().unwrap().expect("a catalogue is there");
    let mut state = parse(log.snapshot);
    state.extend(log.commands.iter().flat_map(|command| parse(command)));
    state
}

#[test]
fn the_newer_file_says_the_catalogue_by_itself_unless_there_is_doubt() {
    let blank = Files::new();
    assert!(blank.open_newer().is_none(), "nothing was written");
    let mut catalogue = Catalogue::create();
    let first = catalogue.files.open_newer().expect("one file has a header").file();
    catalogue.switch(&[]);
    let second = catalogue.files.open_newer().expect("the newer one is whole").file();
    assert_ne!(first, second);
    // A header that says nothing may be that of a newer file.
    let mut doubt = catalogue.files.clone();
    doubt.file(first)[..SECTOR_BYTES].fill(0xff);
    assert!(doubt.open_newer().is_none());
    // A newer file that does not say everything is not enough.
    let mut damaged = catalogue.files.clone();
    damaged.file(second)[PAGE_BYTES..2 * PAGE_BYTES].fill(0xff);
    assert!(damaged.open_newer().is_none());
}

#[test]
fn an_empty_directory_has_no_catalogue() {
    assert!(open_catalogue(&[], &[]).unwrap().is_none());
    assert!(Files::new().open().unwrap().is_none());
}

#[test]
fn commands_are_read_in_order_after_the_snapshot() {
    let mut catalogue = Catalogue::create();
    for command in ["a", "bb", ""] {
        catalogue.apply(command);
    }
    let log = catalogue.files.open().unwrap().expect("it is there");
    assert_eq!(log.snapshot, b"");
    assert_eq!(log.commands, [&b"a"[..], b"bb", b""]);
    assert_eq!((log.file(), log.torn), (CatalogueFile::A, None));
    let reopened = Catalogue::reopen(catalogue.files, 500);
    let log = reopened.files.open().unwrap().expect("it is there");
    assert_eq!((log.snapshot, log.file()), (&b"a\nbb"[..], CatalogueFile::B), "opening switches");
}

#[test]
fn a_full_file_goes_on_in_the_other_and_nothing_is_lost() {
    let mut catalogue = Catalogue::create();
    let mut switches = 0;
    for number in 0..60 {
        if catalogue.apply(&format!("command {number}")) == CataloguePlan::Switch {
            switches += 1;
        }
        if number % 3 == 0 {
            catalogue.mark();
        }
        assert_eq!(state_of(&catalogue.files), catalogue.state);
    }
    assert!(3 < switches, "16 pages take a dozen commands");
}

#[test]
fn growth_is_refused_at_half_a_file_and_freeing_always_fits() {
    let mut catalogue = Catalogue::create();
    let command = "x".repeat(1000);
    while catalogue.apply(&command) != CataloguePlan::Full {}
    let snapshot = catalogue.snapshot().len();
    assert!(snapshot <= FILE_BYTES / 2 && FILE_BYTES / 2 - 3 * PAGE_BYTES < snapshot);
    // As many deletions as there are entries, each a command that must be written.
    for _ in 0..catalogue.state.len() {
        let snapshot_bytes = catalogue.snapshot().len();
        match catalogue.writer.plan(snapshot_bytes, &[100], CommandEffect::Frees) {
            CataloguePlan::Append => {
                let write = catalogue.writer.append(&[&[b'-'; 100]], &mut catalogue.out);
                catalogue.write(write);
            }
            CataloguePlan::Switch => catalogue.switch(&[]),
            CataloguePlan::Full => panic!("deleting always fits"),
        }
        catalogue.mark();
        catalogue.state.pop();
    }
}

#[test]
fn a_crash_in_any_write_leaves_the_state_before_it_or_after_it() {
    let mut catalogue = Catalogue::create();
    for number in 0..40 {
        catalogue.apply(&format!("{number} {}", "y".repeat(number * 20)));
        if number % 5 == 0 {
            catalogue.mark();
        }
    }
    let mut states = vec![Vec::new()];
    states.extend(catalogue.writes.iter().map(|(_, _, _, state)| state.clone()));
    for (index, (before, write, bytes, _)) in catalogue.writes.iter().enumerate() {
        let sectors = bytes.len() / SECTOR_BYTES;
        for cut in 0..=sectors {
            let survivals: [&dyn Fn(usize) -> bool; 4] = [
                &|sector| sector < cut,
                &|sector| cut <= sector,
                &|sector| sector != cut,
                &|sector| sector == cut,
            ];
            for survives in survivals {
                let mut files = before.clone();
                files.put(*write, bytes, survives);
                if index == 0 {
                    // Making the catalogue: there is none, or an empty one.
                    match files.open() {
                        Ok(None) => {}
                        Ok(Some(log)) => {
                            assert!(log.snapshot.is_empty() && log.commands.is_empty())
                        }
                        Err(CatalogueError::NoSnapshot) => panic!("write 0 cut {cut}"),
                        Err(error) => panic!("{error}"),
                    }
                    continue;
                }
                let state = state_of(&files);
                assert!(
                    state == states[index] || state == states[index + 1],
                    "write {index} cut at {cut}: a state that never was"
                );
                // And the next start works on.
                let mut again = Catalogue::reopen(files, 1 << 20);
                assert_eq!(state_of(&again.files), state);
                again.apply("more");
                assert_eq!(state_of(&again.files).last().map(String::as_str), Some("more"));
            }
        }
    }
}

fn with_commands() -> Catalogue {
    let mut catalogue = Catalogue::create();
    for command in ["one", "two", "three"] {
        catalogue.apply(command);
    }
    catalogue
}

#[test]
fn a_damaged_command_below_the_durable_end_is_told() {
    let mut catalogue = with_commands();
    // Header, snapshot, then a page for each command.
    for page in [1, 2, 3] {
        let mut files = catalogue.files.clone();
        files.0[0][page * PAGE_BYTES + 66] ^= 1;
        let error = FileError {
            file: CatalogueFile::A,
            position: (page * PAGE_BYTES) as u64,
            append: page as u64,
        };
        assert_eq!(files.open().unwrap_err(), CatalogueError::Corrupt(error));
    }
    let mut files = catalogue.files.clone();
    files.0[0][4 * PAGE_BYTES + 66] ^= 1;
    let log = files.open().unwrap().expect("the last one is taken for torn");
    assert_eq!(log.torn, Some(4 * PAGE_BYTES as u64));
    catalogue.mark();
    let mut files = catalogue.files.clone();
    files.0[0][4 * PAGE_BYTES + 66] ^= 1;
    assert!(matches!(files.open(), Err(CatalogueError::Corrupt(_))), "after a mark it is not");
}

#[test]
fn a_lost_successor_never_falls_back_to_the_retired_file() {
    let mut catalogue = with_commands();
    catalogue.switch(&["four"]);
    assert_eq!(catalogue.files.open().unwrap().expect("there").file(), CatalogueFile::B);
    let lost = CatalogueError::SuccessorLost { retired: CatalogueFile::A };
    for damaged in [0..SECTOR_BYTES, PAGE_BYTES..PAGE_BYTES + SECTOR_BYTES, 0..FILE_BYTES] {
        let mut files = catalogue.files.clone();
        files.0[1][damaged].fill(0);
        assert_eq!(files.open().unwrap_err(), lost);
    }
    let mut files = catalogue.files.clone();
    files.0[0].fill(0);
    assert_eq!(state_of(&files), catalogue.state, "the older file is not needed");
}

/// The device put the whole switch into the file before it, over what says that there was one.
#[test]
fn a_successor_that_lies_over_the_retirement_is_told() {
    let mut catalogue = with_commands();
    let before = catalogue.files.clone();
    catalogue.switch(&["four"]);
    let [.., (_, _, switch, _), (_, retirement, _, _)] = &catalogue.writes[..] else {
        panic!("a switch and a retirement were written");
    };
    assert_eq!(retirement.file, CatalogueFile::A);
    for earlier in (0..switch.len()).step_by(PAGE_BYTES) {
        let mut files = Files([catalogue.files.0[0].clone(), before.0[1].clone()]);
        let position = retirement.position - earlier as u64;
        files.put(CatalogueWrite { position, ..*retirement }, switch, &|_| true);
        let told = files.open().err();
        let lost = CatalogueError::SuccessorLost { retired: CatalogueFile::A };
        assert_eq!(told, Some(lost), "{earlier} bytes before it");
    }
}

/// The device put an append over the header of the other file: the retirement over its successor's, or a
/// command over that of an earlier use.
#[test]
fn an_append_that_lies_over_the_other_header_is_told() {
    let mut catalogue = with_commands();
    let [.., (before, command, bytes, _)] = &catalogue.writes[..] else {
        panic!("it has commands")
    };
    let mut files = before.clone();
    files.put(CatalogueWrite { file: CatalogueFile::B, position: 0 }, bytes, &|_| true);
    let told = files.open().err();
    let is_told = |error: &CatalogueError| match error {
        CatalogueError::Corrupt(error) => {
            (error.file, error.position) == (CatalogueFile::A, command.position)
        }
        _ => false,
    };
    assert!(told.as_ref().is_some_and(is_told), "{told:?}");

    catalogue.switch(&["four"]);
    let [.., (before, _, bytes, _)] = &catalogue.writes[..] else { panic!("it has switched") };
    let mut files = before.clone();
    files.put(CatalogueWrite { file: CatalogueFile::B, position: 0 }, bytes, &|_| true);
    let lost = CatalogueError::SuccessorLost { retired: CatalogueFile::A };
    assert_eq!(files.open().err(), Some(lost));
}

#[test]
fn a_first_file_that_is_damaged_is_not_an_empty_catalogue() {
    let catalogue = with_commands();
    let mut files = catalogue.files;
    files.0[0][100] ^= 1;
    assert_eq!(state_of(&files), catalogue.state, "one wrong bit is corrected");
    files.0[0][101] ^= 1;
    assert_eq!(files.open().unwrap_err(), CatalogueError::NoSnapshot);
}

#[test]
fn files_that_changed_places_are_not_believed() {
    let catalogue = with_commands();
    let Files([a, b]) = catalogue.files;
    assert!(Files([b, a]).open().is_err());
}

proptest! {
    #[test]
    fn random_bytes_never_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..5000),
        at in any::<prop::sample::Index>(),
    ) {
        let catalogue = with_commands();
        let mut files = catalogue.files;
        let start = at.index(FILE_BYTES - bytes.len());
        files.0[0][start..start + bytes.len()].copy_from_slice(&bytes);
        let _ = files.open();
        let _ = open_catalogue(&bytes, &files.0[1]);
    }
}

/// Puts an append of whole pages, right in all its checksums, behind the header page.
fn files_with_append(file_bytes: usize, use_number: u64, append_pages: usize) -> Files {
    use super::layout::{AppendHeader, FileHeader, SNAPSHOT};
    use crate::checksum::Checksum;
    use crate::ids::BlockSequence;

    let (file, generation) = (CatalogueFile::A, Generation(7));
    let mut bytes = vec![0; file_bytes];
    let end = file_bytes as u64;
    let header = FileHeader { file, generation, use_number, file_bytes: end, end };
    header.encode(&mut bytes[..PAGE_BYTES]);
    // One empty record: the snapshot.
    let records = [0; 8];
    let sequence = BlockSequence::FIRST;
    let append = AppendHeader {
        flags: SNAPSHOT,
        generation,
        position: PAGE_BYTES as u64,
        sequence,
        durable_end: sequence,
        length: (append_pages * PAGE_BYTES) as u32,
        records_bytes: records.len() as u32,
        record_count: 1,
        prev_crc: 0,
        records_crc: Checksum::for_block(generation, sequence).add(&records).value(),
        crc: 0,
    };
    append.encode(&mut bytes[PAGE_BYTES..]);
    Files([bytes, vec![0; file_bytes]])
}

#[test]
fn a_file_that_no_writer_leaves_is_refused_although_its_checksums_hold() {
    let pages = FILE_BYTES / PAGE_BYTES;
    assert!(files_with_append(FILE_BYTES, 1, pages - 2).open().unwrap().is_some());
    // No room behind the last append for the retirement.
    let error = FileError { file: CatalogueFile::A, position: FILE_BYTES as u64, append: 2 };
    let opened = files_with_append(FILE_BYTES, 1, pages - 1).open().map(|_| ());
    assert_eq!(opened, Err(CatalogueError::Corrupt(error)));
    // A size that no catalogue has, and a number that no switch comes after.
    for files in [
        files_with_append(FILE_BYTES - PAGE_BYTES, 1, 1),
        files_with_append(FILE_BYTES + 512, 1, 1),
        files_with_append(FILE_BYTES, u64::MAX, 1),
    ] {
        assert_eq!(files.open().map(|_| ()), Err(CatalogueError::NoSnapshot));
    }
}

/// The file of a switch would have a number that no start reads.
#[test]
fn no_switch_comes_after_the_last_use() {
    use super::layout::USES_MAX;

    for (use_number, plan) in
        [(USES_MAX - 1, CataloguePlan::Switch), (USES_MAX, CataloguePlan::Full)]
    {
        let files = files_with_append(FILE_BYTES, use_number, 1);
        let writer = CatalogueWriter::resume(&files.open().unwrap().unwrap());
        assert_eq!(writer.plan(1, &[1], CommandEffect::Frees), plan);
    }
}

/// A start reads no more of the newer file than its use may take, and that is not much of it.
#[test]
fn a_use_of_a_file_ends_early_and_another_follows() {
    let mut catalogue = Catalogue::create();
    let mut switches = 0;
    for number in 0..200 {
        switches += u32::from(catalogue.apply(&format!("c{number}")) == CataloguePlan::Switch);
        let pages =
            catalogue.files.0.each_ref().map(|file| (&file[..PAGE_BYTES], file.len() as u64));
        let (newer, end) = newer_file(pages[0], pages[1]).expect("both headers are good");
        let file = &catalogue.files.0[newer as usize - 1];
        assert!(end <= 9 * PAGE_BYTES, "header, snapshot, commands, mark, retirement");
        assert!(file[end..].iter().all(|byte| *byte == 0), "nothing lies behind the end");
        assert_eq!(state_of(&catalogue.files), catalogue.state);
    }
    assert!((20..200).contains(&switches), "{switches} switches");
}
