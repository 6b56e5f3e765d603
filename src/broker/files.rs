//! Small files of the data directory: read whole, and replaced whole or not at all.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Bytes of a certificate, key or address file. 64 KiB: the largest of ours has 2; a larger file is
/// not one of ours and is refused unread.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// Creates a directory, and those above it that are missing, for this user alone; their names are
/// durable afterwards. One that exists keeps the rights it has.
pub(super) fn create_private_dir(path: &Path) -> Result<()> {
    try_create_private_dir(path)
        .with_context(|| format!("creating the directory {}", path.display()))
}

fn try_create_private_dir(path: &Path) -> io::Result<()> {
    let missing: Vec<PathBuf> = path
        .ancestors()
        .take_while(|dir| !dir.as_os_str().is_empty() && !dir.exists())
        .map(Path::to_owned)
        .collect();
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    for dir in missing.iter().rev() {
        sync_name(dir)?;
    }
    // Whoever made it may have been killed before its name was durable. Nothing is in it then.
    if missing.is_empty() && fs::read_dir(path)?.next().is_none() {
        sync_name(path)?;
    }
    Ok(())
}

/// Makes the name of a file or directory durable.
fn sync_name(path: &Path) -> io::Result<()> {
    match path.parent() {
        None => Ok(()),
        Some(parent) if parent.as_os_str().is_empty() => File::open(".")?.sync_all(),
        Some(parent) => File::open(parent)?.sync_all(),
    }
}

/// The text of a file, or `None` if there is none.
pub(super) fn read(path: &Path) -> Result<Option<String>> {
    let reading = || format!("reading {}", path.display());
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.with_context(reading)?,
    };
    let mut text = String::new();
    // One byte more than allowed shows that there is more.
    file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).with_context(reading)?;
    if FILE_BYTES_MAX < text.len() as u64 {
        bail!("reading {}: it is larger than {FILE_BYTES_MAX} bytes", path.display());
    }
    Ok(Some(text))
}

/// Puts a file in place, durably and for this user alone. A crash leaves the old one or the new one.
pub(super) fn replace(path: &Path, text: &str) -> Result<()> {
    try_replace(path, text).with_context(|| format!("writing {}", path.display()))
}

/// Puts a file in place that no crash has to keep: whole or not at all for whoever reads it now.
pub(super) fn publish(path: &Path, text: &str) -> io::Result<()> {
    let (temporary, _) = write_beside(path, text)?;
    fs::rename(&temporary, path)
}

/// Removes a file, if it is there.
pub(super) fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.with_context(|| format!("removing {}", path.display())),
    }
}

fn try_replace(path: &Path, text: &str) -> io::Result<()> {
    let (temporary, file) = write_beside(path, text)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    sync_name(path)
}

/// Writes a file of another name beside the one that it is to replace.
fn write_beside(path: &Path, text: &str) -> io::Result<(PathBuf, File)> {
    let mut name = path.file_name().map(OsString::from).unwrap_or_default();
    name.push(".tmp");
    let temporary = path.with_file_name(name);
    // One that a crash left behind may have been made with other rights.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    file.write_all(text.as_bytes())?;
    Ok((temporary, file))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_replaced_file_is_private_and_leaves_nothing_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        assert_eq!(read(&path).unwrap(), None);
        for text in ["first", "second"] {
            replace(&path, text).unwrap();
            assert_eq!(read(&path).unwrap().as_deref(), Some(text));
        }
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        remove(&path).unwrap();
        remove(&path).unwrap();
        assert_eq!(read(&path).unwrap(), None);
    }

    #[test]
    fn a_directory_is_made_with_those_above_it_and_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("above").join("data");
        for _ in 0..2 {
            create_private_dir(&path).unwrap();
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        }
        let file = path.join("file");
        replace(&file, "text").unwrap();
        create_private_dir(&path).unwrap();
        let error = format!("{:#}", create_private_dir(&file).unwrap_err());
        assert!(error.contains("file"), "{error}");
    }

    #[test]
    fn a_file_that_is_too_large_or_no_text_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("large");
        fs::write(&path, vec![b'x'; FILE_BYTES_MAX as usize + 1]).unwrap();
        assert!(format!("{:#}", read(&path).unwrap_err()).contains("large"));
        fs::write(&path, [0xff, 0xfe]).unwrap();
        assert!(format!("{:#}", read(&path).unwrap_err()).contains("large"));
    }
}
