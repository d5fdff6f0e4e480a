//! One attempt at a time to connect to somebody.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use crate::ring::{Completion, Op, Ring};

/// An attempt that is under way, or the time before the next one.
pub(crate) struct Attempt {
    op: Op,
    state: State,
}

enum State {
    None {
        not_before: Instant,
    },
    Running {
        id: u64,
        socket: OwnedFd,
        until: Instant,
    },
}

impl Attempt {
    /// None yet; completions will be of this kind.
    pub(crate) fn new(op: Op) -> Self {
        let state = State::None {
            not_before: Instant::now(),
        };
        Self { op, state }
    }

    /// May the next attempt begin?
    pub(crate) fn due(&self, now: Instant) -> bool {
        matches!(self.state, State::None { not_before } if not_before <= now)
    }

    /// No attempt begins before then; one that is under way is of no interest any more.
    pub(crate) fn pause_until(&mut self, not_before: Instant) {
        self.state = State::None { not_before };
    }

    /// Begins. Whoever refuses at once is an error already.
    pub(crate) fn begin(
        &mut self,
        ring: &mut Ring,
        address: SocketAddr,
        id: u64,
        until: Instant,
    ) -> io::Result<()> {
        let socket = connect(address)?;
        ring.poll_writable(socket.as_raw_fd(), self.op, id)?;
        self.state = State::Running { id, socket, until };
        Ok(())
    }

    /// An attempt has ended: with a connection or an error, if it is this one. The next may begin
    /// after `pause`.
    pub(crate) fn ended(
        &mut self,
        completion: &Completion,
        now: Instant,
        pause: Duration,
    ) -> Option<io::Result<TcpStream>> {
        if !matches!(self.state, State::Running { id, .. } if id == completion.id) {
            return None;
        }
        let none = State::None {
            not_before: now + pause,
        };
        let State::Running { socket, .. } = std::mem::replace(&mut self.state, none) else {
            return None;
        };
        Some(match sockopt::socket_error(&socket) {
            Ok(Ok(())) if completion.result >= 0 => Ok(TcpStream::from(socket)),
            Ok(Ok(())) => Err(io::Error::from_raw_os_error(-completion.result)),
            Ok(Err(error)) | Err(error) => Err(error.into()),
        })
    }

    /// Gives up an attempt that has had its time. True if there was one.
    pub(crate) fn expire(&mut self, ring: &mut Ring, now: Instant) -> io::Result<bool> {
        match self.state {
            State::Running { id, until, .. } if until <= now => {
                ring.cancel(self.op, id)?;
                self.pause_until(now);
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// When there is something to do: to begin, if that is wanted, or to give up.
    pub(crate) fn deadline(&self, wanted: bool) -> Option<Instant> {
        match self.state {
            State::None { not_before } => wanted.then_some(not_before),
            State::Running { until, .. } => Some(until),
        }
    }
}

/// Starts to connect; the socket becomes writable when that has ended.
fn connect(address: SocketAddr) -> rustix::io::Result<OwnedFd> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&socket, &address) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => Ok(socket),
        Err(error) => Err(error),
    }
}
