//! Datagrams in, datagrams out: one QUIC endpoint per shard.
//!
//! quinn-proto holds the protocol's state and does no I/O; this file moves bytes between it and the
//! shard's sockets. One turn is: read trains of datagrams, hand each datagram to its connection,
//! let every connection that changed read, answer and send, then work on the requests that came
//! out whole.

mod outlet;
mod strangers;
mod turn;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn_proto::{ConnectionHandle, ServerConfig, VarInt};
use rustmq_sys::clock;
use rustmq_sys::runtime::{self, Class};
use rustmq_sys::udp::{ReceiveBuffers, UdpSocket};

use self::outlet::SendBuffers;
use self::strangers::Waiting;
use crate::admission::Admission;
use crate::connection::Connection;
use crate::connection_id::ShardConnectionIds;
use crate::limits::{GOODBYE_MS, LINGER_MS, LINGER_MS_MAX, RECEIVES_PER_TURN_MAX, WATCHED_AT_ONCE};
use crate::mesh::PassedOn;
use crate::metrics::EndpointCounters;
use crate::notify::Notify;
use crate::session::{self, Request};
use crate::shard::Shard;

/// Application close code: the broker is shutting down; connect again later or elsewhere.
pub const CLOSE_DRAINING: u32 = 1;
/// Application close code: the handshake was good but the peer is not admitted.
pub const CLOSE_NOT_ADMITTED: u32 = 2;
/// Application close code: the handshake took too long.
pub const CLOSE_HANDSHAKE_TIMEOUT: u32 = 3;
/// Application close code: the peer did not get on: half a frame, no Hello, or answers not read.
pub const CLOSE_STALLED: u32 = 4;

/// The QUIC endpoint of a shard.
///
/// Lives on its shard's core. Its tasks: one per socket that reads, one that serves connections with
/// something to send, one for timers, one for sockets that refused. None holds a borrow across an await.
pub(crate) struct Endpoint {
    state: RefCell<State>,
    /// Connections that changed since they were last driven, each at most once.
    dirty: RefCell<VecDeque<ConnectionHandle>>,
    /// Something is dirty, and no driver is running.
    wake_driver: Notify,
    /// The earliest deadline moved forward.
    wake_timer: Notify,
    /// A socket refused a datagram.
    wake_writer: Notify,
    sockets: Vec<UdpSocket>,
    draining: Cell<bool>,
}

/// What the endpoint's limits are; from the configuration.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EndpointLimits {
    pub(crate) connections_max: usize,
    pub(crate) handshake_timeout: Duration,
    pub(crate) handshakes_per_turn: usize,
    pub(crate) receive_buffer_bytes: usize,
    /// What comes to the shared socket and is another shard's is handed to it: every shard has one.
    pub(crate) passes_on: bool,
}

struct State {
    quic: quinn_proto::Endpoint,
    connections: Vec<Option<Box<Connection>>>,
    open: usize,
    /// Tells our connection ids from others.
    ids: ShardConnectionIds,
    admission: Admission,
    /// Handshakes begun since the last turn, and those that wait for a later one.
    begun: usize,
    waiting: VecDeque<Waiting>,
    counters: EndpointCounters,
    timers: BTreeSet<(Instant, usize)>,
    /// Buffers of sent datagrams, for the next ones.
    spare: SendBuffers,
    /// Requests that came out of this turn.
    requests: Vec<Request>,
    limits: EndpointLimits,
}

/// The socket on the port of the first contact; before it, there is only the shard's own.
const SHARED_SOCKET: usize = 1;

/// In place of a connection's number among the timers: strangers that wait may be looked after.
const ADMISSION_TIMER: usize = usize::MAX;

impl Endpoint {
    /// An endpoint on `sockets`, the first of which is the shard's own.
    pub(crate) fn new(
        config: quinn_proto::EndpointConfig,
        server: ServerConfig,
        ids: ShardConnectionIds,
        sockets: Vec<UdpSocket>,
        limits: EndpointLimits,
    ) -> Self {
        let may_discover_mtu = sockets.iter().all(|socket| !socket.may_fragment());
        let server = Some(Arc::new(server));
        let quic = quinn_proto::Endpoint::new(Arc::new(config), server, may_discover_mtu, None);
        Self {
            state: RefCell::new(State {
                quic,
                connections: Vec::new(),
                open: 0,
                ids,
                admission: Admission::new(clock::now()),
                begun: 0,
                waiting: VecDeque::new(),
                counters: EndpointCounters::default(),
                timers: BTreeSet::new(),
                spare: SendBuffers::default(),
                requests: Vec::new(),
                limits,
            }),
            dirty: RefCell::default(),
            wake_driver: Notify::default(),
            wake_timer: Notify::default(),
            wake_writer: Notify::default(),
            sockets,
            draining: Cell::new(false),
        }
    }

    /// Begins to serve: spawns the tasks that drive the endpoint.
    pub(crate) fn start(shard: &Rc<Shard>) {
        let sockets = shard.endpoint.sockets.len();
        if 0 < sockets {
            let bytes = shard.endpoint.state.borrow().limits.receive_buffer_bytes;
            let buffers = Rc::new(RefCell::new(ReceiveBuffers::new(bytes)));
            for index in 0..sockets {
                let reading = receive_loop(Rc::clone(shard), index, Rc::clone(&buffers));
                runtime::spawn(Class::Foreground, reading);
            }
        }
        runtime::spawn(Class::Foreground, drive_loop(Rc::clone(shard)));
        runtime::spawn(Class::Foreground, timer_loop(Rc::clone(shard)));
        runtime::spawn(Class::Foreground, write_loop(Rc::clone(shard)));
    }

    /// A connection has something to say or to read.
    pub(crate) fn mark_dirty(&self, handle: ConnectionHandle) {
        self.dirty.borrow_mut().push_back(handle);
        self.wake_driver.notify();
    }

    /// A datagram for a connection of ours came to another shard's socket on the shared port.
    pub(crate) fn handle_passed_on(&self, passed: PassedOn) {
        let PassedOn { meta, datagram } = passed;
        let mut state = self.state.borrow_mut();
        state.handle_datagram(self, SHARED_SOCKET, clock::now(), &meta, datagram);
        self.wake_driver.notify();
    }

    /// Connections that are open, handshakes included.
    pub(crate) fn connections_open(&self) -> usize {
        self.state.borrow().open
    }

    /// Handshakes that are not over.
    pub(crate) fn handshakes(&self) -> usize {
        self.state.borrow().admission.handshakes()
    }

    /// What became of the endpoint's connections so far.
    pub(crate) fn counters(&self) -> EndpointCounters {
        self.state.borrow().counters
    }

    /// Closes those of the connections from `place` on that do not get on; see [`Connection::stalled`].
    /// Says where to go on: none, when all have been looked at.
    pub(crate) fn close_stalled(&self, shard: &Shard, place: usize, now: Instant) -> Option<usize> {
        let mut state = self.state.borrow_mut();
        let State { connections, counters, .. } = &mut *state;
        let next = place + WATCHED_AT_ONCE;
        for connection in connections.iter_mut().skip(place).take(WATCHED_AT_ONCE).flatten() {
            let Some(stall) = connection.stalled(shard, now) else { continue };
            let peer = connection.quic.remote_address();
            tracing::debug!(%peer, why = stall.reason(), "connection closed");
            counters.count_stall(stall);
            let code = VarInt::from_u32(CLOSE_STALLED);
            connection.quic.close(now, code, Bytes::from_static(stall.reason().as_bytes()));
            connection.end();
            mark(&mut self.dirty.borrow_mut(), connection);
            self.wake_driver.notify();
        }
        (next < connections.len()).then_some(next)
    }

    /// Is every request answered, and every answer with the transport?
    fn is_quiet(&self) -> bool {
        self.state.borrow().connections.iter().flatten().all(|connection| connection.is_quiet())
    }

    /// Lets go of every connection without a word. For the end of the shard's life: nothing drives
    /// the endpoint any more.
    pub(crate) fn forget_all(&self) {
        // Only a panic ends a life in the middle of a turn; then there is nothing to clean up for.
        let Ok(mut state) = self.state.try_borrow_mut() else { return };
        for mut connection in state.connections.iter_mut().filter_map(Option::take) {
            connection.end();
        }
        state.requests.clear();
    }

    /// Takes no new connection, tells every peer goodbye, and keeps the sockets long enough for
    /// them to hear it.
    pub(crate) async fn close(shard: &Rc<Shard>) {
        shard.endpoint.draining.set(true);
        // What is answered must leave before the goodbye, which ends every stream.
        let patience = clock::now() + Duration::from_millis(LINGER_MS_MAX);
        while !shard.endpoint.is_quiet() && clock::now() < patience {
            runtime::sleep(Duration::from_millis(LINGER_MS)).await;
        }
        runtime::sleep(Duration::from_millis(LINGER_MS)).await;
        let now = clock::now();
        {
            let mut state = shard.endpoint.state.borrow_mut();
            for connection in state.connections.iter_mut().flatten() {
                let reason = Bytes::from_static(b"the broker is shutting down");
                connection.quic.close(now, VarInt::from_u32(CLOSE_DRAINING), reason);
                shard.endpoint.dirty.borrow_mut().push_back(connection.handle);
            }
        }
        drive(shard);
        runtime::sleep(Duration::from_millis(GOODBYE_MS)).await;
    }
}

async fn receive_loop(shard: Rc<Shard>, index: usize, buffers: Rc<RefCell<ReceiveBuffers>>) {
    loop {
        let socket = &shard.endpoint.sockets[index];
        socket.readable().await;
        let mut more = true;
        let mut reads = 0;
        while more && reads < RECEIVES_PER_TURN_MAX {
            more = receive(&shard, index, &mut buffers.borrow_mut());
            reads += 1;
            if runtime::need_preempt() {
                break;
            }
        }
        drive(&shard);
        if more {
            runtime::yield_now().await;
        }
    }
}

/// Reads once from a socket. Returns false when nothing was there.
fn receive(shard: &Rc<Shard>, index: usize, buffers: &mut ReceiveBuffers) -> bool {
    let endpoint = &shard.endpoint;
    let mut state = endpoint.state.borrow_mut();
    let passes_on = index == SHARED_SOCKET && state.limits.passes_on;
    let now = clock::refresh();
    let received = endpoint.sockets[index].recv_trains(buffers, |meta, mut train| {
        while !train.is_empty() {
            let bytes = meta.stride.clamp(1, train.len());
            let datagram = train.split_to(bytes);
            if passes_on && let Some(owner) = state.ids.other_owner(&datagram) {
                state.pass_on(shard, owner, meta, datagram);
            } else {
                state.handle_datagram(endpoint, index, now, &meta, datagram);
            }
        }
    });
    match received {
        Ok(count) => 0 < count,
        Err(error) => {
            tracing::warn!(%error, "reading from the UDP socket failed");
            false
        }
    }
}

async fn drive_loop(shard: Rc<Shard>) {
    loop {
        shard.endpoint.wake_driver.notified().await;
        drive(&shard);
        // Those who have more to send are not the only ones.
        runtime::yield_now().await;
    }
}

async fn timer_loop(shard: Rc<Shard>) {
    loop {
        let next = shard.endpoint.state.borrow().timers.first().map(|(deadline, _)| *deadline);
        match next {
            None => shard.endpoint.wake_timer.notified().await,
            Some(deadline) => {
                let earlier = shard.endpoint.wake_timer.notified();
                if crate::notify::before(deadline, earlier).await.is_some() {
                    continue;
                }
            }
        }
        shard.endpoint.state.borrow_mut().fire_timers(&shard.endpoint, clock::now());
        drive(&shard);
    }
}

/// Waits for a socket that refused a datagram, then lets the connections try again.
async fn write_loop(shard: Rc<Shard>) {
    loop {
        shard.endpoint.wake_writer.notified().await;
        for socket in &shard.endpoint.sockets {
            socket.writable().await;
        }
        let handles: Vec<_> = {
            let state = shard.endpoint.state.borrow();
            let open = state.connections.iter().flatten();
            open.filter(|c| c.refused.is_some()).map(|c| c.handle).collect()
        };
        for handle in handles {
            shard.endpoint.mark_dirty(handle);
        }
    }
}

/// Serves every dirty connection, then the requests that came out of them.
fn drive(shard: &Rc<Shard>) {
    let endpoint = &shard.endpoint;
    let mut requests = {
        let mut state = endpoint.state.borrow_mut();
        let now = clock::now();
        state.accept_waiting(endpoint);
        let count = endpoint.dirty.borrow().len();
        for _ in 0..count {
            let Some(handle) = endpoint.dirty.borrow_mut().pop_front() else {
                break;
            };
            state.drive(shard, handle, now);
        }
        std::mem::take(&mut state.requests)
    };
    for request in requests.drain(..) {
        session::dispatch(shard, request);
    }
    endpoint.state.borrow_mut().requests = requests;
}

fn mark(dirty: &mut VecDeque<ConnectionHandle>, connection: &mut Connection) {
    if !connection.dirty {
        connection.dirty = true;
        dirty.push_back(connection.handle);
    }
}
