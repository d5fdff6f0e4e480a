//! One client: its requests as they come in, and its replies as they may go out.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::ops::Range;

use pico::kv::commands::{self, Next, Server, Session};
use pico::kv::resp::{self, Limits, Parsed};
use pico::kv::store::Store;
use smoltcp::socket::tcp::Socket;

use super::log::Log;
use crate::hardware::{clock, heap};
use crate::workloads::listeners::{CLIENTS_MAX, SOCKETS};

/// Arguments of one request, at most.
const ARGUMENTS_MAX: usize = 1024;
/// Bytes of one request, at most, where memory allows it.
const REQUEST_MAX: usize = 1 << 20;
/// Requests that wait for their commit, at most: further ones stay in the socket.
const WAITING_MAX: usize = 4096;

/// How long a closed connection may wait for its peer to close, too.
const LINGER_NS: u64 = 5_000_000_000;

/// Bounds that depend on the machine's memory: three eighths of the heap for the requests
/// and replies (up to twice their bound, by the last one) of all sockets.
#[derive(Clone, Copy)]
struct Bounds {
    request: usize,
    replies: usize,
}

impl Bounds {
    fn get() -> Self {
        let request = (heap::total() / 8 / SOCKETS).min(REQUEST_MAX);
        Self {
            request,
            replies: request,
        }
    }
}

/// What all connections work on.
pub(super) struct Shared<'a> {
    pub(super) store: &'a mut Store,
    pub(super) log: Option<&'a mut Log>,
    pub(super) server: &'a mut Server,
}

/// Replies from a place on may leave once a batch is on the disk.
struct Mark {
    batch: u64,
    start: usize,
}

/// A client's bytes in both directions.
#[derive(Default)]
pub(super) struct Connection {
    known: bool,
    /// Counts as a client: from its admission until its connection begins to close.
    counted: bool,
    input: Vec<u8>,
    output: Vec<u8>,
    /// Bytes of `output` that are with the socket already.
    sent: usize,
    marks: VecDeque<Mark>,
    /// Closed as soon as all replies are out.
    closing: bool,
    /// When a peer that doesn't close its side is cut off.
    linger_until: Option<u64>,
    places: Vec<Range<usize>>,
}

impl Connection {
    /// Forgets the last client.
    pub(super) fn reset(&mut self, server: &mut Server) {
        if self.known {
            self.leave(server);
            *self = Self::default();
        }
    }

    fn leave(&mut self, server: &mut Server) {
        if core::mem::take(&mut self.counted) {
            server.clients -= 1;
        }
    }

    /// Whether the client was admitted, or refused, before.
    pub(super) fn is_known(&self) -> bool {
        self.known
    }

    /// Takes requests, runs them, and sends the replies that may leave. True: something
    /// was done that the network should hear of.
    pub(super) fn advance(&mut self, socket: &mut Socket<'_>, mut shared: Shared<'_>) -> bool {
        let bounds = Bounds::get();
        if !self.known {
            self.known = true;
            if shared.server.clients < CLIENTS_MAX {
                self.counted = true;
                shared.server.clients += 1;
            } else {
                resp::error(&mut self.output, "ERR max number of clients reached");
                self.closing = true;
            }
        }
        let mut progress = false;
        while self.receive(socket, bounds) {
            progress = true;
            self.run_requests(&mut shared, bounds);
        }
        if !self.input.is_empty() {
            // What was held back for want of room may go on now.
            self.run_requests(&mut shared, bounds);
        }
        progress |= self.send(socket, shared.log.as_deref());
        let finished = self.sent == self.output.len() && self.marks.is_empty();
        let gone = !socket.may_recv() && !socket.can_recv();
        if gone {
            // Its last replies may still wait for the disk; its successor need not.
            self.leave(shared.server);
        }
        if finished && (self.closing || gone) && socket.may_send() {
            socket.close();
            self.leave(shared.server);
            self.linger_until = Some(clock::now() + LINGER_NS);
            progress = true;
        }
        if self.linger_until.is_some_and(|until| clock::now() >= until) {
            socket.abort();
            progress = true;
        }
        progress
    }

    fn receive(&mut self, socket: &mut Socket<'_>, bounds: Bounds) -> bool {
        if self.closing {
            // Refused or finished: further bytes are taken and forgotten, or the peer
            // would get a reset before it has read the last reply.
            while socket.can_recv() && socket.recv(|bytes| (bytes.len(), ())).is_ok() {}
            return false;
        }
        let room = bounds.request.saturating_sub(self.input.len());
        if room == 0 || !socket.can_recv() || !self.has_room(bounds) {
            return false;
        }
        let input = &mut self.input;
        let taken = socket.recv(|bytes| {
            let taken = bytes.len().min(room);
            input.extend_from_slice(&bytes[..taken]);
            (taken, taken)
        });
        taken.is_ok_and(|taken| taken > 0)
    }

    /// Whether the client takes its replies, and the log its writes.
    fn has_room(&self, bounds: Bounds) -> bool {
        self.output.len() - self.sent < bounds.replies && self.marks.len() < WAITING_MAX
    }

    fn run_requests(&mut self, shared: &mut Shared<'_>, bounds: Bounds) {
        let limits = Limits {
            request: bounds.request,
            arguments: ARGUMENTS_MAX,
        };
        let mut done = 0;
        while !self.closing
            && self.has_room(bounds)
            && shared
                .log
                .as_ref()
                .is_none_or(|log| log.has_room(bounds.request))
        {
            match resp::parse(&self.input[done..], limits, &mut self.places) {
                Ok(Parsed::Incomplete) => {
                    if self.input.len() - done >= bounds.request {
                        self.refuse("ERR Protocol error: the request is too large", shared);
                    }
                    break;
                }
                Ok(Parsed::Request(length)) => {
                    self.execute(done, shared, bounds);
                    done += length;
                }
                Err(error) => {
                    let text = alloc::format!("ERR Protocol error: {}", error.0);
                    self.refuse(&text, shared);
                }
            }
        }
        self.input.drain(..done);
        if self.input.is_empty() && self.input.capacity() > 16 * 1024 {
            self.input = Vec::new();
        }
    }

    fn refuse(&mut self, text: &str, shared: &Shared<'_>) {
        let start = self.output.len();
        resp::error(&mut self.output, text);
        self.mark(start, shared.log.as_deref());
        self.closing = true;
    }

    fn execute(&mut self, start: usize, shared: &mut Shared<'_>, bounds: Bounds) {
        if self.places.is_empty() {
            return;
        }
        let input = &self.input[start..];
        let mut request = Vec::with_capacity(self.places.len());
        request.extend(self.places.iter().map(|place| &input[place.clone()]));
        let reply = self.output.len();
        shared.server.commands += 1;
        let mut session = Session {
            store: shared.store,
            log: shared.log.as_mut().map(|log| log.batch()),
            server: *shared.server,
            reply_max: bounds.replies,
        };
        if commands::execute(&mut session, &request, &mut self.output) == Next::Close {
            self.closing = true;
        }
        self.mark(reply, shared.log.as_deref());
    }

    /// The reply from `start` on, to reads as well, waits for all writes it may tell of.
    fn mark(&mut self, start: usize, log: Option<&Log>) {
        let Some(batch) = log.and_then(Log::awaited) else {
            return;
        };
        if self.marks.back().is_none_or(|last| last.batch != batch) {
            self.marks.push_back(Mark { batch, start });
        }
    }

    fn send(&mut self, socket: &mut Socket<'_>, log: Option<&Log>) -> bool {
        let committed = log.map_or(u64::MAX, Log::committed);
        while self
            .marks
            .front()
            .is_some_and(|mark| mark.batch <= committed)
        {
            self.marks.pop_front();
        }
        let releasable = self
            .marks
            .front()
            .map_or(self.output.len(), |mark| mark.start);
        let mut progress = false;
        while self.sent < releasable && socket.can_send() {
            match socket.send_slice(&self.output[self.sent..releasable]) {
                Ok(length) if length > 0 => {
                    self.sent += length;
                    progress = true;
                }
                _ => break,
            }
        }
        self.forget_sent();
        progress
    }
    fn forget_sent(&mut self) {
        if self.sent == self.output.len() {
            self.sent = 0;
            self.output.clear();
            if self.output.capacity() > 16 * 1024 {
                self.output = Vec::new();
            }
        } else if self.sent > 16 * 1024 && self.sent > self.output.len() / 2 {
            self.output.drain(..self.sent);
            self.marks
                .iter_mut()
                .for_each(|mark| mark.start -= self.sent);
            self.sent = 0;
        }
    }
}
