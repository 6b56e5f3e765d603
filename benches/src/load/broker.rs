//! The executable under test, as a child process.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// The longest that a start may take.
const START_MAX: Duration = Duration::from_secs(60);

/// The longest that one answer of the admin port may take.
const ADMIN_MAX: Duration = Duration::from_secs(10);

/// A running broker. Killed when dropped: what it stored is thrown away with its directory.
#[derive(Debug)]
pub struct Broker {
    child: Child,
    dir: PathBuf,
    address: SocketAddr,
    admin: SocketAddr,
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
        let mut broker = Broker { child, dir: dir.to_owned(), address: nowhere, admin: nowhere };
        broker.wait_until_ready()?;
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

    /// The sum of a counter or gauge over all its labels.
    pub fn metric(&self, name: &str) -> Result<f64> {
        let text = self.get("/metrics")?;
        sum_of(&text, name).with_context(|| format!("/metrics has no {name}"))
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
        let read = |name: &str| fs::read_to_string(self.dir.join("data").join(name)).ok();
        let parse = |text: String| text.trim().parse().ok();
        let (Some(address), Some(admin)) =
            (read("address").and_then(parse), read("admin-address").and_then(parse))
        else {
            return false;
        };
        self.address = address;
        self.admin = admin;
        self.get("/readyz").is_ok()
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
    fn a_metric_is_summed_over_its_labels_and_not_mixed_up_with_longer_names() {
        let text =
            "# TYPE a counter\na{shard=\"0\"} 3\na{shard=\"1\"} 4\na_b{shard=\"0\"} 100\nc 5\n";
        assert_eq!(sum_of(text, "a"), Some(7.0));
        assert_eq!(sum_of(text, "c"), Some(5.0));
        assert_eq!(sum_of(text, "d"), None);
    }
}
