//! What the exit code says, and which error gives which.

use std::fmt;
use std::process::ExitCode;

use rustmq_client::error::ConfigError;
use rustmq_client::{ClientError, ErrorCode};

/// Printed at the end of every `--help`.
pub(crate) const HELP: &str = "\
Exit codes:
  0  done
  1  failed for another reason than those below
  2  wrong usage or configuration; nothing was begun
  3  the broker cannot be reached, or the connection was lost
  4  refused by the broker, whose error code is printed
  5  not all records were acknowledged; some may be stored";

/// The outcome of a command, as scripts see it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Exit {
    Failed = 1,
    Usage = 2,
    Unreachable = 3,
    Refused = 4,
    Unacknowledged = 5,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

impl Exit {
    /// The code for an error that ends a command.
    pub(crate) fn of(error: &anyhow::Error) -> Exit {
        if error.is::<UsageError>() || error.is::<rustmq_config::ConfigError>() {
            return Exit::Usage;
        }
        if error.is::<Unacknowledged>() {
            return Exit::Unacknowledged;
        }
        error.downcast_ref::<ClientError>().map_or(Exit::Failed, Exit::of_client)
    }

    fn of_client(error: &ClientError) -> Exit {
        match error {
            ClientError::Connect { .. }
            | ClientError::ConnectionLost
            | ClientError::RequestTimeout => Exit::Unreachable,
            ClientError::DeliveryTimeout { .. } => Exit::Unacknowledged,
            ClientError::Config(ConfigError::Address { .. }) => Exit::Usage,
            error if code(error).is_some() => Exit::Refused,
            _ => Exit::Failed,
        }
    }
}

/// The broker's code for an error, also where the client refused on its behalf.
pub(crate) fn code(error: &ClientError) -> Option<ErrorCode> {
    match error {
        ClientError::TopicName(_) => Some(ErrorCode::InvalidTopicName),
        ClientError::RecordTooLarge { .. } => Some(ErrorCode::RecordTooLarge),
        ClientError::NoSuchPartition { .. } => Some(ErrorCode::UnknownPartition),
        error => error.code(),
    }
}

/// One line about an error: the code, where there is one, comes first in what the client says.
pub(crate) fn line(error: &anyhow::Error) -> String {
    let text = format!("{error:#}");
    match error.downcast_ref::<ClientError>().and_then(code) {
        Some(code) if !text.contains(code.name()) => format!("{code}: {text}"),
        _ => text,
    }
}

/// Arguments that clap cannot check by itself are wrong.
#[derive(Debug)]
pub(crate) struct UsageError(pub(crate) String);

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}

/// Records were sent and not all of them acknowledged.
#[derive(Debug)]
pub(crate) struct Unacknowledged {
    pub(crate) acknowledged: u64,
    pub(crate) unacknowledged: u64,
    pub(crate) first: ClientError,
}

impl fmt::Display for Unacknowledged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total = self.acknowledged + self.unacknowledged;
        write!(f, "{} of {total} records not acknowledged: ", self.unacknowledged)?;
        match code(&self.first) {
            Some(code) if !self.first.to_string().contains(code.name()) => write!(f, "{code}: ")?,
            _ => {}
        }
        self.first.fmt(f)
    }
}

impl std::error::Error for Unacknowledged {}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use anyhow::Context;

    fn refused(code: ErrorCode) -> ClientError {
        let (message, definite) = ("no".to_owned(), code.is_definite());
        ClientError::Broker { code, message, definite, retry_after: Duration::ZERO }
    }

    #[test]
    fn the_code_is_found_below_what_was_said_about_it() {
        let error = Err::<(), _>(refused(ErrorCode::UnknownTopic)).context("topic a").unwrap_err();
        assert_eq!(Exit::of(&error), Exit::Refused);
        assert_eq!(line(&error), "topic a: UNKNOWN_TOPIC: no");
        assert_eq!(Exit::of(&ClientError::ConnectionLost.into()), Exit::Unreachable);
        assert_eq!(Exit::of(&UsageError("x".to_owned()).into()), Exit::Usage);
        assert_eq!(Exit::of(&anyhow::anyhow!("x")), Exit::Failed);
    }

    #[test]
    fn what_the_client_refuses_itself_has_the_brokers_code() {
        let error = anyhow::Error::from(ClientError::RecordTooLarge { bytes: 2, max: 1 });
        assert_eq!(Exit::of(&error), Exit::Refused);
        assert!(line(&error).starts_with("RECORD_TOO_LARGE: "), "{}", line(&error));
    }

    #[test]
    fn unacknowledged_records_are_counted_and_the_first_error_is_named() {
        let first = refused(ErrorCode::StorageFull);
        let error = Unacknowledged { acknowledged: 2, unacknowledged: 1, first };
        assert_eq!(error.to_string(), "1 of 3 records not acknowledged: STORAGE_FULL: no");
        assert_eq!(Exit::of(&error.into()), Exit::Unacknowledged);
    }
}
