//! UDP sockets and the buffers that they are read into.

use std::net::SocketAddr;

use rustmq_sys::doorbell::Doorbell;
use rustmq_sys::runtime::{self, Class, spawn};
use rustmq_sys::udp::{DatagramMeta, ReceiveBuffers, Transmit, UdpSocket};

use super::{backends, config, on_each};

#[test]
fn datagrams_go_around_in_trains() {
    on_each(async || {
        let localhost = "127.0.0.1:0".parse().expect("an address");
        let server = UdpSocket::bind(localhost, 1 << 20).expect("bound");
        let client = UdpSocket::bind(localhost, 1 << 20).expect("bound");
        let address = server.local_addr().expect("has one");
        assert!(server.buffer_bytes().expect("known").0 > 0);
        spawn(Class::Foreground, async move {
            let mut buffers = ReceiveBuffers::new(4 << 20);
            loop {
                server.readable().await;
                let mut echoes = Vec::new();
                while server.recv_trains(&mut buffers, |m, b| echoes.push((m, b))).expect("works")
                    > 0
                {}
                for (meta, train) in echoes {
                    send(&server, meta.remote, &train, meta.stride).await;
                }
            }
        });
        let mut buffers = ReceiveBuffers::new(256 << 10);
        for (segments, length) in [(1, 1200), (10, 1200), (3, 100), (1, 0), (40, 1200)] {
            let segments = segments.min(client.max_gso_segments());
            let contents: Vec<u8> = (0..segments * length).map(|index| (index / 7) as u8).collect();
            send(&client, address, &contents, length).await;
            let mut received: Vec<u8> = Vec::new();
            let mut trains = 0;
            while received.len() < contents.len() || trains == 0 {
                client.readable().await;
                client
                    .recv_trains(&mut buffers, |meta: DatagramMeta, train| {
                        assert_eq!((meta.remote, meta.len), (address, train.len()));
                        assert!(meta.stride <= length.max(1) && meta.stride > 0);
                        assert_eq!(meta.local_ip, Some(address.ip()));
                        received.extend_from_slice(&train);
                        trains += 1;
                    })
                    .expect("works");
            }
            assert_eq!(received, contents);
            assert!(trains <= segments.max(1));
        }
    });
}

pub(crate) async fn send(
    socket: &UdpSocket,
    destination: SocketAddr,
    contents: &[u8],
    size: usize,
) {
    let segment_size = (contents.len() > size).then_some(size);
    let transmit = Transmit { destination, ecn: 2, contents, segment_size, src_ip: None };
    while !socket.try_send(&transmit).expect("works") {
        socket.writable().await;
    }
}

#[test]
fn receive_buffers_keep_to_their_budget_and_come_back() {
    on_each(async || {
        let localhost = "127.0.0.1:0".parse().expect("an address");
        let server = UdpSocket::bind(localhost, 4 << 20).expect("bound");
        let client = UdpSocket::bind(localhost, 4 << 20).expect("bound");
        let address = server.local_addr().expect("has one");
        let mut buffers = ReceiveBuffers::new(4 * 64 * 1024);
        for _ in 0..5 {
            let mut kept = Vec::new();
            for fill in 0..12u8 {
                send(&client, address, &[fill; 3000], 3000).await;
                while kept.len() <= usize::from(fill) {
                    server.readable().await;
                    server.recv_trains(&mut buffers, |_, train| kept.push(train)).expect("works");
                }
            }
            assert!(buffers.handed_out_bytes() < 4 * 64 * 1024);
            for (fill, train) in kept.iter().enumerate() {
                assert!(train.len() == 3000 && train.iter().all(|byte| usize::from(*byte) == fill));
            }
        }
    });
}

#[test]
fn a_byte_kept_of_each_train_costs_no_more_than_its_datagram() {
    const BUFFERS: usize = 3;
    on_each(async || {
        let localhost = "127.0.0.1:0".parse().expect("an address");
        let server = UdpSocket::bind(localhost, 4 << 20).expect("bound");
        let client = UdpSocket::bind(localhost, 4 << 20).expect("bound");
        let address = server.local_addr().expect("has one");
        let mut buffers = ReceiveBuffers::new(BUFFERS * 64 * 1024);
        let (mut in_buffers, mut copies, mut received) = (Vec::new(), Vec::new(), 0);
        for round in 1..=20 {
            send(&client, address, &[7; 40 * 1200], 1200).await;
            while received < round * 40 * 1200 {
                server.readable().await;
                server
                    .recv_trains(&mut buffers, |meta, mut train| {
                        assert_eq!(train.len(), meta.len);
                        received += meta.len;
                        let kept = match meta.len {
                            0..=1200 => &mut copies,
                            _ => &mut in_buffers,
                        };
                        kept.push(train.split_to(1));
                    })
                    .expect("works");
            }
        }
        assert!(in_buffers.len() < BUFFERS, "{} trains are pinned", in_buffers.len());
        let pinned: usize = copies.iter().map(|kept| kept.capacity()).sum();
        assert!(pinned <= 20 * 40 * 1200, "{pinned} bytes are pinned by copies");
        assert!(18 * 40 <= copies.len(), "{} copies", copies.len());
    });
}

#[test]
fn a_lost_datagram_counts_as_sent() {
    on_each(async || {
        let socket = UdpSocket::bind("127.0.0.1:0".parse().expect("an address"), 1 << 20);
        let socket = socket.expect("bound");
        send(&socket, "127.0.0.1:9".parse().expect("an address"), &[0; 65_507], 65_507).await;
        // Too long, and not reachable from this address.
        send(&socket, "127.0.0.1:9".parse().expect("an address"), &vec![0; 70_000], 70_000).await;
        send(&socket, "192.0.2.1:9".parse().expect("an address"), b"x", 1).await;
    });
}

#[test]
fn a_socket_that_waits_for_room_is_told() {
    on_each(async || {
        let localhost = "127.0.0.1:0".parse().expect("an address");
        let (receiver, sender) =
            (UdpSocket::bind(localhost, 4096).expect("bound"), UdpSocket::bind(localhost, 4096));
        let (sender, address) = (sender.expect("bound"), receiver.local_addr().expect("has one"));
        for _ in 0..2000 {
            send(&sender, address, &[1; 1200], 1200).await;
        }
        sender.writable().await;
    });
}

#[test]
fn one_socket_serves_one_runtime_after_the_other() {
    let socket = UdpSocket::bind("127.0.0.1:0".parse().expect("an address"), 1 << 20);
    let socket = socket.expect("bound");
    let address = socket.local_addr().expect("has one");
    let mut buffers = ReceiveBuffers::new(1 << 20);
    assert_eq!(socket.recv_trains(&mut buffers, |_, _| ()).expect("works outside, too"), 0);
    for backend in backends() {
        for _ in 0..2 {
            let doorbell = Doorbell::new().expect("an eventfd");
            runtime::run(config(backend), doorbell, async {
                send(&socket, address, b"hello", 5).await;
                let mut received = 0;
                while received == 0 {
                    socket.readable().await;
                    received = socket.recv_trains(&mut buffers, |_, _| ()).expect("works");
                }
            })
            .expect("the runtime starts");
        }
    }
}
