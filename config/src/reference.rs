//! The file that users copy and the reference page, written from the declarations.

use std::fmt::Write;

use crate::kind::{Kind, Unit};
use crate::options::{OptionSpec, SECTIONS, Scope};

/// How values are set.
const PAGE_HEAD: &str = include_str!("page_head.md");

/// Rules across options, as `relations` has them.
const PAGE_FOOT: &str = include_str!("page_foot.md");

/// Columns of a comment in the file.
const COLUMNS: usize = 100;

/// `config/broker.toml`: every option, commented out, with its default.
pub fn file() -> String {
    let mut out = String::new();
    comment(
        &mut out,
        "Configuration of a RustMQ broker. Every option is here with its default: remove the # of \
         the ones to change. Environment variables (RUSTMQ_<SECTION>_<KEY>) win over this file, and \
         --set section.key=value wins over both. The page docs/operations/configuration.md has the \
         same as tables. Written by `BLESS=1 cargo test -p rustmq-config`.",
    );
    for section in SECTIONS {
        out.push('\n');
        comment(&mut out, &section.sentence());
        line(&mut out, format_args!("[{}]", section.name));
        for option in section.options {
            out.push('\n');
            comment(&mut out, &option.sentence());
            comment(&mut out, &format!("Allowed: {}.", option.kind));
            line(&mut out, format_args!("#{} = {}", option.key, option.kind.toml(option.default)));
        }
    }
    out
}

/// `docs/operations/configuration.md`: the same as tables.
pub fn page() -> String {
    let mut out = PAGE_HEAD.to_owned();
    for section in SECTIONS {
        line(&mut out, format_args!("\n## `[{}]`\n\n{}\n", section.name, section.sentence()));
        line(&mut out, format_args!("| Option | Unit | Default | Allowed | Scope | New value | |"));
        line(&mut out, format_args!("|---|---|---|---|---|---|---|"));
        for option in section.options {
            row(&mut out, option);
        }
    }
    out.push_str(PAGE_FOOT);
    out
}

fn row(out: &mut String, option: &OptionSpec) {
    let unit = match option.kind {
        Kind::Number(number) => match number.unit {
            Unit::Count => "",
            Unit::Bytes => "bytes",
            Unit::Millis => "ms",
            Unit::Micros => "µs",
        },
        Kind::Choice(_) | Kind::Flag | Kind::Text { .. } | Kind::Address => "",
    };
    let scope = match option.scope {
        Scope::Broker => "broker",
        Scope::Cluster => "cluster",
        Scope::TopicDefault => "topic default",
    };
    let taken = if option.reloads { "at once" } else { "at start" };
    let default = option.kind.toml(option.default);
    line(
        out,
        format_args!(
            "| `{}` | {unit} | `{default}` | {} | {scope} | {taken} | {} |",
            option.key,
            option.kind,
            option.sentence()
        ),
    );
}

fn comment(out: &mut String, text: &str) {
    let mut used = COLUMNS;
    for word in text.split_whitespace() {
        let width = word.chars().count() + 1;
        if COLUMNS < used + width {
            if used != COLUMNS {
                out.push('\n');
            }
            out.push('#');
            used = 1;
        }
        out.push(' ');
        out.push_str(word);
        used += width;
    }
    out.push('\n');
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    writeln!(out, "{text}").expect("a String takes every write");
}
