//! Between the guest's packets and the sockets of the host's programs. All of this belongs to
//! the world outside: none of it is in a checkpoint.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, Event, EventFlags};
use rustix::rand::{GetRandomFlags, getrandom};

use super::connection::{Connection, Fate, Key};
use super::greeting::{Greeting, Greetings};
use super::listener::{Listener, SocketPath};
use super::outbox::Outbox;
use super::packet::{HEADER_BYTES, HOST_CID, Header, TYPE_STREAM, op};
use super::token::{NO_PORT, join, own, split};

/// Most connections, of both directions together.
pub(super) const MAX_CONNECTIONS: usize = 256;
/// Most resets that wait for buffers of the guest. A guest that gives none for so many finds
/// out with its next packet.
pub(super) const MAX_RESETS: usize = 256;
/// Programs accepted in one go.
const ACCEPT_BUDGET: usize = 64;
/// Events handled in one go.
const EVENTS: usize = 64;

/// Host ports of connections that programs ask for start here, above those of services.
const FIRST_PORT: u32 = 1 << 30;
/// And there are so many of them.
const PORTS: u32 = 1 << 30;

/// The muxer's own descriptors, by the numbers that events have for them.
const LISTENER: u32 = 0;
const OUTBOX: u32 = 1;
const FIRST_GREETING: u32 = 2;

/// What was refused or dropped since the device's creation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Dropped {
    /// Resets for which the guest had no buffers.
    pub(super) resets: u64,
    /// Connections for which there was no room, or nobody on the host.
    pub(super) refused: u64,
}

pub(super) struct Muxer {
    cid: u64,
    path: SocketPath,
    epoll: OwnedFd,
    outbox: Arc<Outbox>,
    listener: Option<Listener>,
    /// It was said why there is no listener.
    warned: bool,
    greetings: Greetings,
    connections: HashMap<Key, Connection>,
    /// Those with something for the guest, in turn.
    listed: VecDeque<Key>,
    resets: VecDeque<Header>,
    next_port: u32,
    /// The guest's driver is up.
    up: bool,
    /// Resets of the device that are still on their way through the gate: until then, what
    /// there is for the guest is meant for one that is gone.
    resets_awaited: u32,
    dropped: Dropped,
}

impl Muxer {
    pub(super) fn new(cid: u32, path: SocketPath, outbox: Arc<Outbox>) -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, outbox.event(), own(OUTBOX), EventFlags::IN)?;
        // The guest may still know connections of a muxer before this one: other ports.
        let mut random = [0; 4];
        getrandom(&mut random, GetRandomFlags::empty())?;
        Ok(Self {
            cid: cid.into(),
            path,
            epoll,
            outbox,
            listener: None,
            warned: false,
            greetings: Greetings::new(FIRST_GREETING),
            connections: HashMap::new(),
            listed: VecDeque::new(),
            resets: VecDeque::new(),
            next_port: u32::from_le_bytes(random) % PORTS,
            up: false,
            resets_awaited: 0,
            dropped: Dropped::default(),
        })
    }

    /// Readable when [`Self::poll`] has something to do.
    pub(super) fn fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    pub(super) fn dropped(&self) -> Dropped {
        self.dropped
    }

    #[cfg(test)]
    pub(super) fn connections(&self) -> usize {
        self.connections.len()
    }

    /// Bytes that programs have not taken.
    #[cfg(test)]
    pub(super) fn kept(&self) -> u32 {
        self.connections.values().map(Connection::kept).sum()
    }

    /// The guest's driver is up: programs may ask for it.
    pub(super) fn driver_up(&mut self) {
        self.up = true;
        if self.listener.is_some() {
            return;
        }
        match Listener::bind(&self.path) {
            Ok(listener) => {
                let flags = EventFlags::IN | EventFlags::ET;
                match epoll::add(&self.epoll, listener.socket(), own(LISTENER), flags) {
                    Ok(()) => self.listener = Some(listener),
                    Err(error) => tracing::warn!(%error, "the vsock socket can't be watched"),
                }
                self.warned = false;
            }
            // Once: a guest can start its driver as often as it likes.
            Err(error) if !self.warned => {
                self.warned = true;
                tracing::warn!(%error, "programs of the host can't reach the guest");
            }
            Err(_) => {}
        }
    }

    /// The guest has reset the device.
    pub(super) fn driver_down(&mut self) {
        self.up = false;
    }

    /// One more reset comes through the gate: nothing is for the guest until then.
    pub(super) fn await_reset(&mut self) {
        self.resets_awaited = self.resets_awaited.saturating_add(1);
    }

    /// Forgets everything, as before the driver first came up.
    pub(super) fn clear(&mut self) {
        self.up = false;
        self.resets_awaited = 0;
        self.outbox.take();
        self.drop_connections();
    }

    fn drop_connections(&mut self) {
        if self.up {
            // What the guest has not heard of yet is for the driver that is up now.
            self.connections.retain(|_, one| one.is_new());
        } else {
            self.connections.clear();
            self.greetings.clear();
            self.listener = None;
        }
        let kept = &self.connections;
        self.listed.retain(|key| kept.contains_key(key));
        self.resets.clear();
    }

    /// Handles what has happened on the host's side, and what the gate has let go.
    pub(super) fn poll(&mut self) {
        let mut events: Vec<Event> = Vec::with_capacity(EVENTS);
        let nothing = rustix::time::Timespec::default();
        // An error here is an interruption; the event loop comes again.
        let _ = epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&nothing));
        // Connections first: those made below may have names of those that end here.
        let (own, of_connections): (Vec<_>, Vec<_>) = events
            .iter()
            .map(|event| (split(event.data), event.flags))
            .partition(|(key, _)| key.guest_port == NO_PORT);
        for (key, flags) in of_connections {
            if let Some(connection) = self.connections.get_mut(&key) {
                let fate = connection.host_event(flags);
                self.settle(key, fate);
            }
        }
        for (key, _) in own {
            match key.host_port {
                LISTENER => self.accept(),
                OUTBOX => {
                    for packet in self.outbox.take() {
                        self.guest_sent(&packet);
                    }
                }
                id => self.greeted(id),
            }
        }
    }

    fn accept(&mut self) {
        for _ in 0..ACCEPT_BUDGET {
            let Some(socket) = self.listener.as_ref().and_then(Listener::accept) else {
                return;
            };
            let (id, socket) = self.greetings.add(socket);
            let flags = EventFlags::IN | EventFlags::RDHUP | EventFlags::ET;
            if epoll::add(&self.epoll, socket, own(id), flags).is_err() {
                self.greetings.take(id);
            }
            // Most have said it by now: they take no place from those that have not.
            self.greeted(id);
        }
        // More may be there, and their event has been.
        if let Some(listener) = &self.listener {
            let flags = EventFlags::IN | EventFlags::ET;
            let _ = epoll::modify(&self.epoll, listener.socket(), own(LISTENER), flags);
        }
    }

    /// A program has said something before it is connected.
    fn greeted(&mut self, id: u32) {
        match self.greetings.read(id) {
            Greeting::Incomplete => {}
            Greeting::Wrong => drop(self.greetings.take(id)),
            Greeting::Connect(guest_port) => {
                if let Some(socket) = self.greetings.take(id) {
                    self.connect_to_guest(socket, guest_port);
                }
            }
        }
    }

    fn connect_to_guest(&mut self, socket: OwnedFd, guest_port: u32) {
        let key = self.free_key(guest_port).filter(|key| {
            // So far it was watched as one that had said nothing.
            epoll::modify(&self.epoll, &socket, join(*key), both_ways()).is_ok()
        });
        let Some(key) = key else {
            self.dropped.refused += 1;
            return;
        };
        self.connections.insert(key, Connection::to_guest(socket));
        self.settle(key, Fate::Keep);
    }

    fn free_key(&mut self, guest_port: u32) -> Option<Key> {
        if guest_port == NO_PORT || self.connections.len() >= MAX_CONNECTIONS {
            return None;
        }
        // One of so many is free.
        (0..=MAX_CONNECTIONS).find_map(|_| {
            let host_port = FIRST_PORT + self.next_port;
            self.next_port = (self.next_port + 1) % PORTS;
            let key = Key {
                host_port,
                guest_port,
            };
            (!self.connections.contains_key(&key)).then_some(key)
        })
    }

    /// A packet of the guest that the gate has let go. An empty one is the device's reset.
    fn guest_sent(&mut self, packet: &[u8]) {
        let Some((header, payload)) = packet.split_first_chunk::<HEADER_BYTES>() else {
            self.resets_awaited = self.resets_awaited.saturating_sub(1);
            self.drop_connections();
            return;
        };
        let header = Header::parse(header);
        let key = Key {
            host_port: header.dst_port,
            guest_port: header.src_port,
        };
        let sound =
            header.dst_cid == HOST_CID && header.kind == TYPE_STREAM && header.src_port != NO_PORT;
        if !sound {
            if header.op != op::RST {
                self.push_reset(header.reset());
            }
            return;
        }
        let whole = payload.len() == header.len as usize;
        match (header.op, self.connections.get_mut(&key)) {
            (_, Some(connection)) => {
                let fate = match header.op {
                    op::REQUEST => Fate::Reset,
                    _ if !whole => Fate::Reset,
                    _ => connection.guest_sent(&header, payload, key.host_port),
                };
                self.settle(key, fate);
            }
            (op::REQUEST, None) if whole => self.connect_to_host(key, &header),
            // Their senders expect no answer.
            (op::RST | op::CREDIT_UPDATE | op::CREDIT_REQUEST, None) => {}
            (_, None) => self.push_reset(header.reset()),
        }
    }

    fn connect_to_host(&mut self, key: Key, request: &Header) {
        let room = self.connections.len() < MAX_CONNECTIONS;
        let socket = room.then(|| self.path.connect(key.host_port));
        match socket {
            Some(Ok(socket)) if self.watch(&socket, key) => {
                let connection = Connection::from_guest(socket, request);
                self.connections.insert(key, connection);
                self.settle(key, Fate::Keep);
            }
            _ => {
                self.dropped.refused += 1;
                self.push_reset(request.reset());
            }
        }
    }

    /// False if the host has no room for one more.
    fn watch(&self, socket: &OwnedFd, key: Key) -> bool {
        epoll::add(&self.epoll, socket, join(key), both_ways()).is_ok()
    }

    /// Does what has to be done after a connection was touched.
    fn settle(&mut self, key: Key, fate: Fate) {
        if fate == Fate::Keep {
            if let Some(connection) = self.connections.get_mut(&key)
                && connection.has_message()
                && !std::mem::replace(&mut connection.listed, true)
            {
                self.listed.push_back(key);
            }
            return;
        }
        if fate == Fate::Reset {
            self.push_reset(self.header(key, op::RST));
        }
        if self.connections.remove(&key).is_some_and(|one| one.listed) {
            self.listed.retain(|other| *other != key);
        }
    }

    fn push_reset(&mut self, reset: Header) {
        if self.resets.len() < MAX_RESETS {
            self.resets.push_back(reset);
        } else {
            self.dropped.resets += 1;
        }
    }

    fn header(&self, key: Key, op: u16) -> Header {
        Header {
            src_cid: HOST_CID,
            dst_cid: self.cid,
            src_port: key.host_port,
            dst_port: key.guest_port,
            kind: TYPE_STREAM,
            op,
            ..Header::default()
        }
    }

    /// Puts the next packet for the guest into `buffer`, which has room for a header and
    /// something more; the packet's length. Bytes stay with their sender until then.
    pub(super) fn next_packet(&mut self, buffer: &mut [u8]) -> Option<usize> {
        let (head, payload) = buffer.split_first_chunk_mut::<HEADER_BYTES>()?;
        if self.resets_awaited > 0 {
            return None;
        }
        if let Some(reset) = self.resets.pop_front() {
            *head = reset.to_bytes();
            return Some(HEADER_BYTES);
        }
        while let Some(key) = self.listed.pop_front() {
            let mut header = self.header(key, 0);
            let Some(connection) = self.connections.get_mut(&key) else {
                continue;
            };
            connection.listed = false;
            let (message, fate) = connection.next_message(payload);
            if message.is_some() {
                connection.tell_credit(&mut header);
            }
            self.settle(key, fate);
            if let Some(message) = message {
                header.op = message.op;
                header.flags = message.flags;
                header.len = message.payload as u32;
                *head = header.to_bytes();
                return Some(HEADER_BYTES + message.payload);
            }
        }
        None
    }
}

/// What a connection's socket is watched for.
fn both_ways() -> EventFlags {
    EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET
}
