//! The `rustmq` executable: a broker, and everything that people type at one.
//!
//! - `cli`: reads the command line and does what it says.
//! - `broker`: the process that `rustmq dev` becomes.

mod broker;
mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::run()
}
