//! The catalogue: its two files, and the commands and images in them.
//!
//! Input: one byte that chooses, then the pages of both files (see `pages`) with what is repaired
//! in them; or one envelope; or what a history of commands is made from.

use rustmq_metadata::codec::ENVELOPE_BYTES;
use rustmq_metadata::{
    Command, Image, apply, check, decode_command, decode_image, encode_command, encode_image,
};
use rustmq_wal::{
    CatalogueFile, CatalogueLog, CataloguePlan, CatalogueWrite, CatalogueWriter, CommandEffect,
    Generation, open_catalogue,
};

use crate::layout::{add, put, u16_at, u32_at};
use crate::memory::{Bound, bounded};
use crate::pages::{PAGE_BYTES, PAGES_MAX, image};
use crate::source::Source;

mod made;
mod repair;

/// A record takes eight bytes on disk and a slice of 16 in memory, in a list that doubles and is
/// moved to another one that doubles.
const OPEN_ASKED_MAX: Bound = Bound::per_byte(12);

/// The shortest list of CBOR takes a byte, a WAL 17 and a slice of 16; a topic with a partition 40
/// and 200, in a list that doubles, copied to a tree by id and one by name.
const DECODE_ASKED_MAX: Bound = Bound { base: 8 << 10, per_byte: 100 };

/// The chosen part is refused or read, and written again it is the same.
pub fn target(data: &[u8]) {
    let Some((choice, rest)) = data.split_first() else { return };
    match choice % 8 {
        0..=3 => files(&mut Source::new(rest), choice & 8 == 0),
        4 => {
            command(&envelope(*choice, rest));
        }
        5 => {
            snapshot(&envelope(*choice, rest));
        }
        _ => made::history(&mut Source::new(rest)),
    }
}

/// Two arbitrary files. If they are a catalogue, it is written on and read again.
fn files(source: &mut Source<'_>, pads: bool) {
    let (choices, split) = ([source.u16(), source.u16()], usize::from(source.u8()));
    let mut a = image(source, split % (PAGES_MAX + 1));
    let mut b = image(source, PAGES_MAX);
    if pads {
        // The smallest size that there is; otherwise any.
        a.resize(PAGES_MAX * PAGE_BYTES, 0);
        b.resize(PAGES_MAX * PAGE_BYTES, 0);
    }
    repair::file(&mut a, 1, choices[0]);
    repair::file(&mut b, 2, choices[1]);
    match bounded(a.len() + b.len(), &OPEN_ASKED_MAX, || open_catalogue(&a, &b)) {
        Ok(Some(log)) => {
            let file = match log.file() {
                CatalogueFile::A => &a,
                CatalogueFile::B => &b,
            };
            let held = repair::records(file);
            assert!(held.snapshot == Some(log.snapshot), "the snapshot is whole");
            assert!(log.commands == held.commands, "every command is whole, none is left out");
            assert!(!held.is_cut_short, "nothing that was flushed is left out");
            replays(&log);
            goes_on(&log, &a, &b);
        }
        Ok(None) => {}
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// What the start of a broker does with a catalogue.
fn replays(log: &CatalogueLog<'_>) {
    let Some(mut image) = snapshot(log.snapshot) else { return };
    for bytes in &log.commands {
        let Some(command) = command(bytes) else { return };
        if apply(&mut image, &command).is_err() {
            return;
        }
        image.invariants();
    }
}

/// The catalogue is written to the other file and read from there.
fn goes_on(log: &CatalogueLog<'_>, a: &[u8], b: &[u8]) {
    let mut writer = CatalogueWriter::resume(log);
    let lengths: Vec<usize> = log.commands.iter().map(|command| command.len()).collect();
    let plan = writer.plan(log.snapshot.len(), &lengths, CommandEffect::Frees);
    if plan != CataloguePlan::Switch {
        return assert_eq!(plan, CataloguePlan::Full, "opening switches before it appends");
    }
    let mut files = [a.to_vec(), b.to_vec()];
    files.iter_mut().for_each(|file| file.resize(log.file_bytes, 0));
    let mut out = Vec::new();
    let wrote = writer.switch(Generation(7), log.snapshot, &log.commands, &mut out);
    write(&mut files, wrote, &out);
    writer.handle_flushed();
    is_read(&files, log.file().other(), log.snapshot, &log.commands);
    let wrote = writer.retire(&mut out).expect("the file before is there");
    assert_eq!(wrote.file, log.file());
    write(&mut files, wrote, &out);
    writer.handle_flushed();
    is_read(&files, log.file().other(), log.snapshot, &log.commands);
    if writer.plan(log.snapshot.len(), &[3], CommandEffect::Frees) == CataloguePlan::Append {
        let wrote = writer.append(&[b"new"], &mut out);
        write(&mut files, wrote, &out);
        writer.handle_flushed();
        let mut commands = log.commands.clone();
        commands.push(b"new");
        is_read(&files, log.file().other(), log.snapshot, &commands);
    }
}

fn write(files: &mut [Vec<u8>; 2], write: CatalogueWrite, bytes: &[u8]) {
    let file = &mut files[write.file as usize - 1];
    put(file, write.position as usize, bytes);
}

fn is_read(files: &[Vec<u8>; 2], file: CatalogueFile, snapshot: &[u8], commands: &[&[u8]]) {
    let log = open_catalogue(&files[0], &files[1]).expect("a catalogue that was just written");
    let log = log.expect("a catalogue that was just written");
    assert_eq!((log.file(), log.torn), (file, None));
    assert!(log.snapshot == snapshot && log.commands == commands);
}

/// The bytes, with an envelope that fits them if the choice says so.
fn envelope(choice: u8, bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    if choice & 8 == 0 && ENVELOPE_BYTES <= bytes.len() {
        put(&mut bytes, 0, b"RM");
        let kind = u16_at(&bytes, 2);
        let known = if choice & 1 == 0 { 1 + kind % 7 } else { 0x100 };
        put(&mut bytes, 2, &known.to_le_bytes());
        put(&mut bytes, 4, &[1, 0, 1, 0]);
        let length = (bytes.len() - ENVELOPE_BYTES) as u32;
        put(&mut bytes, 8, &length.to_le_bytes());
        let crc = envelope_crc(&bytes);
        put(&mut bytes, 12, &crc.to_le_bytes());
    }
    bytes
}

fn envelope_crc(bytes: &[u8]) -> u32 {
    add(crc32c::crc32c(&bytes[..12]), &bytes[ENVELOPE_BYTES..])
}

/// A command that is read is the same after it was encoded. CBOR has longer forms of the same
/// number, and fields of a later version are passed over, so the bytes need not be.
fn command(bytes: &[u8]) -> Option<Command> {
    match bounded(bytes.len(), &DECODE_ASKED_MAX, || decode_command(bytes)) {
        Ok(command) => {
            assert_eq!(u32_at(bytes, 12), envelope_crc(bytes), "the envelope is whole");
            let mut out = Vec::new();
            encode_command(&command, &mut out);
            assert_eq!(decode_command(&out).as_ref(), Ok(&command));
            Some(command)
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            None
        }
    }
}

/// The same for an image, which keeps its invariants. Any command is refused or applied to it.
fn snapshot(bytes: &[u8]) -> Option<Image> {
    match bounded(bytes.len(), &DECODE_ASKED_MAX, || decode_image(bytes)) {
        Ok(image) => {
            assert_eq!(u32_at(bytes, 12), envelope_crc(bytes), "the envelope is whole");
            image.invariants();
            let mut out = Vec::new();
            encode_image(&image, &mut out);
            assert_eq!(decode_image(&out).as_ref(), Ok(&image));
            every_broker_starts(&image);
            Some(image)
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            None
        }
    }
}

/// The first command after any snapshot: a broker starts again.
fn every_broker_starts(image: &Image) {
    for (broker, state) in image.brokers() {
        let (shard_count, wals) = (state.shard_count, state.wals.clone());
        let command = Command::StartBroker { broker, shard_count, wals };
        let mut started = image.clone();
        let applied = apply(&mut started, &command);
        assert_eq!(applied.is_ok(), check(image, &command).is_ok());
        started.invariants();
    }
}
