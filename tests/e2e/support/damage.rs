//! Damage to the files of a broker that is not running.

use std::fs;
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, bail};
use rustmq_wal::{BLOCK_ALIGN, Generation, SegmentHeader};

/// One damage to a file, or from one to another.
#[derive(Clone, Debug)]
pub(crate) enum Damage {
    /// One bit of this byte turns.
    Flip(usize),
    /// These bytes become zero.
    Zero(Range<usize>),
    /// The file ends here.
    Cut(usize),
    /// Two ranges of one length change places.
    Swap(Range<usize>, Range<usize>),
    /// The file is removed.
    Remove,
    /// The header page lies at this place of another file, and this one has what it had before.
    HeaderTo(String, usize),
    /// These bytes lie at this place of another file, and here is nothing.
    Misdirect(Range<usize>, String, usize),
    /// Several of these, one after another.
    All(Vec<Damage>),
}

impl Damage {
    pub(crate) fn apply(&self, path: &Path) -> Result<()> {
        if matches!(self, Damage::Remove) {
            return Ok(fs::remove_file(path)?);
        }
        let mut bytes = fs::read(path)?;
        if let Damage::HeaderTo(name, at) = self {
            lay_over(&path.with_file_name(name), *at, &bytes[..BLOCK_ALIGN])?;
            let header = SegmentHeader::decode(&bytes)?;
            let before = SegmentHeader { generation: Generation(1), ..header.freed() };
            before.encode(bytes.first_chunk_mut().context("a header page")?);
            return Ok(fs::write(path, bytes)?);
        }
        if let Damage::Misdirect(range, name, at) = self {
            lay_over(&path.with_file_name(name), *at, &bytes[range.clone()])?;
            bytes[range.clone()].fill(0);
            return Ok(fs::write(path, bytes)?);
        }
        self.change(&mut bytes)?;
        Ok(fs::write(path, bytes)?)
    }

    fn change(&self, bytes: &mut Vec<u8>) -> Result<()> {
        match self {
            Damage::Flip(at) => *bytes.get_mut(*at).context("in the file")? ^= 0x10,
            Damage::Zero(range) => bytes.get_mut(range.clone()).context("in the file")?.fill(0),
            Damage::Cut(at) => bytes.truncate(*at),
            Damage::Swap(one, other) => {
                let first = bytes[one.clone()].to_vec();
                let second = bytes[other.clone()].to_vec();
                bytes[one.clone()].copy_from_slice(&second);
                bytes[other.clone()].copy_from_slice(&first);
            }
            Damage::Remove | Damage::HeaderTo(..) | Damage::Misdirect(..) => {
                bail!("that is done to whole files")
            }
            Damage::All(all) => all.iter().try_for_each(|damage| damage.change(bytes))?,
        }
        Ok(())
    }
}

/// Puts bytes over what a file has at a place.
fn lay_over(path: &Path, at: usize, bytes: &[u8]) -> Result<()> {
    let mut there = fs::read(path)?;
    there.get_mut(at..at + bytes.len()).context("in the other file")?.copy_from_slice(bytes);
    Ok(fs::write(path, there)?)
}
