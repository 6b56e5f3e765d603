//! Sockets that share one address, and the program by which the kernel chooses among them.
//!
//! ```text
//!   QUIC, short header   | 0....... | id (no length: the receiver knows it) | ...
//!   QUIC, long header    | 1....... | version (4) | id length | id | ...
//!
//!   the id is of our length -> socket (first byte of the id) modulo (number of sockets)
//!   any other               -> a hash of the addresses, which the kernel takes without a program
//! ```
//!
//! These places do not depend on the version (RFC 8999, sections 5.1 and 5.2). A short header cannot be
//! told from noise, and need not: whoever receives it looks again.

use std::io;
use std::os::fd::AsRawFd;

use socket2::SockRef;

use super::{Link, UdpSocket};

/// How the kernel chooses among sockets that share an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Steering {
    /// By a hash of both addresses: a peer whose address changes may reach another socket.
    ByAddress,
    /// By the first byte of QUIC's connection id, modulo the number of sockets, where the id has this
    /// many bytes; otherwise by the addresses.
    ByConnectionId {
        /// The length of every id that was given out.
        id_bytes: u8,
    },
}

impl UdpSocket {
    /// Binds `others` further sockets to this one's address. The kernel knows this one as the first
    /// and the others in the order in which they are returned. It looks once for each train that a
    /// device or peer has put together, whatever is in it, so a socket may still get what `steering`
    /// would have given to another. None of them may be closed alone: the last would take its place.
    ///
    /// A socket made by [`bind`](Self::bind) is never among them, of whatever program: this one took the
    /// address for itself, which fails if anybody has it, and opened it only then. What could join is a
    /// socket of the same user's that asks to share at its own bind.
    ///
    /// # Errors
    /// The kernel refuses to share or to steer. This socket then is as it was, alone.
    ///
    /// # Panics
    /// If there are more sockets than a byte tells apart.
    pub fn share(
        &self,
        others: usize,
        steering: Steering,
        buffer_bytes: usize,
    ) -> io::Result<Vec<Self>> {
        assert!(others < 256, "a byte of the id chooses among {others} and one sockets");
        let socket = match &self.link {
            Link::Kernel(socket, _) => SockRef::from(socket),
            #[cfg(feature = "sim")]
            Link::Modelled(_) => return Err(io::ErrorKind::Unsupported.into()),
        };
        if others == 0 {
            return Ok(Vec::new());
        }
        let address = self.local_addr()?;
        let shared = || {
            socket.set_reuse_port(true)?;
            let bind = |_| Self::bind_as(address, buffer_bytes, true);
            let others = (0..others).map(bind).collect::<io::Result<Vec<_>>>()?;
            if let Steering::ByConnectionId { id_bytes } = steering {
                attach(&socket, &program(id_bytes, others.len() as u32 + 1))?;
            }
            Ok(others)
        };
        shared().inspect_err(|_| {
            // Whoever allows no sharing need not be told to stop.
            let _ = socket.set_reuse_port(false);
        })
    }
}

/// Loads the byte at an offset of the datagram. Behind its end the kernel ends the program, and the
/// datagram goes to the first socket.
const LOAD: u32 = libc::BPF_LD | libc::BPF_B | libc::BPF_ABS;
const JUMP: u32 = libc::BPF_JMP | libc::BPF_JA;
const JUMP_IF_BITS: u32 = libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K;
const JUMP_IF_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const MODULO: u32 = libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
const RETURN_LOADED: u32 = libc::BPF_RET | libc::BPF_A;

/// The bit of the first byte that tells a long header.
const LONG_HEADER: u32 = 0x80;

/// No socket has this index, so the kernel goes by the addresses.
const BY_ADDRESS: u32 = u32::MAX;

/// The program that returns the index of a datagram's socket. Jumps count from the next instruction.
fn program(id_bytes: u8, sockets: u32) -> [libc::sock_filter; 10] {
    let step = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let branch = |code: u32, k: u32, jt: u8, jf: u8| {
        let code = code as u16;
        libc::sock_filter { code, jt, jf, k }
    };
    [
        step(LOAD, 0),
        branch(JUMP_IF_BITS, LONG_HEADER, 0, 4),
        // Long.
        step(LOAD, 5),
        branch(JUMP_IF_EQUAL, u32::from(id_bytes), 0, 5),
        step(LOAD, 6),
        step(JUMP, 1),
        // Short.
        step(LOAD, 1),
        // Both.
        step(MODULO, sockets),
        step(RETURN_LOADED, 0),
        // An id of another length.
        step(RETURN, BY_ADDRESS),
    ]
}

/// Gives a program to all sockets that share this one's address.
fn attach(socket: &SockRef<'_>, program: &[libc::sock_filter]) -> io::Result<()> {
    let program =
        libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
    // SAFETY: reads the structure and as many instructions behind its pointer as it says, all of
    // which are borrowed here; the kernel copies them and writes nothing.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const program).cast(),
            size_of_val(&program) as libc::socklen_t,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, UdpSocket as PlainSocket};
    use std::sync::Barrier;
    use std::thread::{self, sleep};
    use std::time::{Duration, Instant};

    use super::*;
    use crate::udp::ReceiveBuffers;

    const BUFFER_BYTES: usize = 1 << 20;
    const BY_ID: Steering = Steering::ByConnectionId { id_bytes: 8 };

    fn short(id: u8) -> Vec<u8> {
        [&[0x43, id], &[7; 30][..]].concat()
    }

    fn long(id: u8, id_bytes: u8) -> Vec<u8> {
        [&[0xc3, 0, 0, 0, 1, id_bytes, id], &[7; 30][..]].concat()
    }

    fn group(address: &str, count: usize, steering: Steering) -> Vec<UdpSocket> {
        let first = UdpSocket::bind(address.parse().unwrap(), BUFFER_BYTES).unwrap();
        let others = first.share(count - 1, steering, BUFFER_BYTES).unwrap();
        std::iter::once(first).chain(others).collect()
    }

    /// Sends a datagram; the index of the socket that gets it.
    fn reached(sockets: &[UdpSocket], from: &PlainSocket, datagram: &[u8]) -> usize {
        let port = sockets[0].local_addr().unwrap().port();
        // Peers have the address that they send to.
        from.send_to(datagram, (from.local_addr().unwrap().ip(), port)).unwrap();
        let mut buffers = ReceiveBuffers::new(0);
        let begun = Instant::now();
        loop {
            for (index, socket) in sockets.iter().enumerate() {
                let mut found = false;
                let taken = socket.recv_trains(&mut buffers, |_, bytes| {
                    assert_eq!(bytes, datagram);
                    found = true;
                });
                taken.unwrap();
                if found {
                    return index;
                }
            }
            assert!(begun.elapsed() < Duration::from_secs(30), "no socket got it");
            sleep(Duration::from_millis(1));
        }
    }

    fn peers(address: &str) -> Vec<PlainSocket> {
        (0..8).map(|_| PlainSocket::bind(address).unwrap()).collect()
    }

    #[test]
    fn the_first_byte_of_the_id_chooses_the_socket_whatever_the_address() {
        for (count, address, of_peers) in [
            (2, "127.0.0.1:0", "127.0.0.1:0"),
            (64, "0.0.0.0:0", "127.0.0.1:0"),
            (3, "[::]:0", "127.0.0.1:0"),
            (7, "[::]:0", "[::1]:0"),
        ] {
            let sockets = group(address, count, BY_ID);
            let peers = peers(of_peers);
            for id in 0..=255 {
                let peer = &peers[usize::from(id) % peers.len()];
                let owner = usize::from(id) % count;
                assert_eq!(reached(&sockets, peer, &short(id)), owner);
                assert_eq!(reached(&sockets, peer, &long(id, 8)), owner);
            }
        }
    }

    #[test]
    fn an_id_of_another_length_goes_by_the_addresses() {
        let sockets = group("127.0.0.1:0", 3, BY_ID);
        for peer in peers("127.0.0.1:0") {
            let first = reached(&sockets, &peer, &long(0, 20));
            for id in 1..20 {
                assert_eq!(reached(&sockets, &peer, &long(id, 20)), first);
                assert_eq!(reached(&sockets, &peer, &long(id, 0)), first);
            }
        }
    }

    #[test]
    fn without_a_program_the_addresses_choose() {
        let sockets = group("127.0.0.1:0", 3, Steering::ByAddress);
        let mut chosen = Vec::new();
        for peer in (0..64).map(|_| PlainSocket::bind("127.0.0.1:0").unwrap()) {
            let first = reached(&sockets, &peer, &short(0));
            assert_eq!(reached(&sockets, &peer, &short(1)), first);
            chosen.push(first);
        }
        // By chance all 64 are at one socket in one of 10^30 runs.
        assert!(chosen.iter().any(|one| *one != chosen[0]));
    }

    #[test]
    fn what_is_too_short_to_have_an_id_goes_to_the_first() {
        let sockets = group("127.0.0.1:0", 3, BY_ID);
        let peer = PlainSocket::bind("127.0.0.1:0").unwrap();
        assert_eq!(reached(&sockets, &peer, &[0x43]), 0);
        assert_eq!(reached(&sockets, &peer, &[0xc3, 0, 0, 0, 1, 8]), 0);
    }

    #[test]
    fn a_shared_address_is_taken_for_everybody_else() {
        let sockets = group("127.0.0.1:0", 3, BY_ID);
        let address: SocketAddr = sockets[0].local_addr().unwrap();
        assert!(sockets.iter().all(|socket| socket.local_addr().unwrap() == address));
        let error = UdpSocket::bind(address, BUFFER_BYTES).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        let any = SocketAddr::new("0.0.0.0".parse().unwrap(), address.port());
        let error = UdpSocket::bind(any, BUFFER_BYTES).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse, "the unspecified address has it, too");
        drop(sockets);
        UdpSocket::bind(address, BUFFER_BYTES).unwrap();
    }

    #[test]
    fn of_many_who_take_and_share_an_address_at_once_one_has_it() {
        for _ in 0..20 {
            let free = PlainSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            let begin = Barrier::new(8);
            let take = || {
                begin.wait();
                let first = UdpSocket::bind(free, BUFFER_BYTES).ok()?;
                let others = first.share(2, BY_ID, BUFFER_BYTES).unwrap();
                Some((first, others))
            };
            let having = thread::scope(|scope| {
                let takers: Vec<_> = (0..8).map(|_| scope.spawn(take)).collect();
                let ended = takers.into_iter().map(|taker| taker.join().unwrap());
                ended.flatten().collect::<Vec<_>>()
            });
            // None, if another program took it meanwhile.
            assert!(having.len() <= 1, "{} have it", having.len());
        }
    }

    #[test]
    fn who_takes_an_address_to_share_it_finds_it_taken_too() {
        let alone = UdpSocket::bind("127.0.0.1:0".parse().unwrap(), BUFFER_BYTES).unwrap();
        let address = alone.local_addr().unwrap();
        let error = UdpSocket::bind_as(address, BUFFER_BYTES, true).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }
}
