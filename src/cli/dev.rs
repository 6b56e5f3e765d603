//! `rustmq dev`: what the command line says about the broker.

use std::path::PathBuf;

use clap::Args;

/// The whole system in one process, without a configuration file
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct DevArgs {
    /// Directory of everything that the broker stores [default: ./rustmq-data]
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<String>,
    /// UDP port of the first contact; shard i has PORT + 100 + i; 0 means any free ports
    /// [default: 9092]
    #[arg(long)]
    pub(crate) port: Option<u16>,
    /// TCP port of health and metrics; 0 means any free port [default: 9642]
    #[arg(long, value_name = "PORT")]
    pub(crate) admin_port: Option<u16>,
    /// Shards to run, one core each; 0 means one fewer than there are cores [default: 0]
    #[arg(long, value_name = "N")]
    pub(crate) shards: Option<u16>,
    /// How a shard talks to the kernel: auto, uring, epoll, or glommio where the executable was
    /// built with it [default: auto]
    #[arg(long)]
    pub(crate) runtime: Option<String>,
    /// Sets one option; may be repeated, the last one wins
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// Configuration file; environment and command line win over it
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

impl DevArgs {
    /// Everything said on the command line as texts of `--set`, the shorthands first.
    pub(crate) fn sets(&self) -> Vec<String> {
        let shorthands = [
            ("broker.data_dir", self.data_dir.clone()),
            ("broker.port", self.port.map(|port| port.to_string())),
            ("admin.port", self.admin_port.map(|port| port.to_string())),
            ("broker.shards", self.shards.map(|shards| shards.to_string())),
            ("runtime.backend", self.runtime.clone()),
        ];
        let shorthands = shorthands
            .into_iter()
            .filter_map(|(name, value)| value.map(|value| format!("{name}={value}")));
        shorthands.chain(self.set.iter().cloned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shorthands_become_sets_and_a_later_set_wins() {
        let args = DevArgs {
            data_dir: Some("d".to_owned()),
            port: Some(1000),
            admin_port: Some(0),
            shards: Some(2),
            runtime: Some("epoll".to_owned()),
            set: vec!["broker.port=2000".to_owned()],
            config: None,
        };
        let sets = args.sets();
        assert_eq!(sets.len(), 6);
        let config = rustmq_config::BrokerConfig::load(None, std::iter::empty(), &sets).unwrap();
        assert_eq!((config.broker.port, config.admin.port, config.broker.shards), (2000, 0, 2));
        assert_eq!(DevArgs::default().sets(), Vec::<String>::new());
    }
}
