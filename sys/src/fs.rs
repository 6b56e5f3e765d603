//! Calls on names: opening, creating, removing, listing. They may block for milliseconds, so a file
//! thread does them, off the shard's core; the runtime starts it with the first such call.

use std::fs::OpenOptions;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::{fs, io};

use crate::file::File;
use crate::runtime;

/// Opens a file that exists, for reading and writing past the page cache.
pub async fn open(path: impl Into<PathBuf>) -> io::Result<File> {
    let path = path.into();
    #[cfg(feature = "sim")]
    if let Some(world) = crate::sim::entered() {
        let opened = world.call("open", |disk| disk.open(&path)).await?;
        return Ok(File::modelled(opened.0, opened.1));
    }
    let (file, bytes) = blocking(move || {
        let file = open_direct(&path, OpenOptions::new().read(true).write(true))?;
        let bytes = file.metadata()?.len();
        Ok((OwnedFd::from(file), bytes))
    })
    .await?;
    Ok(File::new(file, bytes))
}

/// Creates a file of `bytes` that must not exist yet, with its space allocated. It reads as zeroes,
/// but the first write to each block is slow until the file was written once: write it full before
/// the fast path uses it. Neither file nor name are durable yet: flush the file, then
/// [`sync_dir`] its folder. On failure nothing is left behind.
pub async fn create(path: impl Into<PathBuf>, bytes: u64) -> io::Result<File> {
    let path = path.into();
    #[cfg(feature = "sim")]
    if let Some(world) = crate::sim::entered() {
        let file = world.call("create", |disk| disk.create(&path, bytes)).await?;
        return Ok(File::modelled(file, bytes));
    }
    let file = blocking(move || {
        let mut options = OpenOptions::new();
        let file = open_direct(&path, options.read(true).write(true).create_new(true).mode(0o600));
        let file = file.inspect_err(|error| {
            // A file system that refuses O_DIRECT does so after it has made the name.
            if error.kind() == io::ErrorKind::Unsupported {
                let _ = fs::remove_file(&path);
            }
        })?;
        if let Err(error) = allocate(&file, bytes) {
            let _ = fs::remove_file(&path);
            return Err(error);
        }
        Ok(OwnedFd::from(file))
    })
    .await?;
    Ok(File::new(file, bytes))
}

/// Removes a file. Not durable before [`sync_dir`].
pub async fn remove(path: impl Into<PathBuf>) -> io::Result<()> {
    let path = path.into();
    #[cfg(feature = "sim")]
    if let Some(world) = crate::sim::entered() {
        return world.call("remove", |disk| disk.remove(&path)).await;
    }
    blocking(move || fs::remove_file(path)).await
}

/// Renames a file, replacing what has the new name. Not durable before [`sync_dir`].
pub async fn rename(from: impl Into<PathBuf>, to: impl Into<PathBuf>) -> io::Result<()> {
    let (from, to) = (from.into(), to.into());
    #[cfg(feature = "sim")]
    if let Some(world) = crate::sim::entered() {
        return world.call("rename", |disk| disk.rename(&from, &to)).await;
    }
    blocking(move || fs::rename(from, to)).await
}

/// The names in a folder, sorted. Names that are not UTF-8 come with their strange bytes replaced:
/// none of ours is one.
pub async fn list(folder: impl Into<PathBuf>) -> io::Result<Vec<String>> {
    let folder = folder.into();
    #[cfg(feature = "sim")]
    if let Some(world) = crate::sim::entered() {
        return world.call("list", |disk| disk.list(&folder)).await;
    }
    blocking(move || {
        let name = |entry: io::Result<fs::DirEntry>| {
            entry.map(|entry| entry.file_name().to_string_lossy().into_owned())
        };
        let mut names = fs::read_dir(folder)?.map(name).collect::<io::Result<Vec<_>>>()?;
        names.sort_unstable();
        Ok(names)
    })
    .await
}

/// Creates a folder, and those above it that are missing. Not durable before each parent was
/// [`sync_dir`]ed. A folder that exists is fine.
pub async fn create_dir(path: impl Into<PathBuf>) -> io::Result<()> {
    let path = path.into();
    #[cfg(feature = "sim")]
    if let Some(world) = crate::sim::entered() {
        let create = |disk: &mut crate::sim::disk::Disk| {
            disk.create_dir(&path);
            Ok(())
        };
        return world.call("create dir", create).await;
    }
    blocking(move || fs::create_dir_all(path)).await
}

/// Makes the names in a folder durable.
pub async fn sync_dir(path: impl Into<PathBuf>) -> io::Result<()> {
    let path = path.into();
    #[cfg(feature = "sim")]
    if let Some(world) = crate::sim::entered() {
        world.sync_dir(&path).await;
        return Ok(());
    }
    blocking(move || fs::File::open(path)?.sync_all()).await
}

/// Runs a call on the file thread.
async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let result = Arc::new(Mutex::new(None));
    let there = result.clone();
    let started = runtime::current().start_call(Box::new(move || {
        let value = call();
        *there.lock().expect("nobody panics with it") = Some(value);
    }));
    let (done, _) = started?.await;
    done?;
    let value = result.lock().expect("nobody panics with it").take();
    value.expect("the call has been made")
}

fn open_direct(path: &Path, options: &mut OpenOptions) -> io::Result<fs::File> {
    let opened = options.custom_flags(libc::O_DIRECT).open(path);
    opened.map_err(|error| match error.raw_os_error() {
        Some(libc::EINVAL) => {
            let path = path.display();
            let message = format!(
                "the file system of {path} refuses O_DIRECT; ext4 and xfs on a local disk allow it"
            );
            io::Error::new(io::ErrorKind::Unsupported, message)
        }
        _ => error,
    })
}

fn allocate(file: &fs::File, bytes: u64) -> io::Result<()> {
    let Ok(length) = libc::off_t::try_from(bytes) else {
        return Err(io::Error::from_raw_os_error(libc::EFBIG));
    };
    if length == 0 {
        return Ok(());
    }
    loop {
        // SAFETY: takes no pointers.
        if unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, length) } == 0 {
            return Ok(());
        }
        match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::Interrupted => {}
            // Space is then found while the file is written full.
            error if error.raw_os_error() == Some(libc::EOPNOTSUPP) => return file.set_len(bytes),
            error => return Err(error),
        }
    }
}
