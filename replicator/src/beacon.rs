//! Telling a link that broke from a peer that died: the dead keep no port open.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use crate::attempt::Attempt;
use crate::ring::{Completion, Op, Ring};

/// Pause between two looks at a peer.
const PAUSE: Duration = Duration::from_millis(20);

/// How long one look may take.
const PATIENCE: Duration = Duration::from_millis(100);

/// Ports that are open for as long as this process lives. Nothing is ever said there.
///
/// They stay out of the ring: a ring that is being torn down keeps its sockets for a moment after
/// its process is gone.
#[derive(Default)]
pub(crate) struct Beacon(HashMap<IpAddr, TcpListener>);

impl Beacon {
    /// Where to look on this address of the host, whatever its port.
    ///
    /// # Errors
    /// When the system has no port left.
    pub(crate) fn address(&mut self, at: SocketAddr) -> io::Result<SocketAddr> {
        let listener = match self.0.entry(at.ip()) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let mut any = at;
                any.set_port(0);
                let listener = TcpListener::bind(any)?;
                listener.set_nonblocking(true)?;
                entry.insert(listener)
            }
        };
        listener.local_addr()
    }

    /// Whoever looked has seen enough, and makes room for the next.
    pub(crate) fn make_room(&self) {
        for listener in self.0.values() {
            while listener.accept().is_ok() {}
        }
    }
}

/// Looks whether a peer that is missed is alive, again and again.
pub(crate) struct Probe {
    attempt: Attempt,
    next_id: u64,
}

impl Probe {
    pub(crate) fn new() -> Self {
        Self {
            attempt: Attempt::new(Op::Probe),
            next_id: 0,
        }
    }

    /// Looks, if it is time, at the peer's beacon. True if the peer is dead.
    pub(crate) fn turn(
        &mut self,
        ring: &mut Ring,
        beacon: SocketAddr,
        now: Instant,
    ) -> io::Result<bool> {
        self.attempt.expire(ring, now)?;
        if !self.attempt.due(now) {
            return Ok(false);
        }
        self.next_id += 1;
        let begun = self
            .attempt
            .begin(ring, beacon, self.next_id, now + PATIENCE);
        if begun.is_err() {
            self.attempt.pause_until(now + PAUSE);
        }
        Ok(begun.is_err_and(|error| refused(&error)))
    }

    /// A look has ended. True if the peer is dead.
    pub(crate) fn ended(&mut self, completion: &Completion, now: Instant) -> bool {
        let ended = self.attempt.ended(completion, now, PAUSE);
        ended.is_some_and(|seen| seen.is_err_and(|error| refused(&error)))
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.attempt.deadline(true)
    }
}

/// Its host answers, and knows of no such port. No answer at all says nothing.
fn refused(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ConnectionRefused
}
