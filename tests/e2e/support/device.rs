//! File systems of a test's own, and what block devices count.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use super::machine;

/// Field 16 of a device's `stat`: flush requests completed.
const STAT_FLUSHES: usize = 15;

/// A small ext4 in a file, mounted on a loop device; gone when it is dropped.
pub(crate) struct LoopFileSystem {
    dir: TempDir,
}

impl LoopFileSystem {
    /// Makes and mounts one; the error says what this machine does not allow.
    pub(crate) fn mount(bytes: u64) -> Result<LoopFileSystem> {
        ensure!(machine::is_root(), "mounting needs the administrator");
        let dir = machine::scratch_dir("loop-")?;
        let image = dir.path().join("image");
        std::fs::File::create(&image)?.set_len(bytes)?;
        let file_system = LoopFileSystem { dir };
        std::fs::create_dir(file_system.path())?;
        // No blocks kept for the administrator: full means full.
        command(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&image))?;
        let mut mount = Command::new("mount");
        command(mount.args(["-o", "loop"]).arg(&image).arg(file_system.path()))?;
        Ok(file_system)
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("mounted")
    }
}

impl Drop for LoopFileSystem {
    fn drop(&mut self) {
        // Nothing is mounted if mounting failed.
        let _ = command(Command::new("umount").arg(self.path()));
    }
}

/// The block device below a directory, as a counter of flushes.
pub(crate) struct Device {
    stat: PathBuf,
}

impl Device {
    /// The whole disk below a directory: flushes are not counted for a part of one.
    pub(crate) fn below(path: &Path) -> Result<Device> {
        let number = machine::run("stat", &["-c", "%Hd:%Ld", &path.display().to_string()]);
        let number = number.context("stat says no device")?;
        let link = Path::new("/sys/dev/block").join(number.trim());
        let device = std::fs::canonicalize(&link)
            .with_context(|| format!("{} is on no block device", path.display()))?;
        let disk = match device.join("partition").exists() {
            true => device.parent().context("a partition has a disk")?,
            false => &device,
        };
        Ok(Device { stat: disk.join("stat") })
    }

    /// Flush requests that it has completed.
    pub(crate) fn flushes(&self) -> Result<u64> {
        let text = std::fs::read_to_string(&self.stat)?;
        let field = text.split_whitespace().nth(STAT_FLUSHES);
        Ok(field.context("the kernel counts no flushes")?.parse()?)
    }

    /// Its name, for people.
    pub(crate) fn name(&self) -> String {
        let disk = self.stat.parent().and_then(Path::file_name);
        disk.unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Whether it has a cache that a flush empties. Without one the kernel sends it none.
    pub(crate) fn has_volatile_cache(&self) -> bool {
        let cache = self.stat.with_file_name("queue").join("write_cache");
        std::fs::read_to_string(cache).is_ok_and(|text| text.trim() == "write back")
    }
}

fn command(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("running {command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {said}");
    Ok(())
}
