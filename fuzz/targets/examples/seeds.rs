//! Writes seeds for the corpus from the files of a broker that was stopped or killed.
//!
//! `cargo run -p rustmq-fuzz-targets --example seeds -- DATA_DIR OUT_DIR`: for each segment the
//! first and the last pages of its blocks (`OUT_DIR/wal_block/`) and its footer (`footer/`), and
//! both files of the catalogue with the envelopes in them (`catalogue/`).

#![allow(clippy::print_stdout, reason = "it is for people")]

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use rustmq_fuzz_targets::pages::described;
use rustmq_metadata::{encode_image, replay};
use rustmq_wal::{FooterTrailer, SegmentHeader, open_catalogue};

const PAGE_BYTES: usize = 4096;
/// Pages of a segment that a seed holds behind its header.
const BLOCK_PAGES: usize = 7;
/// Pages of a catalogue file that a seed holds.
const CATALOGUE_PAGES: usize = 8;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [data, out] = &arguments[..] else { return Err("usage: seeds DATA_DIR OUT_DIR".into()) };
    for entry in fs::read_dir(data)? {
        let folder = entry?.path();
        if folder.is_dir() && folder.join("segment-00000.wal").exists() {
            for entry in fs::read_dir(&folder)? {
                segment(&entry?.path(), out)?;
            }
        }
    }
    catalogue(data, out)
}

fn segment(path: &Path, out: &Path) -> Result<(), Box<dyn Error>> {
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let file = fs::read(path)?;
    let Ok(header) = SegmentHeader::decode(&file) else { return Ok(()) };
    // Chosen: the scan; everything repaired, nothing known durable, no corruption passed.
    let front = &file[..PAGE_BYTES * (1 + BLOCK_PAGES)];
    write(out, "wal_block", &name, &[&[0; 11][..], &described(front)])?;
    // Every batch again behind itself: offsets that fall.
    let blocks = &file[PAGE_BYTES..PAGE_BYTES * 4];
    let twice = [&file[..PAGE_BYTES], blocks, blocks].concat();
    write(out, "wal_block", &format!("{name}-twice"), &[&[0; 11], &described(&twice)])?;
    // As it is.
    let untouched = [0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0xff];
    write(out, "wal_block", &format!("{name}-untouched"), &[&untouched, &described(front)])?;
    let trailer = FooterTrailer::decode(&file[file.len() - PAGE_BYTES..], &header);
    if let Ok(trailer) = trailer {
        let pages = [&file[..PAGE_BYTES], &file[trailer.footer_start as usize..]].concat();
        write(out, "footer", &name, &[&[0, 0], &described(&pages)])?;
        write(out, "footer", &format!("{name}-untouched"), &[&[0, 0xff], &described(&pages)])?;
    }
    Ok(())
}

fn catalogue(data: &Path, out: &Path) -> Result<(), Box<dyn Error>> {
    let a = fs::read(data.join("catalogue-a.log"))?;
    let b = fs::read(data.join("catalogue-b.log"))?;
    let used = |file: &[u8]| {
        let last = file.chunks(PAGE_BYTES).rposition(|page| page.iter().any(|byte| *byte != 0));
        let pages = last.map_or(0, |last| last + 1).min(CATALOGUE_PAGES);
        (pages as u8, described(&file[..PAGE_BYTES * pages]))
    };
    let ((pages_a, used_a), (_, used_b)) = (used(&a), used(&b));
    write(out, "catalogue", "files", &[&[0, 0, 0, 0, 0, pages_a], &used_a, &used_b])?;
    let log = open_catalogue(&a, &b)?.ok_or("there is no catalogue")?;
    let image = replay(log.snapshot, &log.commands)?;
    let mut snapshot = Vec::new();
    encode_image(&image, &mut snapshot);
    write(out, "catalogue", "image", &[&[5], &snapshot])?;
    for (index, command) in log.commands.iter().take(4).enumerate() {
        write(out, "catalogue", &format!("command-{index}"), &[&[4], command])?;
    }
    Ok(())
}

fn write(out: &Path, target: &str, name: &str, parts: &[&[u8]]) -> Result<(), Box<dyn Error>> {
    let bytes = parts.concat();
    fs::create_dir_all(out.join(target))?;
    let path = out.join(target).join(format!("real-{name}"));
    fs::write(&path, &bytes)?;
    println!("{}: {} bytes", path.display(), bytes.len());
    Ok(())
}
