//! The executable as a command that ends: its exit code, what it printed, what it said.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::broker::clear_environment;
use super::machine;
use super::process::{PATIENCE, Process};

/// Runs commands against the broker in a data directory.
pub(crate) struct Cli {
    data_dir: PathBuf,
    /// The longest that a command may take.
    patience: Duration,
}

/// What a command did.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// Its exit code.
    pub(crate) code: i32,
    /// What it printed.
    pub(crate) stdout: Vec<u8>,
    /// What it said.
    pub(crate) stderr: String,
}

impl Cli {
    /// Commands for the broker in this directory.
    pub(crate) fn new(data_dir: &Path) -> Cli {
        Cli { data_dir: data_dir.to_owned(), patience: PATIENCE }
    }

    /// The same for commands that may take so long.
    pub(crate) fn with_patience(self, patience: Duration) -> Cli {
        Cli { patience, ..self }
    }

    /// Runs a command to its end.
    pub(crate) fn run(&self, arguments: &[&str]) -> Result<Outcome> {
        self.run_with(arguments, Stdio::null())
    }

    /// Runs a command that reads this file.
    pub(crate) fn run_on(&self, arguments: &[&str], stdin: &Path) -> Result<Outcome> {
        self.run_with(arguments, File::open(stdin)?.into())
    }

    /// Runs a command that has to succeed; what it printed.
    pub(crate) fn ok(&self, arguments: &[&str]) -> Result<Vec<u8>> {
        self.run(arguments)?.ok(arguments)
    }

    /// Runs a command that has to succeed; what it said.
    pub(crate) fn ok_stderr(&self, arguments: &[&str]) -> Result<String> {
        self.run(arguments)?.ok_stderr(arguments)
    }

    /// Makes a topic.
    pub(crate) fn create_topic(&self, name: &str, partitions: u32) -> Result<()> {
        let partitions = partitions.to_string();
        self.ok(&["topic", "create", name, "--partitions", &partitions]).map(drop)
    }

    /// Sends each line of a text; what was said.
    pub(crate) fn produce(&self, topic: &str, lines: &str) -> Result<String> {
        let dir = machine::scratch_dir("lines-")?;
        let file = dir.path().join("lines");
        std::fs::write(&file, lines)?;
        let arguments = ["produce", topic];
        self.run_on(&arguments, &file)?.ok_stderr(&arguments)
    }

    /// Everything in a topic, one record a line.
    pub(crate) fn consume(&self, topic: &str) -> Result<String> {
        let output = self.ok(&["consume", topic, "--from", "start", "--until-end"])?;
        Ok(String::from_utf8(output)?)
    }

    /// Whether a topic can be made, written and read: the broker is well.
    pub(crate) fn check_health(&self, topic: &str) -> Result<()> {
        self.create_topic(topic, 1)?;
        self.produce(topic, "still\nhere\n")?;
        ensure!(self.consume(topic)? == "still\nhere\n", "other records came");
        Ok(())
    }

    /// Nothing is wrong with the log of the broker, which is stopped.
    pub(crate) fn verify_log(&self) -> Result<()> {
        let dir = self.data_dir.to_str().context("a path in UTF-8")?;
        let outcome = self.run(&["wal", "verify", dir])?;
        let found = String::from_utf8_lossy(&outcome.stdout);
        ensure!(outcome.code == 0, "code {}\n{found}{}", outcome.code, outcome.stderr);
        Ok(())
    }

    fn run_with(&self, arguments: &[&str], stdin: Stdio) -> Result<Outcome> {
        let (subcommand, rest) = arguments.split_first().context("a command")?;
        let mut command = Command::new(machine::executable());
        clear_environment(&mut command);
        command.env("RUSTMQ_DATA_DIR", &self.data_dir);
        command.arg(subcommand).args(rest).stdin(stdin);
        let dir = machine::scratch_dir("command-")?;
        let mut process = Process::start(command, dir.path(), "command")?;
        let status = process.wait_within(self.patience)?;
        let stderr = process.stderr();
        ensure!(!stderr.contains("panicked"), "{arguments:?} panicked: {stderr}");
        Ok(Outcome {
            code: status.code().with_context(|| format!("{arguments:?}: {status}"))?,
            stdout: process.stdout()?,
            stderr,
        })
    }
}

impl Outcome {
    /// What was printed, if the command succeeded.
    pub(crate) fn ok(self, arguments: &[&str]) -> Result<Vec<u8>> {
        let Outcome { code, stderr, .. } = &self;
        ensure!(*code == 0, "rustmq {arguments:?} ended with {code}: {stderr}");
        Ok(self.stdout)
    }

    /// What was said, if the command succeeded.
    pub(crate) fn ok_stderr(self, arguments: &[&str]) -> Result<String> {
        let said = self.stderr.clone();
        self.ok(arguments).map(|_| said)
    }
}
