//! Lines of a file or of stdin, read by a thread of its own: a terminal or pipe may be silent for long.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::path::Path;

use anyhow::Context;
use bytes::Bytes;
use rustmq_protocol::RECORD_BYTES_MAX;
use tokio::sync::mpsc::{self, Receiver, Sender};

use crate::cli::lines::LineSplitter;

/// Bytes of one read. 256 KiB: a few reads for each millisecond of sending.
const READ_BYTES: usize = 256 << 10;

/// Reads that wait to be sent. 4: memory stays at some reads and one line; at the limit reading
/// waits.
const READS_WAITING_MAX: usize = 4;

/// The lines of a file or of stdin.
#[derive(Debug)]
pub(crate) struct Input {
    reads: Receiver<anyhow::Result<Lines>>,
    /// Of the file; none for stdin and for what has no length.
    pub(crate) bytes: Option<u64>,
}

/// What one read has completed.
#[derive(Debug)]
pub(crate) struct Lines {
    pub(crate) lines: Vec<Bytes>,
    pub(crate) bytes_read: usize,
}

impl Input {
    /// Begins to read the file, or stdin.
    pub(crate) fn open(path: Option<&Path>) -> anyhow::Result<Input> {
        let Some(path) = path else {
            return Ok(Input::spawn(io::stdin(), "stdin".to_owned(), None));
        };
        let name = path.display().to_string();
        let file = File::open(path).with_context(|| format!("reading {name}"))?;
        let metadata = file.metadata().with_context(|| format!("reading {name}"))?;
        let bytes = metadata.is_file().then_some(metadata.len());
        Ok(Input::spawn(file, name, bytes))
    }

    fn spawn(source: impl Read + Send + 'static, name: String, bytes: Option<u64>) -> Input {
        let (sender, reads) = mpsc::channel(READS_WAITING_MAX);
        // Not joined: it may wait for a silent terminal when the command has ended.
        std::thread::spawn(move || {
            if let Err(error) = read_lines(source, &sender) {
                let error = error.context(format!("reading {name}"));
                // Without a receiver the command has ended, and nobody waits for this.
                drop(sender.blocking_send(Err(error)));
            }
        });
        Input { reads, bytes }
    }

    /// The next lines; none at the end.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Option<Lines>> {
        self.reads.recv().await.transpose()
    }
}

fn read_lines(mut source: impl Read, sender: &Sender<anyhow::Result<Lines>>) -> anyhow::Result<()> {
    let mut splitter = LineSplitter::new(RECORD_BYTES_MAX);
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let bytes_read = match source.read(&mut buffer) {
            Ok(0) => break,
            Ok(bytes_read) => bytes_read,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error.into()),
        };
        let mut lines = Vec::new();
        let read = buffer.get(..bytes_read).unwrap_or_default();
        let pushed = splitter.push(read, &mut lines);
        // The lines before one that is too long are sent.
        if sender.blocking_send(Ok(Lines { lines, bytes_read })).is_err() {
            return Ok(());
        }
        pushed?;
    }
    let lines: Vec<Bytes> = splitter.finish().into_iter().collect();
    // Without a receiver the command has ended, and nobody waits for this.
    drop(sender.blocking_send(Ok(Lines { lines, bytes_read: 0 })));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn all_lines(mut input: Input) -> (Vec<Bytes>, anyhow::Result<()>) {
        let mut lines = Vec::new();
        loop {
            match input.next().await {
                Ok(Some(read)) => lines.extend(read.lines),
                Ok(None) => return (lines, Ok(())),
                Err(error) => return (lines, Err(error)),
            }
        }
    }

    #[tokio::test]
    async fn more_than_is_kept_waiting_arrives_whole_and_in_order() {
        let text: Vec<u8> = (0..400_000).flat_map(|n| format!("{n}\n").into_bytes()).collect();
        assert!(READ_BYTES * READS_WAITING_MAX < text.len());
        let input = Input::spawn(io::Cursor::new(text), "test".to_owned(), None);
        let (lines, result) = all_lines(input).await;
        result.unwrap();
        assert_eq!(lines.len(), 400_000);
        assert!(lines.iter().enumerate().all(|(n, line)| line == n.to_string().as_bytes()));
    }

    #[tokio::test]
    async fn lines_before_one_that_is_too_long_arrive() {
        let long = vec![b'x'; RECORD_BYTES_MAX + 1];
        let text = [b"a\n".to_vec(), long].concat();
        let input = Input::spawn(io::Cursor::new(text), "test".to_owned(), None);
        let (lines, result) = all_lines(input).await;
        assert_eq!(lines, vec!["a"]);
        let error = format!("{:#}", result.unwrap_err());
        assert!(error.starts_with("reading test: line 2 has more than"), "{error}");
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = Input::open(Some(Path::new("/nowhere"))).unwrap_err();
        assert!(error.to_string().contains("reading /nowhere"));
    }
}
