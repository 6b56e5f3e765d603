//! Stdout, written by a thread of its own: a slow pipe must not stop the connection's keep-alives.

use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::thread::JoinHandle;

use anyhow::Context;
use clap::ValueEnum;
use tokio::io::Interest;
use tokio::net::unix::pipe;
use tokio::sync::mpsc::{self, Receiver, Sender};

/// Pieces of output that wait for a slow reader. At the limit the command waits.
const PIECES_WAITING_MAX: usize = 16;

/// For people or for programs.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum TextOrJson {
    Text,
    Json,
}

/// Stdout, flushed after each piece.
#[derive(Debug)]
pub(crate) struct Output {
    pieces: Sender<Vec<u8>>,
    writer: JoinHandle<io::Result<()>>,
}

/// Waits until whoever reads stdout has gone away; for ever where that cannot be told, as of a file.
pub(crate) async fn reader_gone() {
    let stdout = io::stdout().as_fd().try_clone_to_owned();
    // A file is refused here: nobody reads it while it is written. The flags of stdout stay as they
    // are, because nothing is written this way.
    let watched = stdout.and_then(pipe::Sender::from_owned_fd_unchecked);
    if let Ok(watched) = watched {
        while let Ok(ready) = watched.ready(Interest::ERROR).await {
            if ready.is_error() {
                return;
            }
        }
    }
    std::future::pending().await
}

/// Nothing more can be written. [`Output::finish`] tells whether that is an error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Closed;

impl Output {
    /// Begins to write to stdout.
    pub(crate) fn stdout() -> Output {
        Output::to(io::stdout())
    }

    fn to(out: impl Write + Send + 'static) -> Output {
        let (pieces, waiting) = mpsc::channel(PIECES_WAITING_MAX);
        let writer = std::thread::spawn(move || write_all(waiting, out));
        Output { pieces, writer }
    }

    /// Hands over one piece; waits while too many are waiting.
    pub(crate) async fn write(&self, piece: Vec<u8>) -> Result<(), Closed> {
        self.pieces.send(piece).await.map_err(|_| Closed)
    }

    /// Waits until everything is written. A reader that has gone away is no error.
    pub(crate) fn finish(self) -> anyhow::Result<()> {
        drop(self.pieces);
        let result = self.writer.join().expect("writing does not panic");
        match result {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
            result => result.context("writing to stdout"),
        }
    }
}

/// Writes a text to stdout; a reader that has gone away is no error.
pub(crate) async fn print(text: String) -> anyhow::Result<()> {
    let output = Output::stdout();
    // Whether closed stdout is an error, finish decides.
    let _ = output.write(text.into_bytes()).await;
    output.finish()
}

fn write_all(mut pieces: Receiver<Vec<u8>>, mut out: impl Write) -> io::Result<()> {
    while let Some(piece) = pieces.blocking_recv() {
        out.write_all(&piece)?;
        out.flush()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Broken(ErrorKind);

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    async fn write_until_closed(output: &Output) {
        while output.write(b"x".to_vec()).await.is_ok() {}
    }

    #[tokio::test]
    async fn a_reader_that_has_gone_away_ends_the_output_without_an_error() {
        let output = Output::to(Broken(ErrorKind::BrokenPipe));
        write_until_closed(&output).await;
        assert!(output.finish().is_ok());
    }

    #[tokio::test]
    async fn a_full_disk_is_an_error() {
        let output = Output::to(Broken(ErrorKind::StorageFull));
        write_until_closed(&output).await;
        assert!(output.finish().unwrap_err().to_string().contains("writing to stdout"));
    }
}
