//! Authorization: what a principal may do, asked before every request.
//!
//! Whoever the TLS handshake has admitted may do everything today, except write to the topics that
//! are the broker's own. The question is asked with all that an answer by rule will need.

use std::collections::BTreeMap;
use std::fmt;

use rustmq_protocol::topic_name::is_reserved_topic_name;

use crate::limits::{PRINCIPAL_NAME_BYTES_MAX, PRINCIPALS_MAX};

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operation {
    /// Fetch records.
    Read,
    /// Append records.
    Write,
    /// Create a topic.
    Create,
    /// Delete a topic.
    Delete,
    /// See that something exists and how it is configured.
    Describe,
    /// Everything that only an operator does.
    Admin,
}

/// To what a request does it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Resource<'a> {
    /// The cluster as a whole.
    Cluster,
    /// A topic by name, whether it exists or not.
    Topic(&'a str),
    /// A consumer group by name.
    Group(&'a str),
}

/// The number that stands for a principal's name on one shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PrincipalId(pub u32);

/// The answer, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Allowed: the handshake admitted the principal, and no rule says otherwise.
    AllowedByAdmission,
    /// Refused: no handshake on this shard admitted such a principal.
    DeniedUnknownPrincipal,
    /// Refused: the topic is the broker's own, and only the broker changes it.
    DeniedReservedTopic,
}

impl Decision {
    /// Whether the request goes on.
    pub fn is_allowed(self) -> bool {
        match self {
            Self::AllowedByAdmission => true,
            Self::DeniedUnknownPrincipal | Self::DeniedReservedTopic => false,
        }
    }
}

/// Decides whether a principal may do something.
pub fn authorize(
    principals: &Principals,
    principal: PrincipalId,
    operation: Operation,
    resource: Resource<'_>,
) -> Decision {
    if principals.name(principal).is_none() {
        return Decision::DeniedUnknownPrincipal;
    }
    let changes = match operation {
        Operation::Write | Operation::Create | Operation::Delete => true,
        Operation::Read | Operation::Describe | Operation::Admin => false,
    };
    match resource {
        Resource::Topic(name) if changes && is_reserved_topic_name(name) => {
            Decision::DeniedReservedTopic
        }
        Resource::Topic(_) | Resource::Group(_) | Resource::Cluster => Decision::AllowedByAdmission,
    }
}

/// The principals that one shard has met, each name once; a session keeps the number.
///
/// Invariant: ids are the indexes of `names`, and `ids` is its inverse. The shard that owns it
/// drives it, at each handshake. It begins empty, only grows, and ends with the shard.
#[derive(Clone, Debug, Default)]
pub struct Principals {
    names: Vec<String>,
    ids: BTreeMap<String, PrincipalId>,
}

/// Why a name gets no number; the session is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrincipalError {
    /// A principal has a name.
    Empty,
    /// The name is longer than any certificate's should be.
    TooLong {
        /// Bytes of the name.
        bytes: usize,
        /// [`PRINCIPAL_NAME_BYTES_MAX`].
        max: usize,
    },
    /// The shard has met as many principals as it keeps.
    Full {
        /// [`PRINCIPALS_MAX`].
        max: usize,
    },
}

impl Principals {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The number of a name, the same each time.
    pub fn intern(&mut self, name: &str) -> Result<PrincipalId, PrincipalError> {
        if let Some(id) = self.ids.get(name) {
            return Ok(*id);
        }
        if name.is_empty() {
            return Err(PrincipalError::Empty);
        }
        let (bytes, max) = (name.len(), PRINCIPAL_NAME_BYTES_MAX);
        if max < bytes {
            return Err(PrincipalError::TooLong { bytes, max });
        }
        if self.names.len() == PRINCIPALS_MAX {
            return Err(PrincipalError::Full { max: PRINCIPALS_MAX });
        }
        let id = PrincipalId(self.names.len() as u32);
        self.names.push(name.to_owned());
        self.ids.insert(name.to_owned(), id);
        Ok(id)
    }

    /// The name behind a number.
    pub fn name(&self, principal: PrincipalId) -> Option<&str> {
        self.names.get(principal.0 as usize).map(String::as_str)
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AllowedByAdmission => "allowed: the handshake admitted the principal",
            Self::DeniedUnknownPrincipal => "denied: the principal is not known on this shard",
            Self::DeniedReservedTopic => "denied: topics beginning with __ are the broker's own",
        })
    }
}

impl fmt::Display for PrincipalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => write!(f, "a principal without a name is not valid"),
            Self::TooLong { bytes, max } => {
                write!(f, "a principal's name of {bytes} bytes is not valid: allowed are {max}")
            }
            Self::Full { max } => write!(f, "more principals than PRINCIPALS_MAX ({max}) allows"),
        }
    }
}

impl std::error::Error for PrincipalError {}

const _: () = assert!(PRINCIPALS_MAX <= u32::MAX as usize);

#[cfg(test)]
mod tests {
    use super::*;

    const OPERATIONS: [Operation; 6] = [
        Operation::Read,
        Operation::Write,
        Operation::Create,
        Operation::Delete,
        Operation::Describe,
        Operation::Admin,
    ];

    #[test]
    fn an_admitted_principal_may_do_everything_to_topics_of_its_own() {
        let mut principals = Principals::new();
        let alice = principals.intern("CN=alice").unwrap();
        for operation in OPERATIONS {
            for resource in [Resource::Cluster, Resource::Topic("orders"), Resource::Group("g")] {
                let decision = authorize(&principals, alice, operation, resource);
                assert_eq!(decision, Decision::AllowedByAdmission);
                assert!(decision.is_allowed());
            }
        }
    }

    #[test]
    fn reserved_topics_are_read_but_not_changed() {
        let mut principals = Principals::new();
        let alice = principals.intern("CN=alice").unwrap();
        for operation in OPERATIONS {
            let decision = authorize(&principals, alice, operation, Resource::Topic("__offsets"));
            let changes =
                matches!(operation, Operation::Write | Operation::Create | Operation::Delete);
            assert_eq!(decision.is_allowed(), !changes, "{operation:?}");
        }
    }

    #[test]
    fn a_principal_that_no_handshake_admitted_may_do_nothing() {
        let principals = Principals::new();
        let decision =
            authorize(&principals, PrincipalId(0), Operation::Describe, Resource::Cluster);
        assert_eq!(decision, Decision::DeniedUnknownPrincipal);
        assert!(!decision.is_allowed());
    }

    #[test]
    fn a_name_keeps_its_number() {
        let mut principals = Principals::new();
        let alice = principals.intern("CN=alice").unwrap();
        let bob = principals.intern("CN=bob").unwrap();
        assert_ne!(alice, bob);
        assert_eq!(principals.intern("CN=alice"), Ok(alice));
        assert_eq!(principals.name(bob), Some("CN=bob"));
    }

    #[test]
    fn names_out_of_bounds_are_refused() {
        let mut principals = Principals::new();
        assert_eq!(principals.intern(""), Err(PrincipalError::Empty));
        let (bytes, max) = (PRINCIPAL_NAME_BYTES_MAX + 1, PRINCIPAL_NAME_BYTES_MAX);
        let error = principals.intern(&"x".repeat(bytes)).unwrap_err();
        assert_eq!(error, PrincipalError::TooLong { bytes, max });
    }

    #[test]
    fn a_full_table_refuses_new_names_and_keeps_the_old() {
        let mut principals = Principals::new();
        for index in 0..PRINCIPALS_MAX {
            principals.intern(&index.to_string()).unwrap();
        }
        let full = PrincipalError::Full { max: PRINCIPALS_MAX };
        assert_eq!(principals.intern("one more"), Err(full));
        assert_eq!(principals.intern("0"), Ok(PrincipalId(0)));
    }
}
