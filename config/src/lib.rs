//! Every option of the broker, declared once and checked once.
//!
//! This crate decides which options there are, what each may be, and which source wins: built-in
//! default, then file, then environment (`RUSTMQ_<SECTION>_<KEY>`), then `--set section.key=value`.
//! What comes out is a [`BrokerConfig`] of plain values; no code after that validates, or knows
//! about files and environment. The file that users copy (`config/broker.toml`) and the reference
//! page are written from the same declarations.
//!
//! It reads the file that it is given and nothing else: the environment arrives as pairs. It
//! starts no thread and keeps nothing. It runs once, in `main`, before any core is pinned.
//!
//! Modules in reading order: [`options`] (the declarations), [`kind`] (what an option may be),
//! [`choice`] (options with named values), [`load`] (from sources to a checked configuration),
//! `relations` (rules across options), [`error`], [`mod@reference`]
//! (the generated file and page).

pub mod options;

pub mod kind;

pub mod choice;

pub mod load;

mod relations;

pub mod error;

pub mod reference;

pub use choice::{
    FlushPlan, FlushPolicy, LogFormat, LogLevel, MtuProfile, Poll, RuntimeBackend, WhenFull,
};
pub use error::{ConfigError, Origin};
pub use options::{
    Admin, Broker, BrokerConfig, Cache, Log, Network, OptionSpec, Producers, Runtime, Scope,
    SectionSpec, Test, Topics, Wal,
};
