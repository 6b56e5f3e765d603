//! A client on another host: it has the broker's address and three files, and no data directory.

use std::fs;

use anyhow::{Result, ensure};

use crate::support::broker::{Backend, Node};
use crate::support::cli::Cli;
use crate::support::machine;

/// What a client is given of a broker's `certs/`, and the option that takes it.
const FILES: [(&str, &str); 3] =
    [("--ca", "ca.crt"), ("--cert", "client.crt"), ("--key", "client.key")];

#[test]
fn commands_find_a_broker_by_its_address_and_certificates() -> Result<()> {
    let _machine = machine::shared();
    let node = Node::new(Backend::Epoll)?
        .on_a_fixed_port()?
        .set("broker.listen", "0.0.0.0")
        .set("broker.advertised_host", "localhost");
    let broker = node.start()?;
    let elsewhere = machine::scratch_dir("elsewhere-")?;
    let address = broker.address()?;
    let mut options = vec!["--connect".to_owned(), address];
    for (option, name) in FILES {
        let copy = elsewhere.path().join(name);
        fs::copy(node.data_dir().join("certs").join(name), &copy)?;
        options.extend([option.to_owned(), copy.display().to_string()]);
    }
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    // Nothing is found in its data directory, which is not there.
    let cli = Cli::new(&elsewhere.path().join("none"));
    cli.ok(&[&["topic", "create", "far"], options.as_slice()].concat())?;
    let lines = elsewhere.path().join("lines");
    fs::write(&lines, "a\nb\n")?;
    let produce = [&["produce", "far"], options.as_slice()].concat();
    cli.run_on(&produce, &lines)?.ok(&produce)?;
    let read = cli.ok(&[&["consume", "far", "--until-end"], options.as_slice()].concat())?;
    ensure!(read == b"a\nb\n", "{}", String::from_utf8_lossy(&read));
    // Without the files it says what to give.
    let outcome = cli.run(&[&["topic", "list"], &options[..2]].concat())?;
    ensure!(outcome.code == 1, "{outcome:?}");
    ensure!(outcome.stderr.contains("give --ca, --cert and --key"), "{outcome:?}");
    broker.stop()
}
