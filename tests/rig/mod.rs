//! A machine room with a fuse box: a real file system on a disk whose power can be cut.
//!
//! ```text
//!   broker, or whoever is under test
//!   ext4, mounted at `mounted/`         the kernel's own, with its journal, O_DIRECT and io_uring
//!   loop device
//!   `device/disk`                       served by a process of ours (device.rs)
//!   cache                               volatile: what was written since the last flush (cache.rs)
//!   `image`                             what is on the disk
//! ```
//!
//! A cut has four steps, since a process that waits for its disk cannot be killed and must not
//! learn anything more, either: [`Rig::cut`] stops the disk in the middle of whatever it does;
//! the test sends SIGKILL; [`Rig::let_go`] answers what waits, into the void, so that the killed
//! can go; [`Rig::power_on`] puts the image together and mounts it again.
//!
//! It needs the administrator, `/dev/fuse`, loop devices and `mkfs.ext4`; neither libfuse nor
//! `fusermount`, as it asks the kernel itself. Everything lies in one directory under the build's;
//! what a test that was killed left there, the next rig takes down.

pub(crate) mod device;

pub(crate) mod topics;

mod cache;

mod writers;

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::support::machine;
use crate::support::process::wait_until;
use device::{READY, RIG_DIR};

/// What is on the disk, in the rig's directory.
const IMAGE: &str = "image";

/// The directory in which the disk is served, and the disk in it.
const DEVICE: &str = "device";
const DISK: &str = "disk";

/// Where the file system is mounted.
const MOUNTED: &str = "mounted";

/// Holds the number of the process that serves the disk.
const PROCESS: &str = "process";

/// How the directories begin.
const PREFIX: &str = "rig-";

/// The kernel flushes the journal by itself only after this many seconds, so that no flush comes
/// but those that somebody asked for.
const JOURNAL_SECONDS: u32 = 600;

/// A disk with a file system, and its fuse.
pub(crate) struct Rig {
    dir: TempDir,
    server: Child,
    said: BufReader<ChildStderr>,
}

/// What the disk's cache held when the power went.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cut {
    /// Sectors that were not flushed.
    pub(crate) cached: u64,
    /// Those of them that survived.
    pub(crate) kept: u64,
}

impl Rig {
    /// Makes a disk of that many bytes with an empty file system, mounted. The error says what this
    /// machine does not allow.
    pub(crate) fn new(bytes: u64) -> Result<Rig> {
        ensure!(machine::is_root(), "mounting needs the administrator");
        File::options().read(true).write(true).open("/dev/fuse").context("opening /dev/fuse")?;
        take_down_leftovers()?;
        let dir = machine::scratch_dir(PREFIX)?;
        for name in [DEVICE, MOUNTED] {
            std::fs::create_dir(dir.path().join(name))?;
        }
        let image = dir.path().join(IMAGE);
        File::create(&image)?.set_len(bytes)?;
        // Nothing is left for the kernel to do later on its own account.
        let whole = "nodiscard,lazy_itable_init=0,lazy_journal_init=0";
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0", "-E", whole]).arg(&image))?;
        let (server, said) = serve(dir.path())?;
        let mut rig = Rig { dir, server, said };
        let ready = rig.hear()?;
        ensure!(ready == READY, "the disk is not served: {ready}");
        rig.mount()?;
        Ok(rig)
    }

    /// Where the file system is.
    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join(MOUNTED)
    }

    /// Cuts the power: from now on the disk keeps nothing and answers nobody. What survives of its
    /// cache is the seed's to say.
    pub(crate) fn cut(&mut self, seed: u64) -> Result<Cut> {
        let said = self.tell(&format!("cut {seed}"))?;
        let (cached, kept) = said.split_once(' ').with_context(|| said.clone())?;
        Ok(Cut { cached: cached.parse()?, kept: kept.parse()? })
    }

    /// Lets those go who wait for the disk, once they have been killed.
    pub(crate) fn let_go(&mut self) -> Result<()> {
        self.tell("let-go").map(drop)
    }

    /// Mounts what is left. Everybody who used the file system must be gone.
    pub(crate) fn power_on(&mut self) -> Result<()> {
        self.unmount()?;
        self.tell("power-on")?;
        self.mount()
    }

    /// Makes everything written so far safe, whatever the writers did about it.
    pub(crate) fn flush(&self) -> Result<()> {
        run(Command::new("sync").arg("--file-system").arg(self.path()))
    }

    fn mount(&self) -> Result<()> {
        let mut attach = Command::new("losetup");
        let attach = attach.args(["--find", "--show"]).arg(self.disk());
        let output = attach.output().context("running losetup")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "attaching a loop device: {said}");
        let device = String::from_utf8(output.stdout)?;
        let mut mount = Command::new("mount");
        mount.args(["-t", "ext4", "-o", &format!("commit={JOURNAL_SECONDS}")]);
        run(mount.arg(device.trim()).arg(self.path()))
    }

    fn unmount(&self) -> Result<()> {
        let unmounted = wait_until(|| {
            let gone = run(Command::new("umount").arg(self.path()));
            Ok(gone.is_ok().then_some(()))
        })?;
        unmounted.with_context(|| format!("{} is still in use", self.path().display()))?;
        detach(self.dir.path())
    }

    fn disk(&self) -> PathBuf {
        self.dir.path().join(DEVICE).join(DISK)
    }

    fn tell(&mut self, command: &str) -> Result<String> {
        let stdin = self.server.stdin.as_mut().context("the disk listens")?;
        writeln!(stdin, "{command}").context("the process of the disk is gone")?;
        let said = self.hear()?;
        ensure!(!said.starts_with("error"), "the disk, told to {command}: {said}");
        Ok(said)
    }

    fn hear(&mut self) -> Result<String> {
        let mut line = String::new();
        let bytes = self.said.read_line(&mut line)?;
        ensure!(0 < bytes, "the process of the disk is gone");
        Ok(line.trim_end().to_owned())
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        // Its process takes everything down when nobody listens any more.
        drop(self.server.stdin.take());
        let _ = self.server.wait();
    }
}

/// Starts this very program again as the process that serves the disk.
fn serve(dir: &Path) -> Result<(Child, BufReader<ChildStderr>)> {
    let mut server = Command::new(std::env::current_exe()?)
        .args(["--exact", "the_disk_of_a_rig_is_served", "--ignored", "--nocapture"])
        .env(RIG_DIR, dir)
        // Ctrl-C ends the test; the disk then ends by itself, and cleanly.
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    std::fs::write(dir.join(PROCESS), server.id().to_string())?;
    let said = server.stderr.take().context("it was asked for")?;
    Ok((server, BufReader::new(said)))
}

/// Ends, unmounts and detaches everything of a rig; what is not there is no error.
fn take_down(dir: &Path) {
    kill_users(&dir.join(MOUNTED));
    // Lazily: somebody may have died with a file open.
    let _ = run(Command::new("umount").arg("--lazy").arg(dir.join(MOUNTED)));
    let _ = detach(dir);
    let _ = run(Command::new("umount").arg("--lazy").arg(dir.join(DEVICE)));
}

/// Kills whoever has a file open below: a broker outlives a test that is killed.
fn kill_users(mounted: &Path) {
    let entries = |path: &Path| std::fs::read_dir(path).into_iter().flatten().flatten();
    for process in entries(Path::new("/proc")) {
        let uses = |file: &std::fs::DirEntry| {
            std::fs::read_link(file.path()).is_ok_and(|link| link.starts_with(mounted))
        };
        if entries(&process.path().join("fd")).any(|file| uses(&file)) {
            let _ = run(Command::new("kill").arg("-KILL").arg(process.file_name()));
        }
    }
}

/// Rigs of other runs, whose process is gone.
fn take_down_leftovers() -> Result<()> {
    let under = Path::new(env!("CARGO_TARGET_TMPDIR"));
    for entry in std::fs::read_dir(under)? {
        let dir = entry?.path();
        let is_rig = dir.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PREFIX));
        if !is_rig {
            continue;
        }
        // Another test's rig that is being made has none yet, or is gone by now.
        let Ok(process) = std::fs::read_to_string(dir.join(PROCESS)) else { continue };
        if !Path::new("/proc").join(process.trim()).exists() {
            take_down(&dir);
            // Another test may be at it at the same time.
            let _ = std::fs::remove_dir_all(&dir);
        }
    }
    Ok(())
}

/// Detaches the loop devices of a rig's disk.
fn detach(dir: &Path) -> Result<()> {
    let disk = dir.join(DEVICE).join(DISK);
    let columns = ["--list", "--noheadings", "--raw", "--output", "NAME,BACK-FILE"];
    let Some(list) = machine::run("losetup", &columns) else { bail!("losetup lists nothing") };
    for line in list.lines() {
        match line.split_once(' ') {
            Some((device, file)) if file.starts_with(&*disk.to_string_lossy()) => {
                run(Command::new("losetup").arg("--detach").arg(device))?;
            }
            _ => {}
        }
    }
    Ok(())
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("running {command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {said}");
    Ok(())
}
