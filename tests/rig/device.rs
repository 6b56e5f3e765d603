//! The disk as a process of its own: a file in user space that a loop device stands on.
//!
//! A process of its own, because whoever waits for a disk cannot be killed: were the disk served by
//! the test that uses it, a test that is ended while it waits would never end. This one lives until
//! its standard input closes, which it does however the test ends, and then takes everything down.
//!
//! It is told one command a line and answers one line on standard error, as standard output is the
//! test harness's.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, Write as _};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyWrite, Request, WriteFlags,
};

use super::cache::{Cache, SECTOR_BYTES, Survivors, Write};
use super::{DEVICE, DISK, IMAGE, take_down};

/// The directory of the rig, for the process that serves its disk.
pub(crate) const RIG_DIR: &str = "RUSTMQ_RIG_DIR";

/// What it says first.
pub(crate) const READY: &str = "ready";

/// Names and sizes never change.
const FOR_EVER: Duration = Duration::from_secs(1 << 20);

/// The longest that a loop device may hold the disk after the power went.
const RELEASE_WAIT: Duration = Duration::from_secs(30);

/// How long a flush takes: as on a slow disk. Most cuts are to come while one is under way, since it
/// is then that there is something to lose.
const FLUSH_TIME: Duration = Duration::from_millis(2);

/// Requests of the kernel at a time: some writes beside a flush.
const THREADS: usize = 4;

/// The only file.
const DISK_INODE: INodeNo = INodeNo(2);

/// Serves the disk of the rig in this directory until standard input closes.
pub(crate) fn serve(dir: &Path) -> Result<()> {
    let image = File::options().read(true).write(true).open(dir.join(IMAGE))?;
    let size = image.metadata()?.len();
    let disk = Arc::new(Disk { image, size, state: Mutex::default(), changed: Condvar::new() });
    let mut config = Config::default();
    config.mount_options = vec![MountOption::FSName("rustmq-rig".to_owned())];
    config.n_threads = Some(THREADS);
    let mounted = dir.join(DEVICE);
    let session =
        fuser::spawn_mount(Served(Arc::clone(&disk)), &mounted, &config).with_context(|| {
            format!("mounting a file system of user space at {}", mounted.display())
        })?;
    answer(READY);
    for line in std::io::stdin().lock().lines() {
        match disk.obey(&line?) {
            Ok(said) => answer(&said),
            Err(error) => answer(&format!("error: {error:#}")),
        }
    }
    // Nobody reads the disk any more, and nobody may wait for it.
    disk.let_go();
    take_down(dir);
    session.umount_and_join()?;
    Ok(())
}

fn answer(line: &str) {
    // Nobody may be left to hear it.
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// The disk: what is on it for good, and what is not yet.
struct Disk {
    image: File,
    size: u64,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    power: Power,
    cache: Cache,
    survivors: Vec<Write>,
    opens: u32,
}

#[derive(Default, PartialEq, Eq)]
enum Power {
    #[default]
    On,
    /// Nothing is answered: who waits is to be killed before he learns more.
    Cut,
    /// Everything is answered and nothing kept, so that the killed can go.
    LetGo,
}

impl Disk {
    fn obey(&self, line: &str) -> Result<String> {
        let (command, argument) = line.split_once(' ').unwrap_or((line, ""));
        match command {
            "cut" => {
                let Survivors { cached, kept, .. } = self.cut(argument.parse()?);
                Ok(format!("{cached} {kept}"))
            }
            "let-go" => {
                self.let_go();
                Ok("let go".to_owned())
            }
            "power-on" => {
                self.power_on()?;
                Ok("power on".to_owned())
            }
            _ => bail!("no such command: {line:?}"),
        }
    }

    /// From here on nothing is written and nothing answered. What is in the cache is drawn now.
    fn cut(&self, seed: u64) -> Survivors {
        let mut state = self.lock();
        assert!(state.power == Power::On, "the power is there to be cut");
        let mut survivors = state.cache.survivors(seed);
        state.survivors = std::mem::take(&mut survivors.writes);
        state.power = Power::Cut;
        self.changed.notify_all();
        survivors
    }

    fn let_go(&self) {
        self.lock().power = Power::LetGo;
        self.changed.notify_all();
    }

    /// The power is back: on the disk is what was flushed, and what survived of the rest.
    fn power_on(&self) -> Result<()> {
        let state = self.lock();
        let held = |state: &mut State| 0 < state.opens;
        let waited = self.changed.wait_timeout_while(state, RELEASE_WAIT, held);
        let (mut state, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() {
            bail!("a loop device still holds the disk after {RELEASE_WAIT:?}");
        }
        state.cache = Cache::default();
        let survivors = std::mem::take(&mut state.survivors);
        self.keep(&survivors)?;
        state.power = Power::On;
        Ok(())
    }

    /// Takes its time, in which others may write and the power may go.
    fn flush(&self) -> std::io::Result<()> {
        let state = self.answering();
        let end = state.cache.end();
        let on = |state: &mut State| state.power == Power::On;
        let waited = self.changed.wait_timeout_while(state, FLUSH_TIME, on);
        drop(waited);
        let mut state = self.answering();
        match state.power {
            Power::On => self.keep(&state.cache.flush(end)),
            // Who waits is dead, and nothing is kept.
            Power::Cut | Power::LetGo => Ok(()),
        }
    }

    fn keep(&self, writes: &[Write]) -> std::io::Result<()> {
        writes.iter().try_for_each(|write| self.image.write_all_at(&write.bytes, write.position))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state when it answers again.
    fn answering(&self) -> MutexGuard<'_, State> {
        let cut = |state: &mut State| state.power == Power::Cut;
        let state = self.changed.wait_while(self.lock(), cut);
        state.unwrap_or_else(PoisonError::into_inner)
    }

    fn attributes(&self, inode: INodeNo) -> FileAttr {
        let is_disk = inode == DISK_INODE;
        FileAttr {
            ino: inode,
            size: if is_disk { self.size } else { 0 },
            blocks: self.size / SECTOR_BYTES as u64,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if is_disk { FileType::RegularFile } else { FileType::Directory },
            perm: if is_disk { 0o600 } else { 0o700 },
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

/// As the kernel asks for it: a directory with one file.
struct Served(Arc<Disk>);

impl Filesystem for Served {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match name == DISK {
            true => reply.entry(&FOR_EVER, &self.0.attributes(DISK_INODE), Generation(0)),
            false => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&FOR_EVER, &self.0.attributes(inode));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.0.lock().opens += 1;
        // The one cache is the disk's own.
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.0.lock().opens -= 1;
        self.0.changed.notify_all();
        reply.ok();
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        position: u64,
        bytes: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let state = self.0.answering();
        let end = self.0.size.min(position + u64::from(bytes));
        let mut read = vec![0; end.saturating_sub(position) as usize];
        match self.0.image.read_exact_at(&mut read, position) {
            Ok(()) => {
                state.cache.read_over(position, &mut read);
                reply.data(&read);
            }
            Err(error) => reply.error(error.into()),
        }
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        position: u64,
        bytes: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.0.answering().cache.write(position, bytes);
        reply.written(bytes.len() as u32);
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        match self.0.flush() {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(error.into()),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // Of closing, not of the disk.
        reply.ok();
    }
}
