//! The checked reader below every decoder, and the writing helpers below every encoder.
//!
//! All integers are little-endian. Text is a `u16` length and UTF-8. A list is a `u32` count and
//! its elements. Bytes of padding are zero and are checked to be.

use std::fmt;

use crate::limits::STRING_BYTES_MAX;

/// Why bytes are not the body that they should be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DecodeError {
    /// The body ends within a field.
    Truncated {
        /// Bytes that the field has.
        needed: usize,
        /// Bytes that were left.
        left: usize,
    },
    /// Bytes follow the last field.
    TrailingBytes {
        /// How many.
        left: usize,
    },
    /// Text is not UTF-8.
    NotUtf8,
    /// Text is longer than allowed.
    TooLong {
        /// Its bytes.
        bytes: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// A list has more elements than allowed.
    TooMany {
        /// Its elements.
        count: u32,
        /// Elements allowed.
        max: u32,
    },
    /// A field has a value without meaning.
    UnknownValue {
        /// The field.
        field: &'static str,
        /// The value.
        value: u64,
    },
    /// Padding is not zero.
    PaddingNotZero,
    /// A variable-length integer has more bytes or bits than its type.
    VarintTooLong,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DecodeError::Truncated { needed, left } => {
                write!(f, "a field of {needed} bytes begins {left} bytes before the end")
            }
            DecodeError::TrailingBytes { left } => {
                write!(f, "{left} bytes follow the last field, none are allowed")
            }
            DecodeError::NotUtf8 => f.write_str("text is not UTF-8"),
            DecodeError::TooLong { bytes, max } => {
                write!(f, "text of {bytes} bytes, at most {max} are allowed")
            }
            DecodeError::TooMany { count, max } => {
                write!(f, "a list of {count} elements, at most {max} are allowed")
            }
            DecodeError::UnknownValue { field, value } => write!(f, "{field} has no value {value}"),
            DecodeError::PaddingNotZero => f.write_str("padding is not zero"),
            DecodeError::VarintTooLong => {
                f.write_str("a variable-length integer is longer than its type allows")
            }
        }
    }
}

impl std::error::Error for DecodeError {}

/// Reads fields from the front of a body; never past its end.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// A reader of all of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { rest: bytes }
    }

    /// Bytes not yet read.
    pub fn left(&self) -> usize {
        self.rest.len()
    }

    /// The next `count` bytes.
    #[inline]
    pub fn bytes(&mut self, count: usize) -> Result<&'a [u8], DecodeError> {
        let Some((taken, rest)) = self.rest.split_at_checked(count) else {
            return Err(DecodeError::Truncated { needed: count, left: self.rest.len() });
        };
        self.rest = rest;
        Ok(taken)
    }

    /// The next `N` bytes.
    #[inline]
    pub fn array<const N: usize>(&mut self) -> Result<&'a [u8; N], DecodeError> {
        let Some((taken, rest)) = self.rest.split_first_chunk::<N>() else {
            return Err(DecodeError::Truncated { needed: N, left: self.rest.len() });
        };
        self.rest = rest;
        Ok(taken)
    }

    /// The next byte.
    #[inline]
    pub fn u8(&mut self) -> Result<u8, DecodeError> {
        self.array::<1>().map(|&[byte]| byte)
    }

    /// The next two bytes as a number.
    #[inline]
    pub fn u16(&mut self) -> Result<u16, DecodeError> {
        self.array().copied().map(u16::from_le_bytes)
    }

    /// The next four bytes as a number.
    #[inline]
    pub fn u32(&mut self) -> Result<u32, DecodeError> {
        self.array().copied().map(u32::from_le_bytes)
    }

    /// The next eight bytes as a number.
    #[inline]
    pub fn u64(&mut self) -> Result<u64, DecodeError> {
        self.array().copied().map(u64::from_le_bytes)
    }

    /// The next eight bytes as a signed number.
    #[inline]
    pub fn i64(&mut self) -> Result<i64, DecodeError> {
        self.array().copied().map(i64::from_le_bytes)
    }

    /// A zigzag variable-length integer of 32 bits: at most five bytes.
    #[inline]
    pub fn varint_i32(&mut self) -> Result<i32, DecodeError> {
        let raw = self.varint(5)?;
        let raw = u32::try_from(raw).map_err(|_| DecodeError::VarintTooLong)?;
        Ok((raw >> 1) as i32 ^ -((raw & 1) as i32))
    }

    /// A zigzag variable-length integer of 64 bits: at most ten bytes.
    #[inline]
    pub fn varint_i64(&mut self) -> Result<i64, DecodeError> {
        let raw = self.varint(10)?;
        Ok((raw >> 1) as i64 ^ -((raw & 1) as i64))
    }

    fn varint(&mut self, bytes_max: u32) -> Result<u64, DecodeError> {
        let mut value = 0u64;
        for index in 0..bytes_max {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            let shift = 7 * index;
            // Only the tenth byte can lose bits: it has room for one.
            if bits << shift >> shift != bits {
                return Err(DecodeError::VarintTooLong);
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(DecodeError::VarintTooLong)
    }

    /// Text of at most `bytes_max` bytes.
    pub fn text(&mut self, bytes_max: usize) -> Result<&'a str, DecodeError> {
        let bytes = usize::from(self.u16()?);
        if bytes > bytes_max {
            return Err(DecodeError::TooLong { bytes, max: bytes_max });
        }
        std::str::from_utf8(self.bytes(bytes)?).map_err(|_| DecodeError::NotUtf8)
    }

    /// The count of a list of at most `max` elements that take at least `element_bytes_min` bytes
    /// each. It is held against the bytes left, so that memory may be reserved for that many.
    pub fn count(&mut self, max: u32, element_bytes_min: usize) -> Result<usize, DecodeError> {
        let count = self.u32()?;
        if count > max {
            return Err(DecodeError::TooMany { count, max });
        }
        let needed = count as usize * element_bytes_min;
        if needed > self.rest.len() {
            return Err(DecodeError::Truncated { needed, left: self.rest.len() });
        }
        Ok(count as usize)
    }

    /// Skips `N` bytes of padding.
    #[inline]
    pub fn padding<const N: usize>(&mut self) -> Result<(), DecodeError> {
        if *self.array::<N>()? == [0; N] { Ok(()) } else { Err(DecodeError::PaddingNotZero) }
    }

    /// Everything that has not been read.
    pub fn rest(self) -> &'a [u8] {
        self.rest
    }

    /// Ends the body: nothing may be left.
    #[inline]
    pub fn finish(self) -> Result<(), DecodeError> {
        match self.rest.len() {
            0 => Ok(()),
            left => Err(DecodeError::TrailingBytes { left }),
        }
    }
}

/// Appends text with its length.
///
/// # Panics
/// If the text is longer than [`STRING_BYTES_MAX`]: callers check what they let in, the peer would
/// refuse it anyway.
pub(crate) fn put_text(out: &mut Vec<u8>, text: &str) {
    assert!(text.len() <= STRING_BYTES_MAX, "text on the wire is bounded by who lets it in");
    out.extend_from_slice(&(text.len() as u16).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// Appends as much of the text as is allowed, cut between characters.
pub(crate) fn put_text_cut(out: &mut Vec<u8>, text: &str) {
    put_text(out, &text[..text.floor_char_boundary(STRING_BYTES_MAX)]);
}

/// Appends the count of a list.
pub(crate) fn put_count(out: &mut Vec<u8>, count: usize) {
    let count = u32::try_from(count).expect("lists on the wire are bounded far below 2^32");
    out.extend_from_slice(&count.to_le_bytes());
}

/// The bytes of a zigzag variable-length integer, and how many of the ten are used.
#[inline]
pub(crate) fn varint(value: i64) -> ([u8; 10], usize) {
    let mut raw = (value << 1 ^ value >> 63) as u64;
    let mut bytes = [0; 10];
    let mut used = 0;
    for byte in &mut bytes {
        used += 1;
        if raw < 0x80 {
            *byte = raw as u8;
            break;
        }
        *byte = raw as u8 | 0x80;
        raw >>= 7;
    }
    (bytes, used)
}

/// How many bytes the zigzag variable-length integer takes.
#[inline]
pub(crate) fn varint_bytes(value: i64) -> usize {
    let raw = (value << 1 ^ value >> 63) as u64;
    (64 - (raw | 1).leading_zeros() as usize).div_ceil(7)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_reader_never_passes_the_end() {
        let mut reader = Reader::new(&[1, 2, 3]);
        assert_eq!(reader.u16(), Ok(0x0201));
        assert_eq!(reader.u32(), Err(DecodeError::Truncated { needed: 4, left: 1 }));
        assert_eq!(reader.finish(), Err(DecodeError::TrailingBytes { left: 1 }));
    }

    #[test]
    fn a_count_is_held_against_the_bytes_that_are_left() {
        let bytes = [255, 0, 0, 0, 7, 7];
        assert_eq!(
            Reader::new(&bytes).count(10, 1),
            Err(DecodeError::TooMany { count: 255, max: 10 })
        );
        assert_eq!(
            Reader::new(&bytes).count(300, 1),
            Err(DecodeError::Truncated { needed: 255, left: 2 })
        );
        assert_eq!(Reader::new(&[2, 0, 0, 0, 7, 7]).count(300, 1), Ok(2));
    }

    #[test]
    fn text_longer_than_allowed_or_not_utf8_is_refused() {
        assert_eq!(Reader::new(b"\x03\x00abc").text(3), Ok("abc"));
        assert_eq!(
            Reader::new(b"\x03\x00abc").text(2),
            Err(DecodeError::TooLong { bytes: 3, max: 2 })
        );
        assert_eq!(Reader::new(b"\x01\x00\xff").text(2), Err(DecodeError::NotUtf8));
    }

    #[test]
    fn cut_text_ends_between_characters() {
        let mut out = Vec::new();
        put_text_cut(&mut out, &"é".repeat(STRING_BYTES_MAX));
        assert_eq!(Reader::new(&out).text(STRING_BYTES_MAX).map(str::len), Ok(STRING_BYTES_MAX));
        out.clear();
        put_text_cut(&mut out, &format!("x{}", "é".repeat(STRING_BYTES_MAX)));
        assert_eq!(
            Reader::new(&out).text(STRING_BYTES_MAX).map(str::len),
            Ok(STRING_BYTES_MAX - 1)
        );
    }

    #[test]
    fn varints_that_do_not_fit_their_type_are_refused() {
        let eleven = [0xff; 11];
        assert_eq!(Reader::new(&eleven).varint_i64(), Err(DecodeError::VarintTooLong));
        let two_bits_in_the_tenth = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x03];
        assert_eq!(
            Reader::new(&two_bits_in_the_tenth).varint_i64(),
            Err(DecodeError::VarintTooLong)
        );
        let thirty_three_bits = [0xff, 0xff, 0xff, 0xff, 0x1f];
        assert_eq!(Reader::new(&thirty_three_bits).varint_i32(), Err(DecodeError::VarintTooLong));
        assert_eq!(
            Reader::new(&[0x80]).varint_i32(),
            Err(DecodeError::Truncated { needed: 1, left: 0 })
        );
    }

    proptest! {
        #[test]
        fn varints_read_back(value: i64) {
            let (bytes, used) = varint(value);
            prop_assert_eq!(used, varint_bytes(value));
            let mut reader = Reader::new(&bytes[..used]);
            prop_assert_eq!(reader.varint_i64(), Ok(value));
            prop_assert_eq!(reader.left(), 0);
            if let Ok(small) = i32::try_from(value) {
                prop_assert_eq!(Reader::new(&bytes[..used]).varint_i32(), Ok(small));
            }
        }

        #[test]
        fn small_varints_read_back(value: i32) {
            let (bytes, used) = varint(i64::from(value));
            prop_assert_eq!(used, varint_bytes(i64::from(value)));
            prop_assert_eq!(Reader::new(&bytes[..used]).varint_i32(), Ok(value));
        }
    }
}
