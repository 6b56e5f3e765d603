//! The interface of operators, when some who connect to it do nothing.

use std::io::{Read, Write};
use std::net::TcpStream;

use anyhow::{Context, Result};

use crate::support::broker::{Backend, Node};
use crate::support::machine;
use crate::support::process::wait_until;

/// Connections that are served at once.
const CONNECTIONS_MAX: usize = 64;

/// What a connection says before it falls silent, each a third of all. One has had an answer.
const LAST_WORDS: [&str; 3] =
    ["GET /livez HTTP/1.1\r\nHost: a\r\n\r\n", "GET /livez HTTP/1.1\r\nHost: a\r\n", ""];

#[test]
fn silent_connections_do_not_keep_probes_out() -> Result<()> {
    let _machine = machine::shared();
    let node = Node::new(Backend::Epoll)?;
    let broker = node.start()?;
    let mut silent = Vec::new();
    for index in 0..CONNECTIONS_MAX {
        let words = LAST_WORDS[index * LAST_WORDS.len() / CONNECTIONS_MAX];
        let mut stream = TcpStream::connect(broker.file("admin-address")?)?;
        stream.write_all(words.as_bytes())?;
        if words.ends_with("\r\n\r\n") {
            stream.read_exact(&mut [0])?;
        }
        silent.push(stream);
    }
    for page in ["/livez", "/readyz", "/metrics"] {
        let answered = wait_until(|| Ok(broker.get(page).ok()))?;
        answered.with_context(|| format!("{page} is not answered"))?;
    }
    drop(silent);
    broker.stop()
}
