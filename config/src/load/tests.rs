//! Sources, precedence and refusals.

use std::fs;
use std::iter;

use super::*;
use crate::choice::{FlushPolicy, LogLevel, RuntimeBackend, WhenFull};
use crate::kind::Kind;

fn load(file: &str, env: &[(&str, &str)], sets: &[&str]) -> Result<BrokerConfig, ConfigError> {
    let path = tempfile::NamedTempFile::new().unwrap();
    fs::write(path.path(), file).unwrap();
    let env = env.iter().map(|(variable, value)| (variable.to_string(), value.to_string()));
    let sets: Vec<String> = sets.iter().map(|text| text.to_string()).collect();
    BrokerConfig::load(Some(path.path()), env, &sets)
}

/// What an error says after the name of the temporary file.
fn refusal(file: &str, env: &[(&str, &str)], sets: &[&str]) -> String {
    let text = load(file, env, sets).unwrap_err().to_string();
    match text.split_once(".tmp") {
        Some((_, after)) => after[after.find(':').unwrap()..].to_owned(),
        None => text,
    }
}

#[test]
fn defaults_are_a_working_configuration() {
    let config = BrokerConfig::load(None, iter::empty(), &[]).unwrap();
    assert_eq!(config.broker.port, 9092);
    assert_eq!(config.wal.segment_bytes, 64 << 20);
    assert_eq!(config.wal.flush, FlushPolicy::Always);
    assert_eq!(config.wal.when_full, WhenFull::Refuse);
    assert_eq!(config.runtime.backend, RuntimeBackend::Auto);
    assert_eq!(config.topics.retention_ms, Some(604_800_000));
    assert_eq!(config.topics.retention_bytes, None);
    assert_eq!(config.advertised_host(), "127.0.0.1");
}

#[test]
fn each_source_wins_over_the_ones_before() {
    let file = "[log]\nlevel = \"warn\"\n[wal]\nflush_interval_ms = 5\n[broker]\nid = 7\n";
    let env = [("RUSTMQ_LOG_LEVEL", "debug"), ("RUSTMQ_BROKER_ID", "8"), ("HOME", "/root")];
    let config = load(file, &env, &["broker.id=9", "broker.id=10"]).unwrap();
    assert_eq!(config.wal.flush_interval_ms, 5);
    assert_eq!(config.log.level, LogLevel::Debug);
    assert_eq!(config.broker.id, 10);
}

#[test]
fn sizes_have_units_in_every_source() {
    let file = "[wal]\nsegment_bytes = \"32MiB\"\ncapacity_bytes = 1_073_741_824\n";
    let config =
        load(file, &[("RUSTMQ_CACHE_HOT_BYTES", "1GiB")], &["wal.buffer_bytes=8MiB"]).unwrap();
    assert_eq!(config.wal.segment_bytes, 32 << 20);
    assert_eq!(config.wal.capacity_bytes, 1 << 30);
    assert_eq!(config.cache.hot_bytes, 1 << 30);
    assert_eq!(config.wal.buffer_bytes, 8 << 20);
}

#[test]
fn an_unknown_key_is_refused_with_its_line_and_the_known_ones() {
    assert_eq!(
        refusal("# x\n[log]\n\nlvel = \"info\"\n", &[], &[]),
        ":4: log.lvel is not an option: allowed is in log: level, format"
    );
}

#[test]
fn an_unknown_section_is_refused_with_the_known_ones() {
    let known = "broker, admin, runtime, network, wal, topics, cache, producers, log, test";
    let expected = format!(":1: logs is not an option: allowed is in the sections {known}");
    assert_eq!(refusal("[logs]\n", &[], &[]), expected);
    assert_eq!(refusal("logs = 1\n", &[], &[]), expected);
}

#[test]
fn a_bad_value_is_refused_with_its_line_and_what_is_allowed() {
    assert_eq!(
        refusal("[wal]\nflush = \"never\"\n", &[], &[]),
        ":2: wal.flush = never is not valid: allowed is always, interval"
    );
    assert_eq!(
        refusal("[wal]\nsegment_bytes = 3000\n", &[], &[]),
        ":2: wal.segment_bytes = 3000 is not valid: allowed is 1MiB..=1GiB, a multiple of 4KiB"
    );
    assert_eq!(
        refusal("[broker]\nlisten = true\n", &[], &[]),
        ":2: broker.listen = true is not valid: allowed is an IP address"
    );
    assert_eq!(
        refusal("[broker]\nid = 1.5\n", &[], &[]),
        ":2: broker.id = (float) is not valid: allowed is 1..=4294967294"
    );
    assert_eq!(
        refusal("broker = 1\n", &[], &[]),
        ":1: broker = 1 is not valid: allowed is a section, written [broker]"
    );
}

#[test]
fn a_file_that_is_not_toml_is_refused_with_its_line() {
    let text = refusal("[wal]\nflush = \n", &[], &[]);
    assert!(text.starts_with(":2: not TOML: "), "{text}");
    let text = refusal("[wal]\nflush = \"always\"\nflush = \"always\"\n", &[], &[]);
    assert!(text.starts_with(":3: not TOML: "), "{text}");
}

#[test]
fn a_file_that_is_missing_or_too_large_is_refused() {
    let error = BrokerConfig::load(Some(Path::new("/no/such/file")), iter::empty(), &[]);
    assert!(matches!(error, Err(ConfigError::Read { .. })));
    let file = "#".repeat(FILE_BYTES_MAX as usize);
    assert!(load(&file, &[], &[]).is_ok());
    let error = load(&format!("{file}#"), &[], &[]);
    assert!(matches!(error, Err(ConfigError::FileTooLarge { .. })));
}

#[test]
fn an_unknown_variable_is_refused_unless_it_is_a_clients() {
    for variable in CLIENT_VARIABLES {
        assert!(load("", &[(variable, "x")], &[]).is_ok(), "{variable}");
    }
    assert_eq!(
        refusal("", &[("RUSTMQ_LOG_LEVLE", "info")], &[]),
        "environment variable RUSTMQ_LOG_LEVLE: log.levle is not an option: allowed is in log: \
         level, format"
    );
    for variable in ["RUSTMQ_", "RUSTMQ_X", "RUSTMQ_BROKER", "RUSTMQ_Log_Level", "RUSTMQ_é_x"] {
        let error = load("", &[(variable, "info")], &[]);
        assert!(matches!(error, Err(ConfigError::UnknownKey { .. })), "{variable}");
    }
}

#[test]
fn the_short_variable_sets_the_data_directory_and_the_full_one_wins() {
    let short = ("RUSTMQ_DATA_DIR", "/a");
    let config = load("[broker]\ndata_dir = \"/c\"\n", &[short], &[]).unwrap();
    assert_eq!(config.broker.data_dir, Path::new("/a"));
    let config = load("", &[short, ("RUSTMQ_BROKER_DATA_DIR", "/b")], &[]).unwrap();
    assert_eq!(config.broker.data_dir, Path::new("/b"));
    assert!(load("", &[("RUSTMQ_DATA_DIR", "")], &[]).is_err());
}

#[test]
fn a_set_is_section_key_and_value() {
    for text in ["", "broker.id", "id=3", "=", "broker=3"] {
        let error = load("", &[], &[text]);
        assert!(matches!(error, Err(ConfigError::SetSyntax { .. })), "{text}");
    }
    assert_eq!(
        refusal("", &[], &["broker.ID=3"]),
        "--set: broker.ID is not an option: allowed is in broker: data_dir, id, shards, listen, \
         port, advertised_host"
    );
    assert_eq!(
        load("", &[], &["broker.data_dir=/a=b"]).unwrap().broker.data_dir,
        Path::new("/a=b")
    );
}

#[test]
fn test_options_need_test_enabled() {
    assert_eq!(
        refusal("", &[], &["test.flush_delay_us=5"]),
        "--set: test.flush_delay_us is for tests: allowed only with test.enabled = true"
    );
    let config = load("", &[], &["test.flush_delay_us=5", "test.enabled=true"]).unwrap();
    assert_eq!(config.test.flush_delay_us, 5);
}

#[test]
fn a_wal_has_eight_segments_or_four_in_tests() {
    let seven = "wal.capacity_bytes=448MiB";
    assert_eq!(
        refusal("", &[], &[seven]),
        "--set: wal.capacity_bytes = 448MiB is not valid: allowed is at least 512MiB: 8 × \
         wal.segment_bytes = 64MiB"
    );
    assert!(load("", &[], &["wal.capacity_bytes=512MiB"]).is_ok());
    assert!(load("", &[], &[seven, "test.enabled=true"]).is_ok());
    assert!(load("", &[], &["wal.capacity_bytes=255MiB", "test.enabled=true"]).is_err());
}

#[test]
fn blocks_and_batches_fit_into_a_quarter_of_a_segment() {
    let small = ["test.enabled=true", "wal.segment_bytes=1MiB", "wal.block_bytes_max=256KiB"];
    let with = |more: &'static str| [small.as_slice(), &[more]].concat();
    assert!(load("", &[], &with("topics.record_bytes_max=192KiB")).is_ok());
    assert_eq!(
        refusal("", &[], &with("topics.record_bytes_max=193KiB")),
        "--set: topics.record_bytes_max = 193KiB is not valid: allowed is at most 192KiB: with \
         64KiB around it a quarter of wal.segment_bytes = 1MiB"
    );
    assert!(refusal("", &[], &small[..2]).starts_with("default: wal.block_bytes_max = 1MiB "));
}

#[test]
fn buffers_hold_four_blocks_or_batches() {
    assert!(load("", &[], &["wal.buffer_bytes=4352KiB"]).is_ok());
    let text = refusal("", &[], &["wal.buffer_bytes=4MiB"]);
    assert!(text.contains("allowed is at least 4352KiB"), "{text}");
}

#[test]
fn a_connection_may_send_what_one_stream_may() {
    let text = refusal("", &[], &["network.stream_window_bytes=8MiB"]);
    assert_eq!(
        text,
        "default: network.connection_window_bytes = 4MiB is not valid: allowed is at least \
         network.stream_window_bytes = 8MiB"
    );
}

#[test]
fn a_broker_that_listens_everywhere_says_where_it_is_reached() {
    assert_eq!(
        refusal("", &[], &["broker.listen=0.0.0.0"]),
        "default: broker.advertised_host = \"\" is not valid: allowed is a host that clients reach: \
         broker.listen = 0.0.0.0 is none"
    );
    let sets = ["broker.listen=::", "broker.advertised_host=mq.example.org"];
    assert_eq!(load("", &[], &sets).unwrap().advertised_host(), "mq.example.org");
}

#[test]
fn every_bound_fits_the_type_of_its_option() {
    for option in options::all() {
        let Kind::Number(number) = option.kind else {
            continue;
        };
        for bound in [number.min, number.max - number.max % number.multiple_of] {
            let mut settings = Settings::defaults();
            let raw = Raw::Integer(i64::try_from(bound).unwrap());
            settings.set(option.section, option.key, raw, Origin::Set).unwrap();
            BrokerConfig::from_values(settings.settings.iter().map(|setting| &setting.value));
        }
    }
}

#[test]
fn variables_and_names_are_unambiguous() {
    let mut variables: Vec<_> = options::all().map(OptionSpec::variable).collect();
    assert!(SECTIONS.iter().all(|section| !section.name.contains('_')));
    assert!(variables.iter().all(|name| !CLIENT_VARIABLES.contains(&name.as_str())));
    variables.sort();
    variables.dedup();
    assert_eq!(variables.len(), options::all().count());
}

#[test]
fn one_core_is_left_to_the_control_plane() {
    let config = BrokerConfig::load(None, iter::empty(), &[]).unwrap();
    let counts = [0, 1, 2, 8, 500].map(|cores| config.shard_count(cores));
    assert_eq!(counts, [1, 1, 1, 7, 64]);
    let config = load("", &[], &["broker.shards=3"]).unwrap();
    assert_eq!(config.shard_count(2), 3);
}
