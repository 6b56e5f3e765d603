//! What an option may be: units, bounds, and how text becomes a value.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

/// Suffixes of sizes, largest first.
const SIZE_UNITS: [(&str, u64); 4] = [("TiB", TIB), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)];

/// What an option may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A number in a unit, within bounds.
    Number(Number),
    /// One of these words.
    Choice(&'static [&'static str]),
    /// `true` or `false`.
    Flag,
    /// Text of so many bytes.
    Text {
        /// Fewest bytes.
        bytes_min: usize,
        /// Most bytes.
        bytes_max: usize,
    },
    /// An IP address.
    Address,
}

/// A number's unit and bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Number {
    /// What it counts.
    pub unit: Unit,
    /// The smallest that is allowed.
    pub min: u64,
    /// The largest that is allowed; it fits TOML's signed integers.
    pub max: u64,
    /// Only multiples of this are allowed.
    pub multiple_of: u64,
    /// Whether -1 stands for no limit.
    pub no_limit: bool,
}

/// What a number counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Things.
    Count,
    /// Bytes; written plainly or as `64KiB`, `64MiB`, `1GiB`, `1TiB`.
    Bytes,
    /// Milliseconds.
    Millis,
    /// Microseconds.
    Micros,
}

/// A checked value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    Number(u64),
    NoLimit,
    Choice(&'static str),
    Flag(bool),
    Text(String),
    Address(IpAddr),
}

/// A value as a source wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Raw {
    Integer(i64),
    Flag(bool),
    Text(String),
    /// A float, a date, an array or a table: nothing that an option can be.
    Other(String),
}

impl Kind {
    /// Things from `min` to `max`.
    pub(crate) const fn count(min: u64, max: u64) -> Self {
        Self::number(Unit::Count, min, max)
    }

    /// Bytes from `min` to `max`.
    pub(crate) const fn bytes(min: u64, max: u64) -> Self {
        Self::number(Unit::Bytes, min, max)
    }

    /// Milliseconds from `min` to `max`.
    pub(crate) const fn millis(min: u64, max: u64) -> Self {
        Self::number(Unit::Millis, min, max)
    }

    /// Microseconds from `min` to `max`.
    pub(crate) const fn micros(min: u64, max: u64) -> Self {
        Self::number(Unit::Micros, min, max)
    }

    const fn number(unit: Unit, min: u64, max: u64) -> Self {
        assert!(min <= max && max <= i64::MAX as u64);
        Self::Number(Number { unit, min, max, multiple_of: 1, no_limit: false })
    }

    /// The same number, in multiples of `step` only.
    pub(crate) const fn in_steps_of(self, step: u64) -> Self {
        match self {
            Self::Number(number) => Self::Number(Number { multiple_of: step, ..number }),
            _ => panic!("only numbers have steps"),
        }
    }

    /// The same number, or -1 for no limit.
    pub(crate) const fn or_no_limit(self) -> Self {
        match self {
            Self::Number(number) => Self::Number(Number { no_limit: true, ..number }),
            _ => panic!("only numbers are limits"),
        }
    }

    /// Checks a value; `None` if it is not allowed.
    pub(crate) fn check(&self, raw: &Raw) -> Option<Value> {
        match (self, raw) {
            (Self::Number(number), Raw::Integer(integer)) => number.check(*integer),
            (Self::Number(number), Raw::Text(text)) => number.check(number.parse(text)?),
            (Self::Choice(words), Raw::Text(text)) => {
                words.iter().find(|word| *word == text).copied().map(Value::Choice)
            }
            (Self::Flag, Raw::Flag(flag)) => Some(Value::Flag(*flag)),
            (Self::Flag, Raw::Text(text)) => text.parse().ok().map(Value::Flag),
            (Self::Text { bytes_min, bytes_max }, Raw::Text(text)) => {
                let fits = (*bytes_min..=*bytes_max).contains(&text.len());
                (fits && !text.contains('\0')).then(|| Value::Text(text.clone()))
            }
            (Self::Address, Raw::Text(text)) => text.parse().ok().map(Value::Address),
            (_, Raw::Integer(_) | Raw::Flag(_) | Raw::Other(_)) => None,
        }
    }

    /// How the default stands in a TOML file.
    pub(crate) fn toml(&self, default: &str) -> String {
        let bare = match self {
            Self::Number(_) => default.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-'),
            Self::Flag => true,
            Self::Choice(_) | Self::Text { .. } | Self::Address => false,
        };
        if bare { default.to_owned() } else { format!("{default:?}") }
    }
}

impl Number {
    fn parse(&self, text: &str) -> Option<i64> {
        let plain = text.parse().ok();
        if plain.is_some() || self.unit != Unit::Bytes {
            return plain;
        }
        let (suffix, factor) = SIZE_UNITS.iter().find(|(suffix, _)| text.ends_with(suffix))?;
        let count: u64 = text.strip_suffix(suffix)?.trim_end().parse().ok()?;
        i64::try_from(count.checked_mul(*factor)?).ok()
    }

    fn check(&self, integer: i64) -> Option<Value> {
        if self.no_limit && integer == -1 {
            return Some(Value::NoLimit);
        }
        let number = u64::try_from(integer).ok()?;
        let allowed =
            (self.min..=self.max).contains(&number) && number.is_multiple_of(self.multiple_of);
        allowed.then_some(Value::Number(number))
    }

    fn text(&self, number: u64) -> String {
        match self.unit {
            Unit::Bytes => size_text(number),
            Unit::Count | Unit::Millis | Unit::Micros => number.to_string(),
        }
    }
}

/// A size with the largest unit that divides it.
pub(crate) fn size_text(bytes: u64) -> String {
    let unit = SIZE_UNITS.iter().find(|(_, factor)| bytes != 0 && bytes.is_multiple_of(*factor));
    unit.map_or_else(|| bytes.to_string(), |(suffix, factor)| format!("{}{suffix}", bytes / factor))
}

/// What is allowed, as errors and the reference page say it.
impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => {
                if number.no_limit {
                    write!(f, "-1 (no limit) or ")?;
                }
                write!(f, "{}..={}", number.text(number.min), number.text(number.max))?;
                match number.unit {
                    Unit::Count | Unit::Bytes => {}
                    Unit::Millis => write!(f, " ms")?,
                    Unit::Micros => write!(f, " µs")?,
                }
                if number.multiple_of != 1 {
                    write!(f, ", a multiple of {}", number.text(number.multiple_of))?;
                }
                Ok(())
            }
            Self::Choice(words) => f.write_str(&words.join(", ")),
            Self::Flag => f.write_str("true, false"),
            Self::Text { bytes_min: 0, bytes_max } => {
                write!(f, "text of at most {bytes_max} bytes")
            }
            Self::Text { bytes_min, bytes_max } => {
                write!(f, "text of {bytes_min}..={bytes_max} bytes")
            }
            Self::Address => f.write_str("an IP address"),
        }
    }
}

impl fmt::Display for Raw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Integer(integer) => write!(f, "{integer}"),
            Self::Flag(flag) => write!(f, "{flag}"),
            // Plain text reads best; what would not show is quoted.
            Self::Text(text) if text.is_empty() || text.chars().any(char::is_control) => {
                write!(f, "{text:?}")
            }
            Self::Text(text) => f.write_str(text),
            Self::Other(kind) => write!(f, "({kind})"),
        }
    }
}

/// A type that an option's checked value becomes.
pub(crate) trait FromValue: Sized {
    /// `None` if the declaration pairs this type with a kind that it cannot hold.
    fn from_value(value: &Value) -> Option<Self>;
}

macro_rules! from_number {
    ($($number:ty),+) => {
        $(impl FromValue for $number {
            fn from_value(value: &Value) -> Option<Self> {
                match value {
                    Value::Number(number) => (*number).try_into().ok(),
                    _ => None,
                }
            }
        })+
    };
}

from_number!(u16, u32, u64);

impl FromValue for Option<u64> {
    fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::Number(number) => Some(Some(*number)),
            Value::NoLimit => Some(None),
            _ => None,
        }
    }
}

impl FromValue for bool {
    fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::Flag(flag) => Some(*flag),
            _ => None,
        }
    }
}

impl FromValue for String {
    fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::Text(text) => Some(text.clone()),
            _ => None,
        }
    }
}

impl FromValue for PathBuf {
    fn from_value(value: &Value) -> Option<Self> {
        String::from_value(value).map(PathBuf::from)
    }
}

impl FromValue for IpAddr {
    fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::Address(address) => Some(*address),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(kind: Kind, text: &str) -> Option<Value> {
        kind.check(&Raw::Text(text.to_owned()))
    }

    #[test]
    fn sizes_are_plain_bytes_or_have_a_binary_unit() {
        let kind = Kind::bytes(0, TIB);
        assert_eq!(check(kind, "4096"), Some(Value::Number(4096)));
        assert_eq!(check(kind, "64KiB"), Some(Value::Number(65536)));
        assert_eq!(check(kind, "64 MiB"), Some(Value::Number(64 << 20)));
        assert_eq!(check(kind, "1TiB"), Some(Value::Number(1 << 40)));
        assert_eq!(kind.check(&Raw::Integer(7)), Some(Value::Number(7)));
        for text in ["", "MiB", "64MB", "64mib", "1.5GiB", "-1MiB", "0x10", "99999999TiB"] {
            assert_eq!(check(kind, text), None, "{text}");
        }
        assert_eq!(check(Kind::millis(0, 1 << 30), "1KiB"), None, "a duration has no size");
    }

    #[test]
    fn bounds_and_steps_are_inclusive_and_exact() {
        let kind = Kind::bytes(MIB, GIB).in_steps_of(4096);
        assert_eq!(check(kind, "1MiB"), Some(Value::Number(MIB)));
        assert_eq!(check(kind, "1GiB"), Some(Value::Number(GIB)));
        assert_eq!(check(kind, "1023KiB"), None);
        assert_eq!(check(kind, "1048577"), None);
        assert_eq!(kind.to_string(), "1MiB..=1GiB, a multiple of 4KiB");
    }

    #[test]
    fn minus_one_is_no_limit_only_where_it_is_declared() {
        assert_eq!(check(Kind::count(1, 5).or_no_limit(), "-1"), Some(Value::NoLimit));
        assert_eq!(check(Kind::count(1, 5).or_no_limit(), "-2"), None);
        assert_eq!(check(Kind::count(1, 5), "-1"), None);
    }

    #[test]
    fn words_flags_and_addresses_are_exact() {
        let kind = Kind::Choice(&["always", "interval"]);
        assert_eq!(check(kind, "interval"), Some(Value::Choice("interval")));
        assert_eq!(check(kind, "Interval"), None);
        assert_eq!(check(Kind::Flag, "true"), Some(Value::Flag(true)));
        assert_eq!(check(Kind::Flag, "1"), None);
        assert!(check(Kind::Address, "::1").is_some());
        assert_eq!(check(Kind::Address, "localhost"), None);
    }

    #[test]
    fn a_size_is_written_in_the_largest_unit_that_divides_it() {
        assert_eq!(size_text(10 << 30), "10GiB");
        assert_eq!(size_text(1536 << 10), "1536KiB");
        assert_eq!(size_text(1000), "1000");
        assert_eq!(size_text(0), "0");
    }
}
