//! `rustmq wal`: looks at the log of a broker that is stopped, checks it, and saves what is left.
//!
//! The judgements are the `wal` crate's; here files are found, read past the page cache, and
//! written. Nothing is changed but by `salvage`, and by that only what it was told to.
//!
//! In reading order: `files` finds segments; `source` reads them; `catalogue` knows the topics; `inspect` prints
//! a segment; `verify` checks them; `salvage` writes what is whole to new ones.

mod catalogue;
mod files;
mod inspect;
mod salvage;
mod segment;
mod source;
mod verify;

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::cli::output::TextOrJson;

/// Printed at the end of the help of `verify`.
const VERIFY_HELP: &str = "\
Exit codes:
  0  every checksum is right, and nothing is missing
  1  there is damage; each line names the file, the position, partitions and offsets
  2  wrong usage: no such file, not a WAL, or a broker is using it

What each finding means and what to do about it: docs/operations/recovery.md";

#[derive(Args, Debug)]
pub(crate) struct WalArgs {
    #[command(subcommand)]
    command: WalCommand,
}

#[derive(Subcommand, Debug)]
enum WalCommand {
    /// Prints a segment file: its header, blocks, entries, checkpoint and footer
    #[command(after_help = crate::cli::exit::HELP)]
    Inspect(InspectArgs),
    /// Reads segment files whole and checks everything in them; changes nothing
    #[command(after_help = VERIFY_HELP)]
    Verify(VerifyArgs),
    /// Writes what is whole of a damaged log anew, and says what is given up
    #[command(after_help = crate::cli::exit::HELP)]
    Salvage(SalvageArgs),
}

#[derive(Args, Debug)]
struct InspectArgs {
    /// A segment file
    file: PathBuf,
    /// text or json
    #[arg(long, value_enum, default_value = "text")]
    format: TextOrJson,
}

#[derive(Args, Debug)]
struct VerifyArgs {
    /// A segment file, the directory of a WAL, or the data directory of a broker
    path: PathBuf,
    /// text or json
    #[arg(long, value_enum, default_value = "text")]
    format: TextOrJson,
}

#[derive(Args, Debug)]
struct SalvageArgs {
    /// The data directory of a broker that is stopped
    dir: PathBuf,
    /// Where to write a data directory with what is whole; must not exist
    #[arg(long, value_name = "DIR", required_unless_present = "in_place")]
    out: Option<PathBuf>,
    /// Puts the new WALs where the damaged ones are, which are renamed to `….damaged`
    #[arg(long, conflicts_with = "out")]
    in_place: bool,
}

/// Does what was asked.
pub(crate) fn run(args: &WalArgs) -> anyhow::Result<()> {
    match &args.command {
        WalCommand::Inspect(args) => inspect::run(&args.file, args.format),
        WalCommand::Verify(args) => verify::run(&args.path, args.format),
        WalCommand::Salvage(args) => salvage::run(&args.dir, args.out.as_deref()),
    }
}
