//! From default, file, environment and command line to one checked configuration.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use toml::de::{DeTable, DeValue};

use crate::error::{ConfigError, Origin};
use crate::kind::{Raw, Value};
use crate::options::{self, BrokerConfig, OptionSpec, SECTIONS};
use crate::relations;

/// Bytes of a configuration file. 1 MiB: some hundred times the file with every option; a larger
/// one is refused unread.
pub const FILE_BYTES_MAX: u64 = 1 << 20;

/// The beginning of all variables that are ours.
const VARIABLE_PREFIX: &str = "RUSTMQ_";

/// The short variable for `broker.data_dir`, which commands and broker share.
const DATA_DIR_VARIABLE: &str = "RUSTMQ_DATA_DIR";

/// Variables of the command line's clients, which the broker passes over.
const CLIENT_VARIABLES: [&str; 5] =
    ["RUSTMQ_CONNECT", "RUSTMQ_CA", "RUSTMQ_CERT", "RUSTMQ_KEY", "RUSTMQ_MTU_PROFILE"];

impl BrokerConfig {
    /// Reads the file (if there is one), the environment and the texts of `--set`, each over the
    /// ones before, and checks everything.
    pub fn load(
        file: Option<&Path>,
        env: impl Iterator<Item = (String, String)>,
        sets: &[String],
    ) -> Result<BrokerConfig, ConfigError> {
        let mut settings = Settings::defaults();
        if let Some(path) = file {
            settings.take_file(path, &read(path)?)?;
        }
        settings.take_env(env)?;
        for text in sets {
            settings.take_set(text)?;
        }
        settings.finish()
    }
}

/// One option's value so far.
#[derive(Debug)]
struct Setting {
    option: &'static OptionSpec,
    value: Value,
    /// As it was written, for errors.
    text: String,
    origin: Origin,
}

/// Every option's value so far, in the order of the declarations.
#[derive(Debug)]
pub(crate) struct Settings {
    settings: Vec<Setting>,
}

impl Settings {
    fn defaults() -> Self {
        let default = |option: &'static OptionSpec| {
            let raw = Raw::Text(option.default.to_owned());
            Setting {
                option,
                value: option.kind.check(&raw).expect("a test checks every default"),
                text: raw.to_string(),
                origin: Origin::Default,
            }
        };
        Self { settings: options::all().map(default).collect() }
    }

    fn take_file(&mut self, path: &Path, text: &str) -> Result<(), ConfigError> {
        let origin = |position: usize| {
            let before = text.as_bytes().get(..position).unwrap_or_default();
            let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
            Origin::File { path: path.to_owned(), line }
        };
        let table = DeTable::parse(text).map_err(|error| {
            let position = error.span().map_or(0, |span| span.start);
            let line = 1 + text.bytes().take(position).filter(|byte| *byte == b'\n').count();
            ConfigError::Syntax { path: path.to_owned(), line, message: error.message().to_owned() }
        })?;
        for (section, options) in table.get_ref() {
            let origin_of_section = origin(section.span().start);
            let section = section.get_ref();
            if SECTIONS.iter().all(|known| known.name != section) {
                return Err(unknown(origin_of_section, section, ""));
            }
            let Some(options) = options.get_ref().as_table() else {
                return Err(ConfigError::BadValue {
                    origin: origin_of_section,
                    key: section.to_string(),
                    value: raw(options.get_ref()).to_string(),
                    allowed: format!("a section, written [{section}]"),
                });
            };
            for (key, value) in options {
                self.set(section, key.get_ref(), raw(value.get_ref()), origin(key.span().start))?;
            }
        }
        Ok(())
    }

    fn take_env(&mut self, env: impl Iterator<Item = (String, String)>) -> Result<(), ConfigError> {
        // In the order of names: which of two mistakes is reported does not depend on the shell.
        let ours: BTreeMap<String, String> =
            env.filter(|(variable, _)| variable.starts_with(VARIABLE_PREFIX)).collect();
        // First, so that the variable with the full name wins.
        if let Some(value) = ours.get(DATA_DIR_VARIABLE) {
            let origin = Origin::Env { variable: DATA_DIR_VARIABLE.to_owned() };
            self.set("broker", "data_dir", Raw::Text(value.clone()), origin)?;
        }
        for (variable, value) in ours {
            if variable == DATA_DIR_VARIABLE || CLIENT_VARIABLES.contains(&variable.as_str()) {
                continue;
            }
            let name = variable[VARIABLE_PREFIX.len()..].to_lowercase();
            let (section, key) = name.split_once('_').unwrap_or((&name, ""));
            let upper = variable.bytes().all(|byte| !byte.is_ascii_lowercase());
            let origin = Origin::Env { variable: variable.clone() };
            if !upper {
                return Err(unknown(origin, section, key));
            }
            self.set(section, key, Raw::Text(value), origin)?;
        }
        Ok(())
    }

    fn take_set(&mut self, text: &str) -> Result<(), ConfigError> {
        let syntax = || ConfigError::SetSyntax { text: text.to_owned() };
        let (name, value) = text.split_once('=').ok_or_else(syntax)?;
        let (section, key) = name.trim().split_once('.').ok_or_else(syntax)?;
        self.set(section, key, Raw::Text(value.trim().to_owned()), Origin::Set)
    }

    fn set(
        &mut self,
        section: &str,
        key: &str,
        raw: Raw,
        origin: Origin,
    ) -> Result<(), ConfigError> {
        let named =
            |setting: &&mut Setting| setting.option.section == section && setting.option.key == key;
        let Some(setting) = self.settings.iter_mut().find(named) else {
            return Err(unknown(origin, section, key));
        };
        let Some(value) = setting.option.kind.check(&raw) else {
            return Err(ConfigError::BadValue {
                origin,
                key: setting.option.name(),
                value: raw.to_string(),
                allowed: setting.option.kind.to_string(),
            });
        };
        let option = setting.option;
        *setting = Setting { option, value, text: raw.to_string(), origin };
        Ok(())
    }

    fn finish(self) -> Result<BrokerConfig, ConfigError> {
        let config = BrokerConfig::from_values(self.settings.iter().map(|setting| &setting.value));
        let stray = self.settings.iter().find(|setting| {
            setting.option.section == "test"
                && setting.option.key != "enabled"
                && setting.origin != Origin::Default
        });
        if let (false, Some(setting)) = (config.test.enabled, stray) {
            let (origin, key) = (setting.origin.clone(), setting.option.name());
            return Err(ConfigError::TestOnly { origin, key });
        }
        if let Some((key, allowed)) = relations::broken(&config) {
            let setting = self
                .settings
                .iter()
                .find(|setting| setting.option.name() == key)
                .expect("rules name declared options");
            return Err(ConfigError::BadValue {
                origin: setting.origin.clone(),
                key: key.to_owned(),
                value: setting.text.clone(),
                allowed,
            });
        }
        Ok(config)
    }
}

fn read(path: &Path) -> Result<String, ConfigError> {
    let mut text = String::new();
    // One byte more than allowed shows that there is more.
    File::open(path)
        .and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text))
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    if FILE_BYTES_MAX < text.len() as u64 {
        return Err(ConfigError::FileTooLarge { path: path.to_owned(), bytes_max: FILE_BYTES_MAX });
    }
    Ok(text)
}

fn raw(value: &DeValue<'_>) -> Raw {
    match value {
        DeValue::String(text) => Raw::Text(text.to_string()),
        DeValue::Boolean(flag) => Raw::Flag(*flag),
        DeValue::Integer(integer) => {
            let parsed = i64::from_str_radix(integer.as_str(), integer.radix());
            parsed.map_or_else(|_| Raw::Other(integer.as_str().to_owned()), Raw::Integer)
        }
        other => Raw::Other(other.type_str().to_owned()),
    }
}

fn unknown(origin: Origin, section: &str, key: &str) -> ConfigError {
    let known = SECTIONS.iter().find(|known| known.name == section);
    let allowed = match known {
        Some(known) => {
            let keys: Vec<_> = known.options.iter().map(|option| option.key).collect();
            format!("in {section}: {}", keys.join(", "))
        }
        None => {
            let sections: Vec<_> = SECTIONS.iter().map(|section| section.name).collect();
            format!("in the sections {}", sections.join(", "))
        }
    };
    let key = if key.is_empty() { section.to_owned() } else { format!("{section}.{key}") };
    ConfigError::UnknownKey { origin, key, allowed }
}

#[cfg(test)]
mod tests;
