//! Bytes into lines, a line into key and value.

use std::fmt;

use bytes::{Bytes, BytesMut};

/// Cuts bytes that arrive in pieces at each `\n`. It holds the one line that is not complete yet.
#[derive(Debug)]
pub(crate) struct LineSplitter {
    rest: BytesMut,
    /// Bytes of `rest` in which there is no `\n`.
    searched: usize,
    /// Complete lines so far.
    line_count: u64,
    line_bytes_max: usize,
}

/// A line is longer than any record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct LineTooLong {
    /// Counted from 1.
    pub(crate) line: u64,
    pub(crate) bytes_max: usize,
}

impl fmt::Display for LineTooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { line, bytes_max } = self;
        write!(f, "line {line} has more than {bytes_max} bytes, the most that a record may have")
    }
}

impl std::error::Error for LineTooLong {}

impl LineSplitter {
    /// Lines of at most so many bytes.
    pub(crate) fn new(line_bytes_max: usize) -> LineSplitter {
        LineSplitter { rest: BytesMut::new(), searched: 0, line_count: 0, line_bytes_max }
    }

    /// Takes the next bytes and appends the lines that they complete, each without its `\n`.
    pub(crate) fn push(&mut self, bytes: &[u8], lines: &mut Vec<Bytes>) -> Result<(), LineTooLong> {
        self.rest.extend_from_slice(bytes);
        loop {
            let unsearched = self.rest.get(self.searched..).unwrap_or_default();
            let Some(ahead) = unsearched.iter().position(|byte| *byte == b'\n') else {
                self.searched = self.rest.len();
                return self.check(self.rest.len());
            };
            let line_bytes = self.searched + ahead;
            self.check(line_bytes)?;
            let mut line = self.rest.split_to(line_bytes + 1);
            line.truncate(line_bytes);
            lines.push(line.freeze());
            self.line_count += 1;
            self.searched = 0;
        }
    }

    /// The last line, if it does not end in `\n`.
    pub(crate) fn finish(self) -> Option<Bytes> {
        (!self.rest.is_empty()).then(|| self.rest.freeze())
    }

    fn check(&self, line_bytes: usize) -> Result<(), LineTooLong> {
        if line_bytes <= self.line_bytes_max {
            return Ok(());
        }
        Err(LineTooLong { line: self.line_count + 1, bytes_max: self.line_bytes_max })
    }
}

/// Cuts a line at the first separator into key and value. Without one there is no key.
pub(crate) fn split_key(line: Bytes, separator: &[u8]) -> (Option<Bytes>, Bytes) {
    let found = line.windows(separator.len().max(1)).position(|window| window == separator);
    match found {
        Some(position) => (Some(line.slice(..position)), line.slice(position + separator.len()..)),
        None => (None, line),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(pieces: &[&[u8]], line_bytes_max: usize) -> Result<Vec<Bytes>, LineTooLong> {
        let mut splitter = LineSplitter::new(line_bytes_max);
        let mut lines = Vec::new();
        for piece in pieces {
            splitter.push(piece, &mut lines)?;
        }
        lines.extend(splitter.finish());
        Ok(lines)
    }

    #[test]
    fn a_line_ends_at_each_newline_wherever_the_pieces_end() {
        let text = b"one\n\ntwo\r\nthr\xffee\nlast";
        let expected: Vec<&[u8]> = vec![b"one", b"", b"two\r", b"thr\xffee", b"last"];
        for first in 0..text.len() {
            for second in first..text.len() {
                let pieces = [&text[..first], &text[first..second], &text[second..]];
                assert_eq!(split(&pieces, 100).unwrap(), expected, "cut at {first} and {second}");
            }
        }
    }

    #[test]
    fn a_newline_at_the_end_begins_no_line_and_nothing_is_no_line() {
        assert_eq!(split(&[b"one\n"], 100).unwrap(), vec!["one"]);
        assert_eq!(split(&[b"\n"], 100).unwrap(), vec![""]);
        assert!(split(&[b"", b""], 100).unwrap().is_empty());
    }

    #[test]
    fn a_line_that_is_too_long_is_named_as_soon_as_it_is() {
        assert_eq!(split(&[b"1234\n123", b"4"], 4).unwrap(), vec!["1234", "1234"]);
        let too_long = LineTooLong { line: 2, bytes_max: 4 };
        assert_eq!(split(&[b"1\n12345"], 4), Err(too_long));
        assert_eq!(split(&[b"1\n12", b"345\n"], 4), Err(too_long));
    }

    #[test]
    fn the_key_ends_at_the_first_separator() {
        let split = |line: &'static str, separator: &str| {
            let (key, value) = split_key(Bytes::from_static(line.as_bytes()), separator.as_bytes());
            (key, value)
        };
        assert_eq!(split("k:v:w", ":"), (Some("k".into()), "v:w".into()));
        assert_eq!(split(":v", ":"), (Some("".into()), "v".into()));
        assert_eq!(split("k:", ":"), (Some("k".into()), "".into()));
        assert_eq!(split("k => v", " => "), (Some("k".into()), "v".into()));
        assert_eq!(split("kv", ":"), (None, "kv".into()));
        assert_eq!(split("", ":"), (None, "".into()));
    }
}
