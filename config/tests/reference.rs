//! The generated file and page are up to date; `BLESS=1` rewrites them.

use std::path::{Path, PathBuf};
use std::{env, fs, iter};

use rustmq_config::{BrokerConfig, reference};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn is_up_to_date(path: &str, expected: &str) {
    let path = repository().join(path);
    let folder = path.parent().expect("a file is in a folder");
    if env::var_os("BLESS").is_some() {
        fs::create_dir_all(folder).expect("the repository can be written");
        fs::write(&path, expected).expect("the repository can be written");
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    assert!(found == expected, "{} is out of date: run with BLESS=1", path.display());
}

#[test]
fn the_file_has_every_option_with_its_default() {
    is_up_to_date("config/broker.toml", &reference::file());
}

#[test]
fn the_page_has_every_option() {
    is_up_to_date("docs/operations/configuration.md", &reference::page());
}

#[test]
fn the_file_with_every_option_uncommented_is_the_default() {
    let uncommented: String = reference::file()
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(option) if !option.starts_with(' ') => format!("{option}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    // The options for tests are there, so it has to be one.
    let uncommented = uncommented.replace("enabled = false", "enabled = true");
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), uncommented).unwrap();
    let mut config = BrokerConfig::load(Some(file.path()), iter::empty(), &[]).unwrap();
    config.test.enabled = false;
    assert_eq!(config, BrokerConfig::load(None, iter::empty(), &[]).unwrap());
}
