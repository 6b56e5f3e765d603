//! One QUIC connection: its streams, what it reads and what waits to be sent.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn_proto::{
    ConnectionHandle, Dir, Event, ReadError, ReadableError, StreamEvent, StreamId, Transmit,
    VarInt, WriteError,
};
use rustmq_protocol::limits::FRAME_BYTES_MAX;
use rustmq_sys::alloc::{Tag, within};

use crate::admission::Handshake;
use crate::budget::{Budget, Charge, ClientMemory};
use crate::endpoint::CLOSE_NOT_ADMITTED;
use crate::frames::Assembler;
use crate::limits::{
    ASSEMBLING_BYTES_MAX, CONNECTION_WINDOW_BYTES_MIN, PROGRESS_BYTES, SMALL_FRAME_BYTES,
    STALL_PRESSED_MS, TRANSMITS_PER_TURN_MAX, UDP_PAYLOAD_BYTES_MAX,
};
use crate::mtu::Datagrams;
use crate::reply::{self, Reply};
use crate::session::{Request, Session};
use crate::shard::Shard;
use crate::subscribe;

/// Where a connection's datagrams go.
pub(crate) trait Outlet {
    /// An empty buffer to build a train of datagrams in.
    fn buffer(&mut self) -> Vec<u8>;
    /// Sends a train; false when it has to wait.
    fn send(&mut self, transmit: &Transmit, buffer: &[u8]) -> bool;
    /// Takes a buffer back.
    fn recycle(&mut self, buffer: Vec<u8>);
}

/// A connection and the session on it.
///
/// Invariants: a stream is in `readable` at most once; while `refused` holds a train nothing else
/// is built, so trains leave in order.
pub(crate) struct Connection {
    pub(crate) handle: ConnectionHandle,
    pub(crate) quic: quinn_proto::Connection,
    /// The socket on which the peer last spoke; answers leave there.
    pub(crate) socket: usize,
    pub(crate) dirty: bool,
    pub(crate) deadline: Option<Instant>,
    pub(crate) handshake_deadline: Instant,
    /// Its place among the endpoint's handshakes.
    pub(crate) handshake: Option<Handshake>,
    /// A train that the socket refused.
    pub(crate) refused: Option<(Transmit, Vec<u8>)>,
    session: Option<Rc<Session>>,
    streams: BTreeMap<StreamId, Stream>,
    /// Streams with bytes that have not been read.
    readable: VecDeque<StreamId>,
    /// Bytes gathered in unfinished frames, over all streams; charged as requests from the first on.
    assembling_bytes: usize,
    assembling: Option<Charge>,
    /// It waits for memory to go on with a frame.
    starved: bool,
    /// Credit beyond what every connection has, and the bytes read since it last grew.
    window: Option<Charge>,
    read_bytes: u64,
    /// It has had an answer, to its Hello.
    greeted: bool,
    /// Since it was last asked, it sent or was sent something after its Hello.
    worked: bool,
}

/// Why a connection is closed although its peer is alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stall {
    /// It was let in and did not say Hello.
    NoHello,
    /// It began a frame and does not finish it.
    HalfFrame,
    /// It does not take its answers.
    Unread,
}

impl Stall {
    /// What the peer is told.
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::NoHello => "no Hello came in the time allowed for the handshake",
            Self::HalfFrame => "a request was begun and not finished in time",
            Self::Unread => "answers were not read in time",
        }
    }
}

#[derive(Default)]
struct Stream {
    incoming: Assembler,
    outgoing: VecDeque<Reply>,
    readable: bool,
    /// Since when the unfinished frame has not got on, and how much of it there was then.
    waits_since: Option<(Instant, usize)>,
    /// Requests of this stream that are not answered.
    unanswered: usize,
    /// The peer sent its last byte, or what it sent cannot be read any more.
    ended: bool,
    /// Our side has ended, too.
    finished: bool,
}

impl Connection {
    /// A connection whose handshake has begun and must end by `handshake_deadline`.
    pub(crate) fn new(
        handle: ConnectionHandle,
        quic: quinn_proto::Connection,
        socket: usize,
        handshake: Handshake,
        handshake_deadline: Instant,
    ) -> Self {
        Self {
            handle,
            quic,
            socket,
            dirty: false,
            deadline: None,
            handshake_deadline,
            handshake: Some(handshake),
            refused: None,
            session: None,
            streams: BTreeMap::new(),
            readable: VecDeque::new(),
            assembling_bytes: 0,
            assembling: None,
            starved: false,
            window: None,
            read_bytes: 0,
            greeted: false,
            worked: false,
        }
    }

    /// Did it bring work since this was last asked? Signs of life do not count, nor does the Hello: when
    /// many clients come at once, those who are in would keep the others out.
    pub(crate) fn take_worked(&mut self) -> bool {
        std::mem::take(&mut self.worked)
    }

    /// Why this connection should be closed, if it does not get on. Where the shard itself does not
    /// read on, the peer is not to blame.
    pub(crate) fn stalled(&self, shard: &Shard, now: Instant) -> Option<Stall> {
        let session = self.session.as_ref()?;
        let network = &shard.config.network;
        let handshake = Duration::from_millis(network.handshake_timeout_ms);
        if session.version().is_none() && session.admitted_at() + handshake < now {
            return Some(Stall::NoHello);
        }
        let patience = |budget: &Budget| match budget.is_pressed() {
            true => Duration::from_millis(STALL_PRESSED_MS.min(network.stall_timeout_ms)),
            false => Duration::from_millis(network.stall_timeout_ms),
        };
        let waits = self.streams.values().filter_map(|stream| stream.waits_since).min();
        if self.readable.is_empty()
            && waits.is_some_and(|(since, _)| since + patience(&shard.memory.requests) < now)
        {
            return Some(Stall::HalfFrame);
        }
        if shard.memory.is_overdue(self.handle, now) {
            return Some(Stall::HalfFrame);
        }
        let unread = session.unread_since()?;
        (unread + patience(&shard.memory.answers) < now).then_some(Stall::Unread)
    }

    /// Takes note of what happened, reads requests and hands answers to their streams.
    pub(crate) fn serve(&mut self, shard: &Rc<Shard>, now: Instant, requests: &mut Vec<Request>) {
        while let Some(event) = within(Tag::Quic, || self.quic.poll()) {
            self.handle_event(shard, now, event);
        }
        let Some(session) = self.session.clone() else {
            return;
        };
        session.driven();
        session.handle_acknowledged(now);
        self.starved = false;
        self.read_streams(shard, &session, now, requests);
        while let Some((stream, reply)) = session.take_reply() {
            self.worked |= std::mem::replace(&mut self.greeted, true);
            match self.streams.get_mut(&stream) {
                Some(state) => state.outgoing.push_back(reply),
                None => {
                    session.handle_sent(reply.len());
                    // A request that was read before its stream was stopped may have begun one since.
                    subscribe::forget_stream(&session, stream);
                }
            }
            self.write_stream(&session, stream);
        }
        while let Some(stream) = session.take_done() {
            if let Some(stream) = self.streams.get_mut(&stream) {
                stream.unanswered -= 1;
            }
        }
        self.finish_ended(&session);
    }

    /// Builds and sends datagrams. Returns true when there may be more to send.
    pub(crate) fn transmit(
        &mut self,
        now: Instant,
        gso_segments_max: usize,
        outlet: &mut impl Outlet,
    ) -> bool {
        if let Some((transmit, buffer)) = self.refused.take() {
            if !outlet.send(&transmit, &buffer) {
                self.refused = Some((transmit, buffer));
                return false;
            }
            outlet.recycle(buffer);
        }
        for _ in 0..TRANSMITS_PER_TURN_MAX {
            let mtu = usize::from(self.quic.current_mtu());
            let segments = gso_segments_max.min(UDP_PAYLOAD_BYTES_MAX / mtu).max(1);
            let mut buffer = outlet.buffer();
            let transmit =
                within(Tag::Quic, || self.quic.poll_transmit(now, segments, &mut buffer));
            let Some(transmit) = transmit else {
                outlet.recycle(buffer);
                return false;
            };
            if !outlet.send(&transmit, &buffer) {
                self.refused = Some((transmit, buffer));
                return false;
            }
            outlet.recycle(buffer);
        }
        true
    }

    /// Is there something left to read that may be read?
    pub(crate) fn wants_turn(&self) -> bool {
        let paused = self.session.as_ref().is_none_or(|session| session.is_paused());
        let full = self.starved || ASSEMBLING_BYTES_MAX <= self.assembling_bytes;
        !self.readable.is_empty() && !paused && !full
    }

    /// Is every request answered, and every answer with the transport?
    pub(crate) fn is_quiet(&self) -> bool {
        self.session
            .as_ref()
            .is_none_or(|session| session.in_flight() == 0 && session.unsent_bytes() == 0)
    }

    /// The connection is gone: answers that are still to come are dropped.
    pub(crate) fn end(&mut self) {
        (self.assembling, self.window) = (None, None);
        self.streams.clear();
        self.readable.clear();
        if let Some(session) = self.session.take() {
            session.finished_frames();
            session.end();
        }
    }

    fn handle_event(&mut self, shard: &Rc<Shard>, now: Instant, event: Event) {
        match event {
            Event::Connected => match Session::admit(shard, self.handle, &self.quic, now) {
                Ok(session) => self.session = Some(session),
                Err(why) => {
                    tracing::warn!(peer = %self.quic.remote_address(), %why, "not admitted");
                    let code = VarInt::from_u32(CLOSE_NOT_ADMITTED);
                    self.quic.close(now, code, Bytes::from(why.into_bytes()));
                }
            },
            Event::ConnectionLost { reason } => {
                let peer = self.quic.remote_address();
                tracing::debug!(%peer, %reason, mtu = self.quic.current_mtu(), "connection ended");
                self.end();
            }
            Event::Stream(StreamEvent::Opened { dir: Dir::Bi }) => {
                while let Some(id) = self.quic.streams().accept(Dir::Bi) {
                    self.streams.insert(id, Stream::default());
                    self.mark_readable(id);
                }
            }
            Event::Stream(StreamEvent::Readable { id }) => self.mark_readable(id),
            Event::Stream(StreamEvent::Writable { id }) => {
                if let Some(session) = self.session.clone() {
                    self.write_stream(&session, id);
                }
            }
            Event::Stream(StreamEvent::Stopped { id, .. }) => self.drop_stream(id),
            Event::Stream(StreamEvent::Finished { id }) => drop(self.forget_stream(id)),
            Event::HandshakeDataReady
            | Event::Stream(StreamEvent::Opened { .. } | StreamEvent::Available { .. })
            | Event::DatagramReceived
            | Event::DatagramsUnblocked => {}
        }
    }

    fn mark_readable(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(&id)
            && !stream.readable
        {
            stream.readable = true;
            self.readable.push_back(id);
        }
    }

    /// Nothing more is read from a stream, nor written to it.
    fn forget_stream(&mut self, id: StreamId) -> Option<Stream> {
        let stream = self.streams.remove(&id)?;
        self.set_assembling(self.assembling_bytes - stream.incoming.len());
        Some(stream)
    }

    /// The peer does not want this stream's answers any more.
    fn drop_stream(&mut self, id: StreamId) {
        let Some(stream) = self.forget_stream(id) else {
            return;
        };
        if let Some(session) = &self.session {
            subscribe::forget_stream(session, id);
        }
        // The peer stopped it: whether it still takes the reset does not matter, nor whether it had
        // ended its side already. Both halves have to end before it may open another stream.
        let _ = self.quic.send_stream(id).reset(VarInt::from_u32(0));
        let _ = self.quic.recv_stream(id).stop(VarInt::from_u32(0));
        if let Some(session) = &self.session {
            for reply in stream.outgoing {
                session.handle_sent(reply.len());
            }
        }
    }

    fn read_streams(
        &mut self,
        shard: &Shard,
        session: &Rc<Session>,
        now: Instant,
        requests: &mut Vec<Request>,
    ) {
        for _ in 0..self.readable.len() {
            if !session.may_read() {
                // Unread bytes hold the peer's credit back; the session wakes us when it is under.
                session.pause();
                return;
            }
            let Some(id) = self.readable.pop_front() else {
                return;
            };
            let Some(stream) = self.streams.get_mut(&id) else {
                continue;
            };
            stream.readable = false;
            if self.read_stream(shard, session, id, now, requests) {
                self.mark_readable(id);
            }
        }
        self.grow_window(shard);
    }

    /// How many bytes of a stream's frame may be gathered now, `held` of them being here.
    fn room(&mut self, memory: &ClientMemory, held: usize, now: Instant) -> usize {
        let largest = self.streams.values().map(|stream| stream.incoming.len()).max();
        // A small frame never waits for memory.
        let share = memory.requests.share().max(SMALL_FRAME_BYTES);
        let room = ASSEMBLING_BYTES_MAX.min(share).saturating_sub(self.assembling_bytes);
        if 0 < room {
            return room;
        }
        let may_finish = ASSEMBLING_BYTES_MAX <= share || memory.may_finish(self.handle, now);
        if may_finish && largest == Some(held) {
            return FRAME_BYTES_MAX.saturating_sub(held).max(1);
        }
        // Its largest frame has to arrive first, or memory has to come free.
        self.starved = true;
        0
    }

    fn set_assembling(&mut self, bytes: usize) {
        self.assembling_bytes = bytes;
        if let Some(charge) = &mut self.assembling {
            charge.set(bytes);
        }
    }

    /// More credit for a peer that uses what it has, as far as there is any to give.
    fn grow_window(&mut self, shard: &Shard) {
        let windows = &shard.memory.windows;
        let granted = self.window.as_ref().map_or(0, Charge::bytes);
        let now = CONNECTION_WINDOW_BYTES_MIN + granted as u64;
        let most = shard.config.network.connection_window_bytes;
        if most <= now || self.read_bytes < now / 2 {
            return;
        }
        let more = usize::try_from(most - now).unwrap_or(usize::MAX).min(windows.share() / 8);
        if more == 0 {
            return;
        }
        self.read_bytes = 0;
        let charge = self.window.get_or_insert_with(|| windows.charge(0));
        charge.set(granted + more);
        let window = VarInt::from_u64(now + more as u64).expect("far below 2^62");
        self.quic.set_receive_window(window);
    }

    /// Reads what one stream may read. Returns true when there is more to read later.
    fn read_stream(
        &mut self,
        shard: &Shard,
        session: &Rc<Session>,
        id: StreamId,
        now: Instant,
        requests: &mut Vec<Request>,
    ) -> bool {
        let held = match self.streams.get(&id) {
            Some(stream) if !stream.finished => stream.incoming.len(),
            _ => return false,
        };
        let room = self.room(&shard.memory, held, now);
        let Some(stream) = self.streams.get_mut(&id) else {
            return false;
        };
        let (mut read, mut more) = (0, true);
        // Without room, or behind the stream's end, what is whole already may still be taken.
        if 0 < room {
            let mut recv = self.quic.recv_stream(id);
            match within(Tag::Quic, || recv.read(true)) {
                Ok(mut chunks) => {
                    while more && read < room {
                        match within(Tag::Quic, || chunks.next(room - read)) {
                            Ok(Some(chunk)) => {
                                read += chunk.bytes.len();
                                stream.incoming.push(chunk.bytes);
                            }
                            Ok(None) | Err(ReadError::Reset(_)) => {
                                stream.ended = true;
                                more = false;
                            }
                            Err(ReadError::Blocked) => more = false,
                        }
                    }
                    // What has to be sent is found by the next poll_transmit, which always follows.
                    let _ = within(Tag::Quic, || chunks.finalize());
                }
                Err(ReadableError::ClosedStream | ReadableError::IllegalOrderedRead) => {
                    more = false;
                }
            }
        }
        let refused = loop {
            if !session.may_read() {
                // What is here already waits for the session's next turn.
                more = true;
                break None;
            }
            match stream.incoming.next_frame() {
                Ok(Some((header, body))) => {
                    stream.waits_since = None;
                    stream.unanswered += 1;
                    requests.push(session.request(id, header, body, now));
                }
                Ok(None) => break None,
                Err(error) => break Some(error),
            }
        };
        let half = stream.ended && !more;
        if half || refused.is_some() {
            // Half a frame of a stream that has ended will never be whole.
            stream.incoming = Assembler::default();
        }
        stream.incoming.settle(Datagrams::of(shard.config.network.mtu_profile).worth_keeping());
        let holds = stream.incoming.len();
        stream.waits_since = match stream.waits_since {
            _ if stream.incoming.is_empty() => None,
            Some((since, before)) if holds < before + PROGRESS_BYTES => Some((since, before)),
            _ => Some((now, holds)),
        };
        if holds == 0 {
            shard.memory.finished(self.handle);
        }
        if self.assembling.is_none() && 0 < holds {
            self.assembling = Some(shard.memory.requests.charge(0));
        }
        self.read_bytes += read as u64;
        self.worked |= 0 < read && self.greeted;
        self.set_assembling(self.assembling_bytes + holds - held);
        let Some(stream) = self.streams.get_mut(&id) else {
            return false;
        };
        if let Some(error) = refused {
            stream.ended = true;
            // The stream's framing is lost: say why, and take nothing more from it.
            let _ = self.quic.recv_stream(id).stop(VarInt::from_u32(0));
            session.send(id, reply::framing_error(&error));
            return false;
        }
        more
    }

    /// Ends our side of the streams that the peer has ended, once everything is answered.
    fn finish_ended(&mut self, session: &Session) {
        for (id, stream) in &mut self.streams {
            if stream.ended && 0 < stream.unanswered {
                // No credit can come any more.
                subscribe::end_stream(session, *id);
            }
            // Whole requests may still wait until they may be taken.
            let taken = !stream.readable;
            let done = taken && stream.unanswered == 0 && stream.outgoing.is_empty();
            if stream.ended && done && !stream.finished {
                stream.finished = true;
                // It fails only when it is finished or stopped already.
                let _ = self.quic.send_stream(*id).finish();
            }
        }
    }

    /// Writes the answers that wait on a stream until it blocks.
    fn write_stream(&mut self, session: &Rc<Session>, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        let mut send = self.quic.send_stream(id);
        while let Some(reply) = stream.outgoing.front_mut() {
            match reply.write(&mut send) {
                Ok(()) => {
                    session.handle_sent(reply.len());
                    stream.outgoing.pop_front();
                }
                Err(WriteError::Blocked) => return,
                Err(WriteError::Stopped(_) | WriteError::ClosedStream) => {
                    self.drop_stream(id);
                    return;
                }
            }
        }
    }
}
