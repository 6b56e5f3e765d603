//! The secrets that make a restarted broker the same one for its peers.
//!
//! ```text
//!   rustmq node keys 1
//!   reset 128 hexadecimal digits
//!   token 128 hexadecimal digits
//!   connection-id 16 hexadecimal digits
//! ```

use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result, bail};
use rustmq_server::NodeKeys;
use rustmq_sys::random::fill_random;

use super::files;

const TITLE: &str = "rustmq node keys";

/// The format that this program writes, and the only one it reads.
const VERSION: u32 = 1;

/// Reads the keys of the node in this file; makes them if there is none.
pub(super) fn load_or_create(path: &Path) -> Result<NodeKeys> {
    match files::read(path)? {
        Some(text) => decode(&text).with_context(|| format!("reading {}", path.display())),
        None => {
            let keys = create()?;
            files::replace(path, &encode(&keys))?;
            Ok(keys)
        }
    }
}

fn create() -> Result<NodeKeys> {
    let (mut reset, mut token, mut connection_id) = ([0; 64], [0; 64], [0; 8]);
    for bytes in [&mut reset[..], &mut token[..], &mut connection_id[..]] {
        fill_random(bytes).context("asking the system for random numbers")?;
    }
    Ok(NodeKeys { reset, token, connection_id: u64::from_be_bytes(connection_id) })
}

fn encode(keys: &NodeKeys) -> String {
    let mut text = format!("{TITLE} {VERSION}\n");
    let connection_id = keys.connection_id.to_be_bytes();
    let lines: [(&str, &[u8]); 3] =
        [("reset", &keys.reset), ("token", &keys.token), ("connection-id", &connection_id)];
    for (name, bytes) in lines {
        text.push_str(name);
        text.push(' ');
        for byte in bytes {
            write!(text, "{byte:02x}").expect("a string takes everything");
        }
        text.push('\n');
    }
    text
}

fn decode(text: &str) -> Result<NodeKeys> {
    const ADVICE: &str = "restore the file from a copy, or remove it: clients of the broker's past \
                          life then wait for their time-out instead of being told";
    let mut lines = text.lines();
    let version = lines.next().and_then(|line| line.strip_prefix(TITLE)).map(str::trim);
    match version.map(str::parse::<u32>) {
        Some(Ok(VERSION)) => {}
        Some(Ok(newer)) if VERSION < newer => bail!(
            "the file has format {newer} and this program reads format {VERSION}: a newer rustmq \
             wrote it; run that one"
        ),
        _ => bail!("the first line is not \"{TITLE} {VERSION}\"; {ADVICE}"),
    }
    let keys = NodeKeys {
        reset: field(lines.next(), "reset").context(ADVICE)?,
        token: field(lines.next(), "token").context(ADVICE)?,
        connection_id: u64::from_be_bytes(field(lines.next(), "connection-id").context(ADVICE)?),
    };
    if let Some(line) = lines.next() {
        bail!("unexpected line {line:?}; {ADVICE}");
    }
    Ok(keys)
}

fn field<const BYTES: usize>(line: Option<&str>, name: &str) -> Result<[u8; BYTES]> {
    let digits = line.and_then(|line| line.strip_prefix(name)).map(str::trim);
    let Some(digits) = digits.filter(|digits| digits.len() == 2 * BYTES && digits.is_ascii())
    else {
        bail!("no line \"{name}\" with {} hexadecimal digits where it belongs", 2 * BYTES);
    };
    let mut bytes = [0; BYTES];
    for (byte, pair) in bytes.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
        let pair = str::from_utf8(pair).expect("checked: the digits are ASCII");
        *byte = u8::from_str_radix(pair, 16)
            .ok()
            .filter(|_| !pair.starts_with('+'))
            .with_context(|| format!("line \"{name}\": {pair:?} is no hexadecimal number"))?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn keys_are_made_once_and_kept_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.keys");
        let made = load_or_create(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let read = load_or_create(&path).unwrap();
        assert_eq!(encode(&made), encode(&read));
        let other = load_or_create(&dir.path().join("other")).unwrap();
        assert_ne!(made.reset, other.reset);
        assert_ne!(made.token, other.token);
        assert_ne!(made.connection_id, other.connection_id);
    }

    #[test]
    fn a_newer_format_is_refused_by_name() {
        let text = encode(&create().unwrap()).replacen("keys 1", "keys 2", 1);
        let error = decode(&text).err().unwrap().to_string();
        assert!(error.contains("format 2") && error.contains("newer rustmq"), "{error}");
    }

    #[test]
    fn a_damaged_file_is_refused_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.keys");
        let whole = encode(&load_or_create(&path).unwrap());
        let mut damages: Vec<String> =
            (0..whole.len() - 1).map(|bytes| whole[..bytes].to_owned()).collect();
        damages.push(whole.replacen("reset ", "reset +", 1));
        damages.push(whole.replacen("token", "taken", 1));
        damages.push(format!("{whole}more\n"));
        for damage in damages {
            fs::write(&path, &damage).unwrap();
            let error = format!("{:#}", load_or_create(&path).err().unwrap());
            assert!(error.contains("node.keys") && error.contains("remove"), "{error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), damage);
        }
    }
}
