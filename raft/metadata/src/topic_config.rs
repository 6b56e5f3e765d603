//! The configuration of a topic: text pairs from a client become a checked struct once.

use std::fmt;

use rustmq_protocol::limits::{RECORD_BYTES_DEFAULT, RECORD_BYTES_MAX};

/// Seven days, as peers have it.
const RETENTION_MS_DEFAULT: u64 = 7 * 24 * 60 * 60 * 1_000;

/// What a topic's records are kept for and how large they may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopicConfig {
    /// Milliseconds after their append for which records are kept; `None` keeps them for ever.
    pub retention_ms: Option<u64>,
    /// Bytes kept in each partition; `None` sets no bound.
    pub retention_bytes: Option<u64>,
    /// Largest record in bytes.
    pub max_message_bytes: u32,
    /// How old records go.
    pub cleanup_policy: CleanupPolicy,
    /// Who decides how batches are compressed.
    pub compression_type: CompressionType,
}

/// How old records go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CleanupPolicy {
    /// By age and size, whole segments at a time.
    Delete,
}

/// Who decides how batches are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompressionType {
    /// The producer; the broker stores the batch as it came.
    Producer,
}

/// A pair that is not a topic configuration, and what would be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The key as it came.
    pub key: String,
    /// The value as it came.
    pub value: String,
    /// What is allowed: the keys if the key is unknown, otherwise the values of that key.
    pub allowed: String,
}

impl Default for TopicConfig {
    fn default() -> Self {
        Self {
            retention_ms: Some(RETENTION_MS_DEFAULT),
            retention_bytes: None,
            max_message_bytes: RECORD_BYTES_DEFAULT as u32,
            cleanup_policy: CleanupPolicy::Delete,
            compression_type: CompressionType::Producer,
        }
    }
}

impl TopicConfig {
    /// The keys that a topic's configuration may have, in the order of [`TopicConfig::to_pairs`].
    pub const KEYS: [&'static str; 5] = [
        "retention_ms",
        "retention_bytes",
        "max_message_bytes",
        "cleanup_policy",
        "compression_type",
    ];

    /// Reads pairs over the built-in defaults.
    pub fn parse(pairs: &[(String, String)]) -> Result<Self, ConfigError> {
        Self::parse_over(Self::default(), RECORD_BYTES_MAX as u32, pairs)
    }

    /// Reads pairs over the defaults of a broker, whose buffers hold records of at most
    /// `record_bytes_max`. Each key may come once.
    pub fn parse_over(
        defaults: TopicConfig,
        record_bytes_max: u32,
        pairs: &[(String, String)],
    ) -> Result<Self, ConfigError> {
        let mut config = defaults;
        for (index, (key, value)) in pairs.iter().enumerate() {
            // At most five keys pass before one repeats, so this is not quadratic in the input.
            if pairs[..index].iter().any(|(earlier, _)| earlier == key) {
                return Err(ConfigError::new(key, value, "each key once".to_owned()));
            }
            config.set(key, value, record_bytes_max)?;
        }
        Ok(config)
    }

    /// All keys with their values as text; `parse` reads them back.
    pub fn to_pairs(&self) -> Vec<(String, String)> {
        let values = [
            limit_text(self.retention_ms),
            limit_text(self.retention_bytes),
            self.max_message_bytes.to_string(),
            "delete".to_owned(),
            "producer".to_owned(),
        ];
        Self::KEYS.into_iter().map(str::to_owned).zip(values).collect()
    }

    /// Whether every value is one that text could have set; a snapshot is checked with it.
    pub fn is_valid(&self) -> bool {
        is_retention(self.retention_ms)
            && is_retention(self.retention_bytes)
            && (1..=RECORD_BYTES_MAX as u32).contains(&self.max_message_bytes)
    }

    fn set(&mut self, key: &str, value: &str, record_bytes_max: u32) -> Result<(), ConfigError> {
        let refuse = |allowed: String| ConfigError::new(key, value, allowed);
        match key {
            "retention_ms" => self.retention_ms = parse_limit(value).map_err(refuse)?,
            "retention_bytes" => self.retention_bytes = parse_limit(value).map_err(refuse)?,
            "max_message_bytes" => {
                self.max_message_bytes = value
                    .parse()
                    .ok()
                    .filter(|bytes| (1..=record_bytes_max).contains(bytes))
                    .ok_or_else(|| refuse(format!("1..={record_bytes_max}")))?;
            }
            "cleanup_policy" if value == "delete" => self.cleanup_policy = CleanupPolicy::Delete,
            "cleanup_policy" => return Err(refuse("delete".to_owned())),
            "compression_type" if value == "producer" => {
                self.compression_type = CompressionType::Producer;
            }
            "compression_type" => return Err(refuse("producer".to_owned())),
            _ => return Err(refuse(format!("the keys {}", Self::KEYS.join(", ")))),
        }
        Ok(())
    }
}

/// Whether a retention limit fits the signed numbers in which it travels.
fn is_retention(limit: Option<u64>) -> bool {
    limit.is_none_or(|limit| (1..=i64::MAX as u64).contains(&limit))
}

fn limit_text(limit: Option<u64>) -> String {
    limit.map_or_else(|| "-1".to_owned(), |limit| limit.to_string())
}

fn parse_limit(value: &str) -> Result<Option<u64>, String> {
    let limit = match value {
        "-1" => return Ok(None),
        _ => value.parse().ok(),
    };
    if limit.is_some() && is_retention(limit) {
        return Ok(limit);
    }
    Err(format!("-1 (no limit) or 1..={}", i64::MAX))
}

impl ConfigError {
    fn new(key: &str, value: &str, allowed: String) -> Self {
        Self { key: key.to_owned(), value: value.to_owned(), allowed }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, value, allowed } = self;
        write!(f, "topic configuration {key}={value} is not valid: allowed is {allowed}")
    }
}

impl std::error::Error for ConfigError {}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
    }

    #[test]
    fn no_pairs_are_the_defaults() {
        assert_eq!(TopicConfig::parse(&[]), Ok(TopicConfig::default()));
        assert_eq!(TopicConfig::default().retention_ms, Some(604_800_000));
    }

    #[test]
    fn pairs_are_read_back() {
        let config = TopicConfig::parse(&pairs(&[
            ("retention_ms", "-1"),
            ("retention_bytes", "1073741824"),
            ("max_message_bytes", "4096"),
            ("cleanup_policy", "delete"),
            ("compression_type", "producer"),
        ]))
        .unwrap();
        assert_eq!(config.retention_ms, None);
        assert_eq!(config.retention_bytes, Some(1 << 30));
        assert_eq!(config.max_message_bytes, 4096);
        assert_eq!(TopicConfig::parse(&config.to_pairs()), Ok(config));
    }

    #[test]
    fn pairs_override_the_defaults_given() {
        let defaults = TopicConfig { retention_ms: Some(5), ..TopicConfig::default() };
        let pairs = pairs(&[("retention_bytes", "7")]);
        let config = TopicConfig::parse_over(defaults, 1 << 20, &pairs).unwrap();
        assert_eq!((config.retention_ms, config.retention_bytes), (Some(5), Some(7)));
    }

    #[test]
    fn a_topic_takes_no_larger_records_than_its_broker() {
        let with = |bytes| {
            let pairs = pairs(&[("max_message_bytes", bytes)]);
            TopicConfig::parse_over(TopicConfig::default(), 4096, &pairs)
        };
        assert_eq!(with("4096").map(|config| config.max_message_bytes), Ok(4096));
        assert_eq!(with("4097").unwrap_err().allowed, "1..=4096");
    }

    #[test]
    fn compaction_is_refused_with_what_is_allowed() {
        let error = TopicConfig::parse(&pairs(&[("cleanup_policy", "compact")])).unwrap_err();
        assert_eq!(
            error.to_string(),
            "topic configuration cleanup_policy=compact is not valid: allowed is delete"
        );
    }

    #[test]
    fn an_unknown_key_is_refused_with_the_known_ones() {
        let error = TopicConfig::parse(&pairs(&[("retention.ms", "1")])).unwrap_err();
        assert!(TopicConfig::KEYS.iter().all(|key| error.allowed.contains(key)), "{error}");
    }

    #[test]
    fn values_out_of_bounds_are_refused() {
        let too_long = (RECORD_BYTES_MAX as u64 + 1).to_string();
        for (key, value) in [
            ("retention_ms", "0"),
            ("retention_ms", "-2"),
            ("retention_ms", "9223372036854775808"),
            ("retention_ms", "7d"),
            ("retention_bytes", ""),
            ("max_message_bytes", "0"),
            ("max_message_bytes", &too_long),
            ("compression_type", "zstd"),
        ] {
            let error = TopicConfig::parse(&pairs(&[(key, value)])).unwrap_err();
            assert_eq!((error.key.as_str(), error.value.as_str()), (key, value));
        }
    }

    #[test]
    fn a_key_may_come_once() {
        let twice = pairs(&[("retention_ms", "1"), ("retention_ms", "1")]);
        assert_eq!(TopicConfig::parse(&twice).unwrap_err().allowed, "each key once");
    }
}
