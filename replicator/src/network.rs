//! The connections of a twin: the link, those that may become it, those that end.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::config::Error;
use crate::connection::Connection;
use crate::ring::{Completion, Op, Ring};
use crate::tls::Security;
use crate::way::Way;
use crate::wire::Frame;

/// How long a new connection may be without a hello, and a connection that ends may take to do
/// so.
const PATIENCE: Duration = Duration::from_secs(1);

/// Most connections that are waited for a hello.
const STRANGERS: usize = 4;

/// Where a connection stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Link,
    /// Accepted, no hello yet.
    Stranger,
    /// Says its last words.
    Leaving,
}

/// All connections.
pub(crate) struct Network {
    way: Way,
    security: Security,
    /// The connection to the peer.
    pub(crate) link: Option<Connection>,
    strangers: Vec<(Connection, Instant)>,
    leaving: Vec<(Connection, Instant)>,
    /// Cut, but not yet let go by the kernel.
    cut: Vec<Connection>,
    next_id: u64,
}

impl Network {
    pub(crate) fn listen(
        addresses: &[SocketAddr],
        security: Security,
        ring: &mut Ring,
    ) -> Result<Self, Error> {
        Ok(Self::new(Way::listen(addresses, ring)?, security))
    }

    pub(crate) fn dial(addresses: &[SocketAddr], security: Security) -> Self {
        Self::new(Way::dial(addresses.to_vec()), security)
    }

    fn new(way: Way, security: Security) -> Self {
        Self {
            way,
            security,
            link: None,
            strangers: Vec::new(),
            leaving: Vec::new(),
            cut: Vec::new(),
            next_id: 0,
        }
    }

    pub(crate) fn dials(&self) -> bool {
        matches!(self.way, Way::Dial { .. })
    }

    pub(crate) fn place(&self, id: u64) -> Option<Place> {
        let among = |list: &[(Connection, Instant)]| list.iter().any(|entry| entry.0.id == id);
        if self.link.as_ref().is_some_and(|link| link.id == id) {
            Some(Place::Link)
        } else if among(&self.strangers) {
            Some(Place::Stranger)
        } else if among(&self.leaving) {
            Some(Place::Leaving)
        } else {
            None
        }
    }

    pub(crate) fn get(&mut self, id: u64) -> Option<&mut Connection> {
        let strangers = self.strangers.iter_mut().map(|entry| &mut entry.0);
        let leaving = self.leaving.iter_mut().map(|entry| &mut entry.0);
        self.link
            .iter_mut()
            .chain(strangers)
            .chain(leaving)
            .chain(self.cut.iter_mut())
            .find(|connection| connection.id == id)
    }

    /// Connections may be waiting at the listener with this number.
    pub(crate) fn accept(&mut self, ring: &mut Ring, number: u64, now: Instant) -> io::Result<()> {
        let accepted = self.way.accept(ring, number)?;
        for (stream, address) in accepted {
            let Ok(mut connection) = self.connection(stream, address) else {
                continue;
            };
            connection.receive(ring)?;
            if self.strangers.len() == STRANGERS {
                // One that has proved who it is stays longer than one that has not.
                let unproved = |entry: &(Connection, Instant)| !entry.0.is_sealed();
                let index = self.strangers.iter().position(unproved).unwrap_or(0);
                let (oldest, _) = self.strangers.remove(index);
                self.cut(oldest);
            }
            self.strangers.push((connection, now + PATIENCE));
        }
        Ok(())
    }

    /// A stranger turned out to be the peer.
    pub(crate) fn promote_stranger(&mut self, id: u64) {
        if let Some(connection) = remove(&mut self.strangers, id) {
            self.cut_link();
            self.link = Some(connection);
        }
    }

    /// The attempt to reach the peer has ended. True when there is a new link.
    pub(crate) fn dialed(
        &mut self,
        completion: &Completion,
        ring: &mut Ring,
        now: Instant,
    ) -> io::Result<bool> {
        let Some((stream, address)) = self.way.dialed(completion, now) else {
            return Ok(false);
        };
        let Ok(mut connection) = self.connection(stream, address) else {
            return Ok(false);
        };
        connection.receive(ring)?;
        self.link = Some(connection);
        Ok(true)
    }

    /// Cuts the link, if there is one; what it had not sent is lost.
    pub(crate) fn cut_link(&mut self) {
        if let Some(link) = self.link.take() {
            self.cut(link);
            self.way.next_path();
        }
    }

    /// Cuts any connection.
    pub(crate) fn cut_off(&mut self, id: u64) {
        if self.place(id) == Some(Place::Link) {
            return self.cut_link();
        }
        let found = remove(&mut self.strangers, id).or_else(|| remove(&mut self.leaving, id));
        if let Some(connection) = found {
            self.cut(connection);
        }
    }

    /// Ends a connection after these last words, and keeps from trying again for a while.
    pub(crate) fn refuse(&mut self, id: u64, why: Frame, now: Instant) {
        let found = if self.place(id) == Some(Place::Link) {
            self.link.take()
        } else {
            remove(&mut self.strangers, id)
        };
        if let Some(mut connection) = found {
            connection.queue_control(why);
            self.leaving.push((connection, now + PATIENCE));
        }
        self.pause(now);
    }

    /// Ends a connection whose peer can't be trusted. It is told why as far as TLS has words for it; frames are not
    /// for it.
    pub(crate) fn turn_away(&mut self, id: u64, now: Instant) {
        let found = if self.place(id) == Some(Place::Link) {
            self.link.take()
        } else {
            remove(&mut self.strangers, id)
        };
        if let Some(mut connection) = found {
            connection.drop_all();
            self.leaving.push((connection, now + PATIENCE));
        }
    }

    /// Ends the link once everything was sent.
    pub(crate) fn leave(&mut self, now: Instant) {
        if let Some(link) = self.link.take() {
            self.leaving.push((link, now + PATIENCE / 2));
        }
    }

    pub(crate) fn left(&self) -> bool {
        self.leaving.is_empty()
    }

    /// Waits longer than usual before the next attempt.
    pub(crate) fn pause(&mut self, now: Instant) {
        self.way.pause(now);
    }

    /// Starts sends, ends what has had its time, drops what has ended, dials if wanted.
    pub(crate) fn turn(&mut self, ring: &mut Ring, now: Instant, wanted: bool) -> io::Result<()> {
        if let Some(link) = &mut self.link {
            link.send(ring)?;
        }
        for (connection, _) in &mut self.strangers {
            // The handshake's part of this side.
            connection.send(ring)?;
        }
        for (connection, _) in &mut self.leaving {
            connection.send(ring)?;
            if connection.all_sent() {
                connection.finish(ring)?;
            }
        }
        let late = |entry: &mut (Connection, Instant)| entry.1 <= now;
        let strangers = self.strangers.extract_if(.., late);
        let ended: Vec<_> = strangers.chain(self.leaving.extract_if(.., late)).collect();
        for (connection, _) in ended {
            self.cut(connection);
        }
        self.cut.retain(|connection| !connection.idle());
        self.next_id += 1;
        let wanted = wanted && self.link.is_none();
        self.way.redial(ring, now, wanted, self.next_id)
    }

    /// When [`Self::turn`] has something to do by itself.
    pub(crate) fn deadline(&self, wanted: bool) -> Option<Instant> {
        let dial = self.way.deadline(wanted);
        let waiting = self.strangers.iter().chain(&self.leaving);
        waiting.map(|entry| entry.1).chain(dial).min()
    }

    /// Cuts everything and waits until the kernel uses none of the buffers any more.
    pub(crate) fn close(&mut self, ring: &mut Ring) {
        self.cut_link();
        let rest: Vec<_> = self
            .strangers
            .drain(..)
            .chain(self.leaving.drain(..))
            .collect();
        for (connection, _) in rest {
            self.cut(connection);
        }
        // If the ring is broken there is nothing to cancel.
        let _ = self.way.close(ring);
        let until = Instant::now() + PATIENCE;
        let mut completions = Vec::new();
        self.cut.retain(|connection| !connection.idle());
        while !self.cut.is_empty() && Instant::now() < until {
            if ring.wait(PATIENCE / 10, &mut completions).is_err() {
                break;
            }
            for completion in &completions {
                self.settle(completion);
            }
            self.cut.retain(|connection| !connection.idle());
        }
        // The kernel may still write to these: better a leak than a use after free.
        self.cut.drain(..).for_each(std::mem::forget);
    }

    /// Notes the end of an operation on a connection that is no longer of interest.
    pub(crate) fn settle(&mut self, completion: &Completion) {
        if let Some(connection) = self.get(completion.id) {
            // It was cut: how it ended does not matter.
            let _ = match completion.op {
                Op::Receive => connection.received(completion.result).map(|_| ()),
                Op::Send => connection.sent(completion),
                _ => Ok(()),
            };
        }
    }

    fn connection(&mut self, stream: TcpStream, address: SocketAddr) -> io::Result<Connection> {
        self.next_id += 1;
        let session = self.security.session(self.dials());
        let session = session.map_err(io::Error::other)?;
        Connection::new(self.next_id, stream, address, session)
    }

    fn cut(&mut self, mut connection: Connection) {
        connection.cut();
        self.cut.push(connection);
    }
}

fn remove(list: &mut Vec<(Connection, Instant)>, id: u64) -> Option<Connection> {
    let index = list.iter().position(|entry| entry.0.id == id)?;
    Some(list.remove(index).0)
}
