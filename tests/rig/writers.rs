//! The rig itself under test: it finds no fault with a writer that flushes before it tells, and
//! finds out those that do not.

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::Rig;
use crate::support::machine;
use crate::support::process::wait_until;

/// Cuts of each writer: every chance of survival, with either size of a piece.
const CUTS: u64 = 12;

/// Cuts of them that leave nothing of what was not flushed.
const KEEPING_NOTHING: u64 = 2;

/// Room for the file.
const DISK_BYTES: u64 = 48 << 20;

/// Pages of the file, each written once.
const PAGES: u64 = 4096;

const PAGE_BYTES: usize = 4096;

/// Pages that are told before a cut: so many that it is no accident if all of them survive.
const TOLD_MIN: u64 = 64;

/// Past the page cache, as a broker writes.
const O_DIRECT: i32 =
    if cfg!(any(target_arch = "aarch64", target_arch = "arm")) { 0o200_000 } else { 0o40_000 };

/// What a writer does for a page before it says that the page is safe.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Writer {
    /// Writes and flushes.
    Good,
    /// Writes.
    WithoutFlush,
    /// Flushes and writes.
    FlushTooEarly,
}

#[test]
fn a_writer_that_flushes_before_it_tells_is_never_found_out() -> Result<()> {
    let Some(found) = cuts_found_out("power cut, good writer", Writer::Good)? else {
        return Ok(());
    };
    ensure!(found == 0, "{found} of {CUTS} cuts lost a page that was flushed");
    Ok(())
}

#[test]
fn a_writer_without_flushes_is_found_out() -> Result<()> {
    let Some(found) = cuts_found_out("power cut, no flush", Writer::WithoutFlush)? else {
        return Ok(());
    };
    ensure!(CUTS / 2 <= found, "{found} of {CUTS} cuts lost a page");
    Ok(())
}

#[test]
fn a_writer_that_flushes_too_early_is_found_out() -> Result<()> {
    let Some(found) = cuts_found_out("power cut, flush too early", Writer::FlushTooEarly)? else {
        return Ok(());
    };
    // A cut that leaves nothing of the cache takes the last page told: no flush came after it.
    ensure!(KEEPING_NOTHING <= found, "{found} of {CUTS} cuts lost a page");
    Ok(())
}

/// How many cuts lost a page that the writer had called safe.
fn cuts_found_out(test: &str, writer: Writer) -> Result<Option<u64>> {
    let mut rig = match Rig::new(DISK_BYTES) {
        Ok(rig) => rig,
        Err(error) => {
            machine::skip(test, &format!("{error:#}"));
            return Ok(None);
        }
    };
    let mut found = 0;
    for seed in 0..CUTS {
        let told = write_until_cut(&mut rig, writer, seed)?;
        let file = File::open(rig.path().join("pages"))?;
        let mut page = [0; PAGE_BYTES];
        let mut lost = 0;
        for number in 0..told {
            file.read_exact_at(&mut page, number * PAGE_BYTES as u64)?;
            lost += u64::from(page != [fill_of(number, seed); PAGE_BYTES]);
        }
        found += u64::from(0 < lost);
    }
    machine::note(&format!("power_cut: {writer:?}: {found} of {CUTS} cuts lost told pages"));
    Ok(Some(found))
}

/// Writes until the power goes; how many pages were told by then.
fn write_until_cut(rig: &mut Rig, writer: Writer, seed: u64) -> Result<u64> {
    let path = rig.path().join("pages");
    std::fs::write(&path, vec![0; PAGES as usize * PAGE_BYTES])?;
    // File, name and zeros are safe; it is the pages alone that the writer has to answer for.
    rig.flush()?;
    let file = File::options().write(true).custom_flags(O_DIRECT).open(&path)?;
    let told = Arc::new(AtomicU64::new(0));
    let dead = Arc::new(AtomicBool::new(false));
    let thread = std::thread::spawn({
        let (told, dead) = (Arc::clone(&told), Arc::clone(&dead));
        move || write(&file, writer, seed, &told, &dead)
    });
    let enough = wait_until(|| {
        let enough = TOLD_MIN <= told.load(Ordering::SeqCst) || thread.is_finished();
        Ok(enough.then_some(()))
    })?;
    enough.context("the writer writes")?;
    sleep(Duration::from_micros(seed * 300));
    rig.cut(seed)?;
    // A thread cannot be killed; it is as good as dead when it may tell nothing any more.
    dead.store(true, Ordering::SeqCst);
    let told = told.load(Ordering::SeqCst);
    rig.let_go()?;
    thread.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??;
    rig.power_on()?;
    Ok(told)
}

fn write(
    file: &File,
    writer: Writer,
    seed: u64,
    told: &AtomicU64,
    dead: &AtomicBool,
) -> std::io::Result<()> {
    // Aligned as direct writes have to be.
    let mut room = vec![0; 2 * PAGE_BYTES];
    let begin = room.as_ptr().align_offset(PAGE_BYTES);
    let page = &mut room[begin..begin + PAGE_BYTES];
    for number in 0..PAGES {
        page.fill(fill_of(number, seed));
        if writer == Writer::FlushTooEarly {
            file.sync_data()?;
        }
        file.write_all_at(page, number * PAGE_BYTES as u64)?;
        if writer == Writer::Good {
            file.sync_data()?;
        }
        if dead.load(Ordering::SeqCst) {
            return Ok(());
        }
        told.store(number + 1, Ordering::SeqCst);
        if writer == Writer::FlushTooEarly && number + 1 == TOLD_MIN {
            // The cut comes between a page that is told and the next flush.
            while !dead.load(Ordering::SeqCst) {
                sleep(Duration::from_millis(1));
            }
            return Ok(());
        }
    }
    Ok(())
}

/// What fills a page: never what was there before.
fn fill_of(number: u64, seed: u64) -> u8 {
    1 + ((number + seed * 7) % 251) as u8
}
