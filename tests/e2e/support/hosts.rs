//! Two hosts of a test's own: network namespaces with a cable between them, of Ethernet's usual 1,500
//! bytes.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Result, ensure};

use super::machine;

/// The broker's address in the namespace of its own, and its clients' host in the other one.
pub(crate) const BROKER: &str = "10.231.0.1";
const HOST: &str = "10.231.0.2";

/// Addresses that are the client's as well: the broker's host sends there what it has for them.
const BORROWED: &str = "10.232.0.0/16";

/// Two namespaces and the cable between them. Gone when this is dropped.
pub(crate) struct Hosts {
    broker: String,
    client: String,
}

impl Hosts {
    /// Makes them, with names that contain `tag`.
    pub(crate) fn new(tag: &str) -> Result<Hosts> {
        let id = std::process::id();
        let hosts = Hosts {
            broker: format!("rustmq-{tag}-b-{id}"),
            client: format!("rustmq-{tag}-a-{id}"),
        };
        let (b, a) = (hosts.broker.as_str(), hosts.client.as_str());
        for command in [
            format!("netns add {b}"),
            format!("netns add {a}"),
            format!("-n {b} link add wire type veth peer name wire netns {a}"),
            format!("-n {b} address add {BROKER}/24 dev wire"),
            format!("-n {a} address add {HOST}/24 dev wire"),
            format!("-n {b} link set lo up"),
            format!("-n {a} link set lo up"),
            format!("-n {b} link set wire up"),
            format!("-n {a} link set wire up"),
            format!("-n {b} route add {BORROWED} via {HOST}"),
            format!("-n {a} route add local {BORROWED} dev lo"),
        ] {
            ip(&command)?;
        }
        Ok(hosts)
    }

    /// The same command, on the broker's host.
    pub(crate) fn on_broker(&self, command: &Command) -> Command {
        machine::by(&["ip", "netns", "exec", &self.broker], command)
    }

    /// The same command, on the other host.
    pub(crate) fn on_client(&self, command: &Command) -> Command {
        machine::by(&["ip", "netns", "exec", &self.client], command)
    }

    /// Bytes that the client's host has sent and received.
    pub(crate) fn traffic(&self) -> Result<(u64, u64)> {
        let read = |name: &str| -> Result<u64> {
            let path = format!("/sys/class/net/wire/statistics/{name}");
            let mut cat = Command::new("cat");
            cat.arg(path);
            let output = self.on_client(&cat).output()?;
            Ok(String::from_utf8(output.stdout)?.trim().parse()?)
        };
        Ok((read("tx_bytes")?, read("rx_bytes")?))
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for name in [&self.broker, &self.client] {
            // What is left over is found by its name.
            let _ = ip(&format!("netns delete {name}"));
        }
    }
}

fn ip(arguments: &str) -> Result<()> {
    let output = Command::new("ip").args(arguments.split(' ')).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {arguments}: {said}");
    Ok(())
}

/// May namespaces be made here? If not, the test is named.
pub(crate) fn can_make_hosts(test: &str) -> bool {
    // Several tests may ask at once.
    static ASKED: AtomicU32 = AtomicU32::new(0);
    let number = ASKED.fetch_add(1, Ordering::Relaxed);
    let name = format!("rustmq-probe-{number}-{}", std::process::id());
    match ip(&format!("netns add {name}")).and_then(|()| ip(&format!("netns delete {name}"))) {
        Ok(()) => true,
        Err(why) => {
            machine::skip(test, &format!("no network namespaces: {why:#}"));
            false
        }
    }
}
