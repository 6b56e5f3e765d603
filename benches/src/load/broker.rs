//! The executable under test, as a child process.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hdrhistogram::Histogram;
use hdrhistogram::serialization::Deserializer;
use rustmq_sys::probe::{self, BlockDevice};

use super::disk::{self, Written};

/// The longest that a start may take.
const START_MAX: Duration = Duration::from_secs(60);

/// How often a restarted broker is looked for: far below what a start takes.
const RESTART_LOOK: Duration = Duration::from_micros(100);

/// The longest that one answer of the admin port may take.
const ADMIN_MAX: Duration = Duration::from_secs(10);

/// A running broker. Killed when dropped: what it stored is thrown away with its directory.
#[derive(Debug)]
pub struct Broker {
    child: Child,
    dir: PathBuf,
    address: SocketAddr,
    admin: SocketAddr,
    /// Asked for when it is needed first: not while a start is timed.
    disk: OnceLock<Option<BlockDevice>>,
}

/// The executable next to this program.
pub fn beside_this_program() -> Result<PathBuf> {
    let here = std::env::current_exe()?;
    let binary = here.with_file_name("rustmq");
    ensure!(
        binary.exists(),
        "{} is missing: build it with `cargo build --release`, or name another one with --binary",
        binary.display()
    );
    Ok(binary)
}

impl Broker {
    /// Starts `rustmq dev` with one shard on a directory that is made for it, and waits until it
    /// serves.
    pub fn start(binary: &Path, dir: &Path, sets: &[&str]) -> Result<Broker> {
        let mut broker = Broker::spawn(binary, dir, sets)?;
        broker.wait_until_ready()?;
        Ok(broker)
    }

    fn spawn(binary: &Path, dir: &Path, sets: &[&str]) -> Result<Broker> {
        fs::create_dir_all(dir)?;
        let log = File::create(dir.join("output.log"))?;
        let mut command = Command::new(binary);
        command.args(["dev", "--port", "0", "--admin-port", "0", "--shards", "1", "--data-dir"]);
        command.arg(dir.join("data"));
        for set in sets {
            command.args(["--set", set]);
        }
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().with_context(|| format!("starting {}", binary.display()))?;
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let (dir, disk) = (dir.to_owned(), OnceLock::new());
        Ok(Broker { child, dir, address: nowhere, admin: nowhere, disk })
    }

    /// Starts an executable on a directory where one served before, and returns when it has written
    /// down where it serves: as soon as a client can know.
    pub fn restart(binary: &Path, dir: &Path, sets: &[&str]) -> Result<Broker> {
        let data = dir.join("data");
        for name in ["address", "admin-address"] {
            // What the one before wrote, if it was killed.
            drop(fs::remove_file(data.join(name)));
        }
        let mut broker = Broker::spawn(binary, dir, sets)?;
        let begun = Instant::now();
        while !broker.knows_addresses() {
            ensure!(begun.elapsed() < START_MAX, "the broker does not serve:\n{}", broker.output());
            std::thread::sleep(RESTART_LOOK);
        }
        Ok(broker)
    }

    /// Kills it, as a crash would.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Where clients connect first.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its certificates.
    pub fn certs(&self) -> PathBuf {
        self.dir.join("data/certs")
    }

    /// Its process.
    pub fn process(&self) -> u32 {
        self.child.id()
    }

    /// What it, and everybody to its disk, have written.
    pub fn disk_written(&self) -> Result<Written> {
        let ask = || probe::storage(&self.dir).ok().and_then(|storage| storage.device);
        disk::written(self.process(), self.disk.get_or_init(ask).as_ref())
    }

    /// The sum of a counter or gauge over all its labels.
    pub fn metric(&self, name: &str) -> Result<f64> {
        let text = self.get("/metrics")?;
        sum_of(&text, name).with_context(|| format!("/metrics has no {name}"))
    }

    /// One answer of `/metrics`.
    pub fn scrape(&self) -> Result<String> {
        self.get("/metrics")
    }

    /// The histogram of a stage over all shards since the start, in nanoseconds.
    pub fn stage(&self, name: &str) -> Result<Histogram<u64>> {
        let answer = self.get(&format!("/metrics/hdr/{name}"))?;
        histogram(&answer).with_context(|| format!("understanding the histogram of {name}"))
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let begun = Instant::now();
        while !self.is_ready() {
            if let Some(status) = self.child.try_wait()? {
                bail!("the broker ended ({status}):\n{}", self.output());
            }
            if START_MAX < begun.elapsed() {
                bail!("the broker does not serve after {START_MAX:?}:\n{}", self.output());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn is_ready(&mut self) -> bool {
        self.knows_addresses() && self.get("/readyz").is_ok()
    }

    /// Have both addresses been written?
    fn knows_addresses(&mut self) -> bool {
        let read = |name: &str| fs::read_to_string(self.dir.join("data").join(name)).ok();
        let parse = |text: String| text.trim().parse().ok();
        let (Some(address), Some(admin)) =
            (read("address").and_then(parse), read("admin-address").and_then(parse))
        else {
            return false;
        };
        self.address = address;
        self.admin = admin;
        true
    }

    fn output(&self) -> String {
        fs::read_to_string(self.dir.join("output.log")).unwrap_or_default()
    }

    fn get(&self, path: &str) -> Result<String> {
        let mut stream = TcpStream::connect(self.admin)?;
        stream.set_read_timeout(Some(ADMIN_MAX))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let status = text.split_whitespace().nth(1);
        ensure!(status == Some("200"), "{path} answers {}", status.unwrap_or("nothing"));
        Ok(text)
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // It may have ended by itself, and then there is nothing to do.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The histogram of an interval log with one interval.
fn histogram(log: &str) -> Result<Histogram<u64>> {
    let line = log.lines().rev().find(|line| line.matches(',').count() == 3);
    let encoded = line.and_then(|line| line.rsplit(',').next()).context("no interval")?;
    let bytes = base64(encoded.trim()).context("no base64")?;
    Ok(Deserializer::new().deserialize(&mut bytes.as_slice())?)
}

/// Bytes of base64 with the usual alphabet; padding is optional.
fn base64(text: &str) -> Option<Vec<u8>> {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut bytes, mut bits, mut held) = (Vec::with_capacity(text.len()), 0, 0u32);
    for letter in text.trim_end_matches('=').bytes() {
        let value = ALPHABET.iter().position(|other| *other == letter)?;
        held = held << 6 | value as u32;
        bits += 6;
        if 8 <= bits {
            bits -= 8;
            bytes.push((held >> bits) as u8);
            held &= (1 << bits) - 1;
        }
    }
    Some(bytes)
}

fn sum_of(text: &str, name: &str) -> Option<f64> {
    let mut sum = None;
    for line in text.lines() {
        let Some(rest) = line.strip_prefix(name) else { continue };
        if !rest.starts_with(['{', ' ']) {
            continue;
        }
        let value: f64 = rest.rsplit(' ').next()?.trim().parse().ok()?;
        sum = Some(sum.unwrap_or(0.0) + value);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_is_read_from_its_log() {
        use hdrhistogram::serialization::V2DeflateSerializer;
        use hdrhistogram::serialization::interval_log::IntervalLogWriterBuilder;

        let mut sent = Histogram::<u64>::new_with_bounds(1, 60_000_000_000, 2).unwrap();
        for value in [5_000, 7_000, 9_000_000] {
            sent.record(value).unwrap();
        }
        let (mut log, mut serializer) = (Vec::new(), V2DeflateSerializer::new());
        let builder = IntervalLogWriterBuilder::new();
        let mut writer = builder.begin_log_with(&mut log, &mut serializer).unwrap();
        writer.write_histogram(&sent, Duration::ZERO, Duration::from_secs(1), None).unwrap();
        let got = histogram(&String::from_utf8(log).unwrap()).unwrap();
        assert_eq!((got.len(), got.max()), (3, sent.max()));
        assert_eq!(got.value_at_quantile(0.5), sent.value_at_quantile(0.5));
        assert!(histogram("nothing").is_err());
        assert_eq!(base64("aGVsbG8=").unwrap(), b"hello");
        assert_eq!(base64("a b"), None);
    }

    #[test]
    fn a_metric_is_summed_over_its_labels_and_not_mixed_up_with_longer_names() {
        let text =
            "# TYPE a counter\na{shard=\"0\"} 3\na{shard=\"1\"} 4\na_b{shard=\"0\"} 100\nc 5\n";
        assert_eq!(sum_of(text, "a"), Some(7.0));
        assert_eq!(sum_of(text, "c"), Some(5.0));
        assert_eq!(sum_of(text, "d"), None);
    }
}
