//! `-f`: how a record is written to stdout.

use std::fmt;
use std::io::Write;
use std::str::FromStr;

/// A format, taken apart once.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Format {
    pieces: Vec<Piece>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Piece {
    Text(Vec<u8>),
    Value,
    Key,
    Topic,
    Partition,
    Offset,
    TimestampMs,
    Headers,
}

/// What of a record can be written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fields<'a> {
    pub(crate) topic: &'a str,
    pub(crate) partition: u32,
    pub(crate) offset: u64,
    pub(crate) timestamp_ms: i64,
    /// None is written as nothing.
    pub(crate) key: Option<&'a [u8]>,
    /// None is written as nothing.
    pub(crate) value: Option<&'a [u8]>,
}

/// The text is no format.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct FormatError {
    /// What is not understood.
    unknown: String,
}

impl fmt::Display for FormatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} is not valid: allowed are %v value, %k key, %t topic, %p partition, %o offset, \
             %T timestamp in ms, %h headers, %% and \\n \\t \\r \\\\",
            self.unknown
        )
    }
}

impl std::error::Error for FormatError {}

impl FromStr for Format {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Format, FormatError> {
        let mut pieces = Vec::new();
        let mut literal = String::new();
        let mut characters = text.chars();
        while let Some(character) = characters.next() {
            if !matches!(character, '%' | '\\') {
                literal.push(character);
                continue;
            }
            let next = characters.next();
            let piece = match (character, next) {
                ('%', Some('v')) => Piece::Value,
                ('%', Some('k')) => Piece::Key,
                ('%', Some('t')) => Piece::Topic,
                ('%', Some('p')) => Piece::Partition,
                ('%', Some('o')) => Piece::Offset,
                ('%', Some('T')) => Piece::TimestampMs,
                ('%', Some('h')) => Piece::Headers,
                ('\\', Some('n')) => Piece::Text(b"\n".to_vec()),
                ('\\', Some('t')) => Piece::Text(b"\t".to_vec()),
                ('\\', Some('r')) => Piece::Text(b"\r".to_vec()),
                ('%', Some('%')) => Piece::Text(b"%".to_vec()),
                ('\\', Some('\\')) => Piece::Text(b"\\".to_vec()),
                _ => {
                    let unknown = character.to_string() + &next.map_or(String::new(), String::from);
                    return Err(FormatError { unknown });
                }
            };
            if !literal.is_empty() {
                pieces.push(Piece::Text(std::mem::take(&mut literal).into_bytes()));
            }
            pieces.push(piece);
        }
        if !literal.is_empty() {
            pieces.push(Piece::Text(literal.into_bytes()));
        }
        Ok(Format { pieces })
    }
}

impl Format {
    /// Appends one record. Headers are written as `name=value,name=value`.
    pub(crate) fn write<'h>(
        &self,
        fields: Fields<'_>,
        headers: impl Iterator<Item = (&'h str, Option<&'h [u8]>)> + Clone,
        out: &mut Vec<u8>,
    ) {
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => out.extend_from_slice(text),
                Piece::Value => out.extend_from_slice(fields.value.unwrap_or_default()),
                Piece::Key => out.extend_from_slice(fields.key.unwrap_or_default()),
                Piece::Topic => out.extend_from_slice(fields.topic.as_bytes()),
                Piece::Partition => push_number(out, fields.partition),
                Piece::Offset => push_number(out, fields.offset),
                Piece::TimestampMs => push_number(out, fields.timestamp_ms),
                Piece::Headers => push_headers(out, headers.clone()),
            }
        }
    }
}

fn push_number(out: &mut Vec<u8>, number: impl fmt::Display) {
    write!(out, "{number}").expect("a Vec takes everything");
}

fn push_headers<'h>(out: &mut Vec<u8>, headers: impl Iterator<Item = (&'h str, Option<&'h [u8]>)>) {
    for (index, (name, value)) in headers.enumerate() {
        if 0 < index {
            out.push(b',');
        }
        out.extend_from_slice(name.as_bytes());
        out.push(b'=');
        out.extend_from_slice(value.unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(format: &str, fields: Fields<'_>) -> Vec<u8> {
        let headers: [(&str, Option<&[u8]>); 3] =
            [("a", Some(b"1")), ("b", None), ("c", Some(b"\xff"))];
        let mut out = Vec::new();
        format.parse::<Format>().unwrap().write(fields, headers.into_iter(), &mut out);
        out
    }

    const FIELDS: Fields<'static> = Fields {
        topic: "orders",
        partition: 3,
        offset: 42,
        timestamp_ms: -5,
        key: Some(b"k"),
        value: Some(b"v\xfe"),
    };

    #[test]
    fn each_directive_writes_its_field_and_text_stays_as_it_is() {
        assert_eq!(written(r"%v\n", FIELDS), b"v\xfe\n");
        assert_eq!(
            written(r"%t[%p]@%o %T %k=%v\t\r\\%%", FIELDS),
            b"orders[3]@42 -5 k=v\xfe\t\r\\%"
        );
        assert_eq!(written("%h", FIELDS), b"a=1,b=,c=\xff");
        assert_eq!(written("no field\u{e9}", FIELDS), "no field\u{e9}".as_bytes());
        assert_eq!(written("", FIELDS), b"");
    }

    #[test]
    fn what_a_record_does_not_have_is_written_as_nothing() {
        let fields = Fields { key: None, value: None, ..FIELDS };
        assert_eq!(written("<%k|%v>", fields), b"<|>");
    }

    #[test]
    fn an_unknown_directive_is_named_with_those_that_there_are() {
        for (text, unknown) in [("%v%x", "%x"), ("a%", "%"), (r"\q", r"\q"), ("\\", "\\")] {
            let error = text.parse::<Format>().unwrap_err();
            assert_eq!(error.unknown, unknown);
            assert!(error.to_string().contains("%v value"), "{error}");
        }
    }
}
