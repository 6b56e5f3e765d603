//! What a person sees when the broker has started.

use std::fmt;

use rustmq_config::{BrokerConfig, FlushPolicy};
use rustmq_protocol::ShardEndpoint;

use super::backend::Choice;
use super::cores::CorePlan;
use super::flush_plan;
use super::polling;
use super::sockets::Bootstrap;

/// One screen: at most 24 lines of it, so that a terminal shows it whole.
pub(super) struct Screen<'a> {
    pub(super) config: &'a BrokerConfig,
    /// Where clients begin.
    pub(super) address: &'a str,
    pub(super) bootstrap: &'a Bootstrap,
    pub(super) shards: &'a [ShardEndpoint],
    pub(super) backend: &'a Choice,
    pub(super) polling: &'a polling::Choice,
    pub(super) flush_plan: &'a flush_plan::Choice,
    pub(super) cores: &'a CorePlan,
    /// Where operators look.
    pub(super) admin: &'a str,
}

impl fmt::Display for Screen<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let data_dir = &self.config.broker.data_dir;
        let shown = std::path::absolute(data_dir).unwrap_or_else(|_| data_dir.clone());
        writeln!(f, "RustMQ {}", env!("CARGO_PKG_VERSION"))?;
        writeln!(f)?;
        writeln!(f, "  data         {}", shown.display())?;
        writeln!(f, "  clients      {} (QUIC, mutual TLS)", self.address)?;
        writeln!(f, "               {}", self.bootstrap)?;
        writeln!(f, "  shards       {}", Ports(self.shards))?;
        writeln!(f, "  runtime      {}: {}", self.backend.backend, self.backend.why)?;
        writeln!(f, "  poll         {}", self.polling)?;
        writeln!(f, "  cores        {}", self.cores)?;
        match self.config.wal.flush {
            FlushPolicy::Always => {
                writeln!(f, "  flush        always: before records are acknowledged")?;
            }
            FlushPolicy::Interval => writeln!(
                f,
                "  flush        every {} ms: a failing host loses what was acknowledged since",
                self.config.wal.flush_interval_ms
            )?,
        }
        writeln!(f, "               {}", self.flush_plan)?;
        writeln!(f, "  admin        http://{}/metrics, /readyz, /livez", self.admin)?;
        writeln!(f, "  certificates {}", shown.join("certs").display())?;
        writeln!(f)?;
        writeln!(f, "Type in another terminal:")?;
        let dir = match data_dir.as_os_str() == "./rustmq-data" {
            true => String::new(),
            false => format!(" --data-dir {}", shell_word(&shown.to_string_lossy())),
        };
        writeln!(f)?;
        writeln!(f, "  rustmq topic create hello --partitions 1{dir}")?;
        writeln!(f, "  echo world | rustmq produce hello{dir}")?;
        writeln!(f, "  rustmq consume hello --from start{dir}")?;
        writeln!(f)?;
        writeln!(f, "ready")
    }
}

/// `9192-9195`, or each port by itself.
struct Ports<'a>(&'a [ShardEndpoint]);

impl fmt::Display for Ports<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let in_a_row =
            self.0.windows(2).all(|pair| pair[0].port.checked_add(1) == Some(pair[1].port));
        let count = self.0.len();
        match self.0 {
            [] => write!(f, "none"),
            [only] => write!(f, "1, on port {}", only.port),
            [first, .., last] if in_a_row => {
                write!(f, "{count}, on ports {}-{}", first.port, last.port)
            }
            _ => {
                write!(f, "{count}, on ports")?;
                self.0.iter().try_for_each(|shard| write!(f, " {}", shard.port))
            }
        }
    }
}

/// Quoted, if a shell would see more in it than a word.
fn shell_word(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+:@%".contains(&byte);
    match text.bytes().all(plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustmq_protocol::ShardId;
    use rustmq_sys::runtime::Backend;

    fn shards(ports: &[u16]) -> Vec<ShardEndpoint> {
        let numbered = (0..).zip(ports);
        numbered.map(|(shard, port)| ShardEndpoint { shard: ShardId(shard), port: *port }).collect()
    }

    #[test]
    fn everything_fits_on_one_screen_and_the_last_line_says_ready() {
        for flush in ["always", "interval"] {
            let sets = [format!("wal.flush={flush}"), "broker.data_dir=/var/a b".to_owned()];
            let config = BrokerConfig::load(None, std::iter::empty(), &sets).unwrap();
            let plan = CorePlan::new(&[0, 1, 2], 2);
            let screen = Screen {
                config: &config,
                address: "127.0.0.1:9092",
                bootstrap: &Bootstrap::Steered,
                shards: &shards(&[9192, 9193]),
                backend: &Choice { backend: Backend::Epoll, why: "io_uring is denied".to_owned() },
                polling: &polling::choose(config.runtime.poll, &plan).unwrap(),
                flush_plan: &flush_plan::choose(
                    config.wal.flush_plan,
                    &plan,
                    Backend::Epoll,
                    || Ok(()),
                ),
                cores: &plan,
                admin: "127.0.0.1:9642",
            };
            let text = screen.to_string();
            assert!(text.lines().count() <= 24, "{text}");
            assert_eq!(text.lines().last(), Some("ready"));
            for part in [
                env!("CARGO_PKG_VERSION"),
                "127.0.0.1:9092",
                "served by every shard",
                "2, on ports 9192-9193",
                "epoll: io_uring is denied",
                "write_through: the way of epoll",
                "http://127.0.0.1:9642/metrics",
                "rustmq produce hello --data-dir '/var/a b'",
            ] {
                assert!(text.contains(part), "{part} is missing in\n{text}");
            }
        }
    }

    #[test]
    fn ports_in_a_row_are_drawn_together() {
        assert_eq!(Ports(&shards(&[9192])).to_string(), "1, on port 9192");
        assert_eq!(Ports(&shards(&[5, 6, 7])).to_string(), "3, on ports 5-7");
        assert_eq!(Ports(&shards(&[5, 6, 9])).to_string(), "3, on ports 5 6 9");
    }
}
