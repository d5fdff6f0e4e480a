//! How connections to the peer come about: by listening, or by dialing, on one path or several.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use crate::attempt::Attempt;
use crate::config::Error;
use crate::ring::{Completion, Op, Ring};

/// Pause between attempts to reach the peer.
const REDIAL: Duration = Duration::from_millis(100);

/// Pause after the peer refused, or was not a twin at all.
const REFUSED: Duration = Duration::from_secs(1);

/// How long one attempt may take, and the kernel to let go of an address.
const PATIENCE: Duration = Duration::from_secs(1);

/// The listening twin listens on all paths, the other dials one after the other.
pub(crate) enum Way {
    Listen(Vec<TcpListener>),
    Dial {
        /// The path of the last attempt comes first.
        addresses: Vec<SocketAddr>,
        attempt: Attempt,
    },
}

impl Way {
    pub(crate) fn listen(addresses: &[SocketAddr], ring: &mut Ring) -> Result<Self, Error> {
        let mut listeners = Vec::new();
        for (index, &address) in addresses.iter().enumerate() {
            let failed = |source| Error::Listen { address, source };
            let listener = bind(address).map_err(failed)?;
            listener.set_nonblocking(true).map_err(failed)?;
            ring.poll_listener(listener.as_raw_fd(), index as u64)
                .map_err(Error::Ring)?;
            listeners.push(listener);
        }
        Ok(Self::Listen(listeners))
    }

    pub(crate) fn dial(addresses: Vec<SocketAddr>) -> Self {
        let attempt = Attempt::new(Op::Dial);
        Self::Dial { addresses, attempt }
    }

    /// Connections that wait at the listener with this number.
    pub(crate) fn accept(
        &self,
        ring: &mut Ring,
        number: u64,
    ) -> io::Result<Vec<(TcpStream, SocketAddr)>> {
        let Self::Listen(listeners) = self else {
            return Ok(Vec::new());
        };
        let Some(listener) = listeners.get(number as usize) else {
            return Ok(Vec::new());
        };
        let accepted = std::iter::from_fn(|| listener.accept().ok()).collect();
        ring.poll_listener(listener.as_raw_fd(), number)?;
        Ok(accepted)
    }

    /// Lets go of the listeners' polls: the addresses are free for the next twin then.
    pub(crate) fn close(&self, ring: &mut Ring) -> io::Result<()> {
        let listeners = match self {
            Self::Listen(listeners) => listeners.len(),
            Self::Dial { .. } => 0,
        };
        (0..listeners as u64).try_for_each(|number| ring.cancel(Op::Accept, number))?;
        ring.submit()
    }

    /// The attempt to reach the peer has ended: the connection, if there is one.
    pub(crate) fn dialed(
        &mut self,
        completion: &Completion,
        now: Instant,
    ) -> Option<(TcpStream, SocketAddr)> {
        let Self::Dial { addresses, attempt } = self else {
            return None;
        };
        let address = *addresses.first()?;
        match attempt.ended(completion, now, REDIAL)? {
            Ok(stream) => Some((stream, address)),
            Err(_) => {
                self.next_path();
                None
            }
        }
    }

    /// The path that was used last is bad: the next attempt takes another, if there is one.
    pub(crate) fn next_path(&mut self) {
        if let Self::Dial { addresses, .. } = self {
            addresses.rotate_left(1);
        }
    }

    /// Starts or ends an attempt if it is time. `id` is for a new one.
    pub(crate) fn redial(
        &mut self,
        ring: &mut Ring,
        now: Instant,
        wanted: bool,
        id: u64,
    ) -> io::Result<()> {
        let Self::Dial { addresses, attempt } = self else {
            return Ok(());
        };
        let failed = if wanted && attempt.due(now) {
            attempt.pause_until(now + REDIAL);
            let first = addresses.first();
            first.is_some_and(|first| attempt.begin(ring, *first, id, now + PATIENCE).is_err())
        } else {
            attempt.expire(ring, now)?
        };
        if failed {
            self.next_path();
        }
        Ok(())
    }

    /// Waits longer than usual before the next attempt.
    pub(crate) fn pause(&mut self, now: Instant) {
        if let Self::Dial { attempt, .. } = self {
            attempt.pause_until(now + REFUSED);
        }
    }

    /// When [`Self::redial`] has something to do.
    pub(crate) fn deadline(&self, wanted: bool) -> Option<Instant> {
        match self {
            Self::Dial { attempt, .. } => attempt.deadline(wanted),
            Self::Listen(_) => None,
        }
    }
}

/// Binds the listening address. A ring that is being torn down keeps its sockets for a
/// moment after its process is gone, so a twin that was just restarted tries again.
fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let until = Instant::now() + PATIENCE;
    loop {
        match TcpListener::bind(address) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < until => {
                std::thread::sleep(REDIAL / 10);
            }
            bound => return bound,
        }
    }
}
