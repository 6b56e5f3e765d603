//! The broker process: it composes what the other crates do, and decides nothing about records.
//!
//! ```text
//!   configuration → data directory → certificates, keys → sockets → shard threads → control thread
//! ```
//!
//! The main thread becomes the control thread, under tokio on one core; each shard has a thread of
//! its own and never meets tokio. Nothing here needs a clean end: a broker that is killed finds
//! everything it acknowledged at the next start.

mod files;

mod logging;

mod certificates;
mod identity;
mod tls;

mod backend;
mod cores;
mod flush_plan;
mod polling;
mod sockets;

mod shards;

mod control;

mod admin;

mod screen;

use std::io::Write;
use std::iter::zip;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use rustmq_config::BrokerConfig;
use rustmq_protocol::{BrokerId, ShardId};
use rustmq_server::mesh::{self, MeshPort};
use rustmq_server::{Node, ShardSetup};
use rustmq_sys::cpu;
use rustmq_sys::lock::DirLock;
use rustmq_sys::runtime::{self, RuntimeConfig};
use tracing::{info, warn};

use crate::cli::dev::DevArgs;
use admin::Admin;
use control::Control;
use cores::CorePlan;
use screen::Screen;
use sockets::{AddressFiles, Bootstrap, Sockets, host_and_port};

/// Submissions of one shard between two turns. Its operations are few and large: more than 256 at
/// once cost one system call more, and nothing else.
const RING_ENTRIES: u32 = 256;

/// Runs a broker until it is told to end or cannot go on.
pub(crate) fn run(args: &DevArgs) -> Result<()> {
    let config = Arc::new(load_config(args)?);
    // Before any thread is pinned: threads inherit what this one may use.
    let cores = cpu::available_cores();
    let _log = logging::start(&config.log)?;

    let data_dir = &config.broker.data_dir;
    lock(data_dir)?;
    let address_files = AddressFiles::cleared(data_dir)?;
    let now = SystemTime::now();
    let host = config.advertised_host();
    let certificates = certificates::load_or_create(&data_dir.join("certs"), &host, now)?;
    let keys = identity::load_or_create(&data_dir.join("node.keys"))?;

    let plan = CorePlan::new(&cores, config.shard_count(cores.len()));
    if let Some(bytes) = cores::host_memory_bytes() {
        cores::check_memory(&config, plan.shard_count(), bytes)?;
    }
    let backend = backend::choose(config.runtime.backend, runtime::probe)?;
    let polling = polling::choose(config.runtime.poll, &plan)?;
    let flush_plan =
        flush_plan::choose(config.wal.flush_plan, &plan, backend.backend, cpu::probe_give_way);
    let sockets = Sockets::bind(&config, plan.shard_count())?;
    if let Bootstrap::FirstShard { why } = &sockets.bootstrap {
        warn!(
            why,
            "the kernel does not share the port of the first contact: shard 0 serves it alone"
        );
    }
    let admin = Admin::bind(config.admin.port)?;

    let address = host_and_port(&host, sockets.bootstrap_port);
    let admin_address = admin.address().to_string();
    let endpoints = sockets.shards.clone();
    let node = Node {
        broker: BrokerId(config.broker.id),
        shard_count: plan.shard_count(),
        advertised_host: host,
        bootstrap_port: sockets.bootstrap_port,
        bootstrap_is_shared: sockets.bootstrap.is_shared(),
        shards: sockets.shards,
        tls: tls::server_config(certificates)?,
        keys,
    };
    let mut ports = mesh::build(plan.shards.len() + 1).context("building the mesh")?;
    let control_port = ports.pop().context("the mesh has a port for the control thread")?;
    let parts = zip(ports, sockets.by_shard);
    let runtime_config = RuntimeConfig {
        backend: backend.backend,
        core: None,
        polling: polling.polling,
        flush_plan: flush_plan.plan,
        flush_delay: match config.test.flush_delay_us {
            0 => None,
            micros => Some(Duration::from_micros(micros)),
        },
        ring_entries: RING_ENTRIES,
    };
    let setups = setups(&config, node, &plan, &runtime_config, parts);

    let screen = Screen {
        config: &config,
        address: &address,
        bootstrap: &sockets.bootstrap,
        shards: &endpoints,
        backend: &backend,
        polling: &polling,
        flush_plan: &flush_plan,
        cores: &plan,
        admin: &admin_address,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("starting the control thread's runtime")?;
    runtime.block_on(async {
        let mut control = Control::new(control_port, shards::start(setups)?)?;
        pin_control(&plan);
        admin.serve(control.handle())?;
        if !control.until_serving().await? {
            info!("told to end before every shard served");
            return Ok(());
        }
        address_files.write(&address, &admin_address)?;
        show(&screen);
        info!(address, admin = admin_address, runtime = %backend.backend, "serving");
        control.until_signalled().await.with_context(|| ended_on(data_dir))?;
        info!("draining");
        control.drain().await?;
        address_files.remove()?;
        info!("ended");
        Ok(())
    })
}

/// Where the files are of a broker that cannot go on: a failing disk is named with its folder.
fn ended_on(data_dir: &Path) -> String {
    let storage = rustmq_sys::probe::storage(data_dir);
    match storage.ok().and_then(|storage| Some((storage.file_system, storage.device?.name))) {
        Some((file_system, device)) => format!(
            "the broker ends; its data directory {} is on device {device} ({file_system})",
            data_dir.display()
        ),
        None => format!("the broker ends; its data directory is {}", data_dir.display()),
    }
}

fn load_config(args: &DevArgs) -> Result<BrokerConfig> {
    let mut variables = Vec::new();
    for (name, value) in std::env::vars_os() {
        let Some(name) = name.to_str().filter(|name| name.starts_with("RUSTMQ_")) else { continue };
        let value = value.into_string();
        let value =
            value.map_err(|value| anyhow::anyhow!("{name} = {value:?} is no UTF-8 text"))?;
        variables.push((name.to_owned(), value));
    }
    Ok(BrokerConfig::load(args.config.as_deref(), variables.into_iter(), &args.sets())?)
}

/// Takes the data directory for this process, until the process is over.
fn lock(data_dir: &Path) -> Result<()> {
    files::create_private_dir(data_dir)?;
    let lock = DirLock::acquire(data_dir)
        .with_context(|| format!("locking the data directory {}", data_dir.display()))?;
    let Some(lock) = lock else {
        let owner = match DirLock::owner(data_dir) {
            Some(process) => format!("process {process}"),
            None => "another process".to_owned(),
        };
        bail!(
            "the data directory {} is in use by {owner}: stop it, or choose another directory with \
             --data-dir",
            data_dir.display()
        );
    };
    // After one shard's failure the others write until the process is gone. To let go earlier
    // would let the next broker in beside them.
    Box::leak(Box::new(lock));
    Ok(())
}

fn setups(
    config: &Arc<BrokerConfig>,
    node: Node,
    plan: &CorePlan,
    runtime_config: &RuntimeConfig,
    parts: impl Iterator<Item = (MeshPort, Vec<rustmq_sys::udp::UdpSocket>)>,
) -> Vec<ShardSetup> {
    let node = Arc::new(node);
    let numbered = (0..).map(ShardId).zip(zip(&plan.shards, parts));
    numbered
        .map(|(id, (core, (port, sockets)))| ShardSetup {
            id,
            node: Arc::clone(&node),
            config: Arc::clone(config),
            sockets,
            port,
            runtime: RuntimeConfig { core: *core, ..runtime_config.clone() },
        })
        .collect()
}

/// After the shards were started: a thread starts where its parent may run.
fn pin_control(plan: &CorePlan) {
    if let Some(core) = plan.control
        && let Err(error) = cpu::pin_current(core)
    {
        warn!(core, %error, "the control thread is not pinned");
    }
}

/// Standard output may be closed, and the broker serves all the same.
fn show(screen: &Screen<'_>) {
    let mut stdout = std::io::stdout().lock();
    let _ = write!(stdout, "{screen}").and_then(|()| stdout.flush());
}
