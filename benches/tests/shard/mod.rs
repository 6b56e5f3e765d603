//! A real shard in the test's process, whose thread is watched.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType,
};
use rustmq_benches::load::tls;
use rustmq_config::BrokerConfig;
use rustmq_protocol::{BrokerId, ShardEndpoint, ShardId};
use rustmq_server::mesh::{self, MeshPort, Message};
use rustmq_server::{Node, NodeKeys, ShardSetup};
use rustmq_sys::alloc;
use rustmq_sys::runtime::{Backend, FlushPlan, Polling, RuntimeConfig};
use rustmq_sys::udp::UdpSocket;

/// One shard on a thread of its own, and the control end of the mesh.
pub(crate) struct Shard {
    /// Where it is reached.
    pub(crate) address: SocketAddr,
    /// The certificates of its clients.
    pub(crate) certs: PathBuf,
    control: MeshPort,
    thread: thread::JoinHandle<()>,
}

impl Shard {
    /// Starts it in a folder, with these options. What its thread asks of the allocator is counted.
    pub(crate) fn start(dir: &Path, backend: Backend, sets: &[&str]) -> Shard {
        let certs = dir.join("certs");
        std::fs::create_dir(&certs).unwrap();
        create_certificates(&certs);
        let mut sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
        sets.push(format!("broker.data_dir={}", dir.join("data").display()));
        let config = BrokerConfig::load(None, std::iter::empty(), &sets).unwrap();
        std::fs::create_dir(&config.broker.data_dir).unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0".parse().unwrap(), 1 << 20).unwrap();
        let address = socket.local_addr().unwrap();
        let node = Node {
            broker: BrokerId(1),
            shard_count: 1,
            advertised_host: "127.0.0.1".to_owned(),
            bootstrap_port: address.port(),
            bootstrap_is_shared: false,
            shards: vec![ShardEndpoint { shard: ShardId(0), port: address.port() }],
            tls: Arc::new(tls::server_tls(&certs).unwrap()),
            keys: NodeKeys { reset: [1; 64], token: [2; 64], connection_id: 3 },
        };
        let mut ports = mesh::build(2).unwrap();
        let mut control = ports.pop().unwrap();
        let setup = ShardSetup {
            id: ShardId(0),
            node: Arc::new(node),
            config: Arc::new(config),
            sockets: vec![socket],
            port: ports.pop().unwrap(),
            runtime: RuntimeConfig {
                backend,
                core: None,
                polling: Polling::Sleep,
                flush_plan: FlushPlan::WriteFlush,
                flush_delay: None,
                ring_entries: 256,
            },
        };
        let thread = thread::spawn(move || {
            alloc::count_this_thread();
            rustmq_server::run(setup).unwrap();
        });
        while !matches!(receive(&mut control), Some(Message::Serving { .. })) {
            assert!(!thread.is_finished(), "the shard ended before it served");
            control.doorbell.park(Some(Duration::from_millis(100)));
        }
        Shard { address, certs, control, thread }
    }

    /// Ends it, and waits until it has ended.
    pub(crate) fn stop(mut self) {
        let sender = self.control.senders[0].as_mut().unwrap();
        assert!(sender.try_push(Message::Drain).is_ok());
        self.control.bells[0].ring();
        self.thread.join().unwrap();
    }
}

fn receive(control: &mut MeshPort) -> Option<Message> {
    control.receivers[0].as_mut().unwrap().try_pop()
}

/// An authority with a server and a client, in the files that the client reads.
fn create_certificates(folder: &Path) {
    let write = |name: &str, pem: String| std::fs::write(folder.join(name), pem).unwrap();
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority_key = KeyPair::generate().unwrap();
    write("ca.crt", authority.self_signed(&authority_key).unwrap().pem());
    let issuer = Issuer::new(authority, authority_key);
    let leaves = [
        (
            "server",
            SanType::DnsName("localhost".try_into().unwrap()),
            ExtendedKeyUsagePurpose::ServerAuth,
        ),
        (
            "client",
            SanType::URI("rustmq:client/test".try_into().unwrap()),
            ExtendedKeyUsagePurpose::ClientAuth,
        ),
    ];
    for (name, subject, usage) in leaves {
        let mut leaf = CertificateParams::default();
        leaf.subject_alt_names = vec![subject];
        leaf.extended_key_usages = vec![usage];
        let key = KeyPair::generate().unwrap();
        write(&format!("{name}.crt"), leaf.signed_by(&key, &issuer).unwrap().pem());
        write(&format!("{name}.key"), key.serialize_pem());
    }
}
