//! `--from`: where reading begins.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;

/// Where reading begins, in each partition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum From {
    /// At the oldest record there is.
    Start,
    /// After the newest record there is.
    End,
    /// At this offset.
    Offset(u64),
    /// At the first record that is not older, in milliseconds since 1970 UTC.
    TimestampMs(i64),
    /// At so many records before the end.
    Last(u64),
}

/// The text is no place to begin.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct FromError {
    text: String,
}

impl fmt::Display for FromError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} is not valid: allowed are start, end, an offset (17), the last N records of each \
             partition (-10), a time in RFC 3339 (@2026-01-31T12:00:00Z) or in milliseconds since \
             1970 (@1769860800000)",
            self.text
        )
    }
}

impl std::error::Error for FromError {}

impl FromStr for From {
    type Err = FromError;

    fn from_str(text: &str) -> Result<From, FromError> {
        let from = match (text, text.strip_prefix('@'), text.strip_prefix('-')) {
            ("start", ..) => Some(From::Start),
            ("end", ..) => Some(From::End),
            (_, Some(time), _) => timestamp_ms(time).map(From::TimestampMs),
            (_, _, Some(count)) => digits(count).map(From::Last),
            (offset, ..) => digits(offset).map(From::Offset),
        };
        from.ok_or_else(|| FromError { text: text.to_owned() })
    }
}

fn timestamp_ms(text: &str) -> Option<i64> {
    match digits(text) {
        Some(ms) => i64::try_from(ms).ok(),
        None => Some(text.parse::<Timestamp>().ok()?.as_millisecond()),
    }
}

/// Digits alone: `parse` would take a plus as well.
fn digits(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_of_saying_it_is_understood() {
        for (text, from) in [
            ("start", From::Start),
            ("end", From::End),
            ("0", From::Offset(0)),
            ("18446744073709551615", From::Offset(u64::MAX)),
            ("-10", From::Last(10)),
            ("-0", From::Last(0)),
            ("@0", From::TimestampMs(0)),
            ("@1769860800123", From::TimestampMs(1_769_860_800_123)),
            ("@2026-01-31T12:00:00Z", From::TimestampMs(1_769_860_800_000)),
            ("@2026-01-31T13:00:00.5+01:00", From::TimestampMs(1_769_860_800_500)),
        ] {
            assert_eq!(text.parse(), Ok(from), "{text}");
        }
    }

    #[test]
    fn anything_else_is_refused_with_what_is_allowed() {
        for text in ["", "begin", "+1", "--1", "-", "@", "1.5", "@yesterday", "@2026-01-31", "-+1"]
        {
            let error = text.parse::<From>().unwrap_err();
            assert!(error.to_string().contains("allowed are start, end"), "{text}");
        }
        assert!("18446744073709551616".parse::<From>().is_err(), "past the last offset");
    }
}
