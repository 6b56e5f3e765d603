//! Which names a topic may have.

use std::fmt;

use crate::limits::TOPIC_NAME_BYTES_MAX;

/// Why a text is not the name of a topic that a client may create.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TopicNameError {
    /// It is empty.
    Empty,
    /// It is too long.
    TooLong {
        /// Its bytes.
        bytes: usize,
    },
    /// It is `.` or `..`, which name directories.
    Dots,
    /// It has a character that is not allowed.
    Character {
        /// Which.
        character: char,
    },
    /// It begins with `__`: such names belong to the broker.
    Reserved,
}

impl fmt::Display for TopicNameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TopicNameError::Empty => {
                f.write_str("a topic name is empty, it has at least 1 character")
            }
            TopicNameError::TooLong { bytes } => {
                write!(
                    f,
                    "a topic name of {bytes} bytes, at most {TOPIC_NAME_BYTES_MAX} are allowed"
                )
            }
            TopicNameError::Dots => f.write_str("'.' and '..' are not allowed as topic names"),
            TopicNameError::Character { character } => write!(
                f,
                "a topic name has {character:?}, only a-z, A-Z, 0-9, '.', '_' and '-' are allowed"
            ),
            TopicNameError::Reserved => {
                f.write_str("topic names that begin with '__' are reserved")
            }
        }
    }
}

impl std::error::Error for TopicNameError {}

/// Checks the name of a topic that a client wants to create.
pub fn validate_topic_name(name: &str) -> Result<(), TopicNameError> {
    if name.is_empty() {
        return Err(TopicNameError::Empty);
    }
    if name.len() > TOPIC_NAME_BYTES_MAX {
        return Err(TopicNameError::TooLong { bytes: name.len() });
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if let Some(character) = name.chars().find(|character| !allowed(*character)) {
        return Err(TopicNameError::Character { character });
    }
    if matches!(name, "." | "..") {
        return Err(TopicNameError::Dots);
    }
    if is_reserved_topic_name(name) {
        return Err(TopicNameError::Reserved);
    }
    Ok(())
}

/// True for the names that belong to the broker.
pub fn is_reserved_topic_name(name: &str) -> bool {
    name.starts_with("__")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_digits_dots_underscores_and_hyphens_are_allowed() {
        for name in ["a", "Orders.2024_eu-west", "...", "_x", &"x".repeat(TOPIC_NAME_BYTES_MAX)] {
            assert_eq!(validate_topic_name(name), Ok(()), "{name}");
        }
    }

    #[test]
    fn everything_else_is_refused_for_its_own_reason() {
        assert_eq!(validate_topic_name(""), Err(TopicNameError::Empty));
        assert_eq!(
            validate_topic_name(&"x".repeat(250)),
            Err(TopicNameError::TooLong { bytes: 250 })
        );
        assert_eq!(validate_topic_name("."), Err(TopicNameError::Dots));
        assert_eq!(validate_topic_name(".."), Err(TopicNameError::Dots));
        assert_eq!(validate_topic_name("a b"), Err(TopicNameError::Character { character: ' ' }));
        assert_eq!(validate_topic_name("é"), Err(TopicNameError::Character { character: 'é' }));
        assert_eq!(validate_topic_name("__offsets"), Err(TopicNameError::Reserved));
    }
}
