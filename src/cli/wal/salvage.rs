//! `rustmq wal salvage`: a new data directory with everything that is whole.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use rustmq_sys::buffer::BufferPool;
use rustmq_sys::random::fill_random;
use rustmq_wal::salvage::{Salvage, SalvageWrite};
use rustmq_wal::verify::{Finding, Lost};
use rustmq_wal::{BlockSequence, Incarnation};

use super::files::{self, WalFiles};
use super::segment::{self, Met};
use super::source::{self, Source};
use crate::cli::exit::UsageError;

/// Zeroes written at once: 1 MiB, so that the calls are few.
const ZEROES_BYTES: usize = 1 << 20;

/// What is said of one WAL.
#[derive(Default)]
struct Given {
    batches: u64,
    lines: Vec<String>,
}

pub(super) fn run(dir: &Path, out: Option<&Path>) -> Result<()> {
    let lock = files::lock(dir)?;
    if lock.is_none() {
        let name = dir.display();
        bail!(UsageError(format!("{name} is no data directory of a broker: it has no lock file")));
    }
    let wals = files::wals(dir)?;
    let target = match out {
        Some(out) => {
            if out.exists() {
                bail!(UsageError(format!("{} exists: choose a new directory", out.display())));
            }
            fs::create_dir_all(out).with_context(|| format!("making {}", out.display()))?;
            copy_others(dir, out)?;
            out
        }
        None => dir,
    };
    let mut given = Given::default();
    for wal in &wals {
        let name = wal.dir.file_name().context("a WAL's directory has a name")?;
        let new = target.join(format!("{}.salvaged", name.to_string_lossy()));
        remove_leftover(&new)?;
        salvage(wal, &new, &mut given)?;
        let place = target.join(name);
        if out.is_none() {
            let aside = free_name(&wal.dir)?;
            fs::rename(&wal.dir, &aside)?;
            println!("{} is kept as {}", wal.dir.display(), aside.display());
        }
        fs::rename(&new, &place).with_context(|| format!("renaming to {}", place.display()))?;
    }
    sync(target)?;
    for line in &given.lines {
        println!("given up: {line}");
    }
    println!(
        "{} batches are in {}; offsets that are given up stay unused, and a fetch of them is \
         refused by name",
        given.batches,
        target.display()
    );
    Ok(())
}

/// Writes the whole entries of a WAL to a new directory.
fn salvage(wal: &WalFiles, new: &Path, given: &mut Given) -> Result<()> {
    fs::create_dir(new).with_context(|| format!("making {}", new.display()))?;
    let Some((_, first)) = wal.live.first() else {
        given.lines.push(format!("{}: no segment in it can be read", wal.dir.display()));
        bail!("{} has no segment that can be read: nothing can be saved", wal.dir.display());
    };
    let memory = source::memory();
    let after = last_incarnation(wal, &memory)?;
    let mut failed = None;
    let mut draw = || {
        let mut bytes = [0; 8];
        if let Err(error) = fill_random(&mut bytes) {
            failed.get_or_insert(error);
        }
        u64::from_le_bytes(bytes)
    };
    let mut salvage = Salvage::new(first.wal, first.segment_bytes, after, &mut draw);
    let mut out = Out { dir: new.to_owned(), bytes: first.segment_bytes, files: Vec::new() };
    for (index, (file, header)) in wal.live.iter().enumerate() {
        let next = wal.live.get(index + 1).map(|(_, next)| *next);
        let follows = next.filter(|next| header.sequence.next() == next.sequence);
        let durable_end = match follows {
            Some(next) if index + 2 == wal.live.len() => {
                let mut source = Source::open(&wal.live[index + 1].0.path, &memory)?;
                segment::check(&mut source, &next, BlockSequence::FIRST, false, |_| {})?
                    .end
                    .durable_end
            }
            Some(next) => next.first_block,
            None => wal.durable_end,
        };
        let mut source = Source::open(&file.path, &memory)?;
        let name = file.path.display().to_string();
        let mut written = Ok(());
        let verified = segment::check(&mut source, header, durable_end, false, |met| {
            take(&mut salvage, &name, &met, given);
            if written.is_ok() {
                written = out.write(salvage.take_writes());
            }
        })?;
        written?;
        let lost_behind = match (next, verified.end.sealed) {
            (Some(next), _) if follows.is_none() => next.sequence.0 - header.sequence.0 - 1,
            (None, Some(_)) => 1,
            _ => 0,
        };
        if 0 < lost_behind {
            given.lines.push(format!("{name}: {lost_behind} segments behind it are gone"));
            salvage.lose(lost_behind.saturating_mul(header.segment_bytes));
        }
    }
    for (partition, range) in salvage.finish() {
        let (first, end) = (range.start, range.end);
        given.lines.push(format!(
            "{partition} offsets {first}..{end} may have held records, and stay unused"
        ));
    }
    out.write(salvage.take_writes())?;
    drop(salvage);
    if let Some(error) = failed {
        return Err(error).context("asking the system for random numbers");
    }
    out.finish()
}

/// Takes what is met in a segment of this name.
fn take<G: FnMut() -> u64>(salvage: &mut Salvage<G>, name: &str, met: &Met<'_>, given: &mut Given) {
    match met {
        Met::Entry(entry, payload) => match salvage.take(entry, payload) {
            true => given.batches += u64::from(entry.record_count != 0),
            false => given.lines.push(format!(
                "{name}: {} at offset {} makes no sense",
                entry.partition, entry.base_offset
            )),
        },
        Met::Finding(finding) => {
            salvage.leave_out(finding);
            if finding.lost != Lost::Nothing {
                let Finding { position, what, lost, .. } = finding;
                given.lines.push(format!("{name}: position {position}: {what}; {lost}"));
            }
        }
    }
}

/// The last opening of a WAL that any of its blocks tells.
fn last_incarnation(wal: &WalFiles, memory: &BufferPool) -> Result<Incarnation> {
    let mut last = Incarnation(1);
    for (file, header) in &wal.live {
        let mut source = Source::open(&file.path, memory)?;
        let read = segment::check(&mut source, header, BlockSequence::FIRST, false, |_| {})?;
        last = last.max(read.end.next.incarnation);
    }
    Ok(last)
}

/// The files of the new WAL.
struct Out {
    dir: PathBuf,
    bytes: u64,
    files: Vec<File>,
}

impl Out {
    fn write(&mut self, writes: Vec<SalvageWrite>) -> Result<()> {
        for SalvageWrite { slot, position, bytes } in writes {
            while self.files.len() <= slot.0 as usize {
                let slot = rustmq_wal::Slot(self.files.len() as u32);
                let path = self.dir.join(slot.file_name());
                let made = OpenOptions::new().write(true).create_new(true).open(&path);
                let file = made.with_context(|| format!("making {}", path.display()))?;
                let zeroed = write_zeroes(&file, self.bytes);
                zeroed.with_context(|| format!("zeroing {}", path.display()))?;
                self.files.push(file);
            }
            self.files[slot.0 as usize].write_all_at(&bytes, position)?;
        }
        Ok(())
    }

    fn finish(self) -> Result<()> {
        ensure!(!self.files.is_empty(), "a WAL has a segment");
        for file in &self.files {
            file.sync_all()?;
        }
        sync(&self.dir)
    }
}

/// Takes all the space of a new file: a broker writes to it where it is, and has none to find.
fn write_zeroes(file: &File, bytes: u64) -> io::Result<()> {
    let zeroes = vec![0; ZEROES_BYTES.min(bytes as usize)];
    let mut position = 0;
    while position < bytes {
        let part = zeroes.len().min((bytes - position) as usize);
        file.write_all_at(&zeroes[..part], position)?;
        position += part as u64;
    }
    Ok(())
}

/// Everything of a data directory but its WALs and what belongs to a process.
fn copy_others(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("wal-") || ["address", "admin-address"].contains(&name.as_str()) {
            continue;
        }
        let (from, to) = (entry.path(), to.join(&name));
        if from.is_dir() {
            fs::create_dir(&to)?;
            fs::set_permissions(&to, fs::metadata(&from)?.permissions())?;
            copy_others(&from, &to)?;
        } else {
            fs::copy(&from, &to).with_context(|| format!("copying {}", from.display()))?;
            File::open(&to)?.sync_all()?;
        }
    }
    sync(to)
}

/// What a salvage that was cut off left behind.
fn remove_leftover(new: &Path) -> Result<()> {
    match fs::remove_dir_all(new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

fn free_name(dir: &Path) -> Result<PathBuf> {
    let name = dir.file_name().context("a directory has a name")?.to_string_lossy().into_owned();
    for number in 0..100 {
        let aside = match number {
            0 => dir.with_file_name(format!("{name}.damaged")),
            _ => dir.with_file_name(format!("{name}.damaged-{number}")),
        };
        if !aside.exists() {
            return Ok(aside);
        }
    }
    bail!("{name} was salvaged a hundred times: remove what was put aside")
}

fn sync(dir: &Path) -> Result<()> {
    Ok(File::open(dir)?.sync_all()?)
}

#[cfg(test)]
mod tests {
    use rustmq_wal::WalId;

    use super::*;

    #[test]
    fn what_was_put_aside_before_is_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let wal = dir.path().join(format!("wal-{}", WalId([1; 16])));
        assert!(free_name(&wal).unwrap().to_string_lossy().ends_with(".damaged"));
        fs::create_dir(free_name(&wal).unwrap()).unwrap();
        assert!(free_name(&wal).unwrap().to_string_lossy().ends_with(".damaged-1"));
    }
}
