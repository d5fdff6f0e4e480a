//! The link to the peer: greetings, signs of life and silence.

use std::time::Duration;

use crate::event::Status;
use crate::time::Time;

/// A link that is up, or none.
#[derive(Debug, Default)]
pub(crate) struct Link(Option<Connected>);

#[derive(Debug)]
struct Connected {
    heard: Time,
    sent: Time,
    greeted: bool,
    peer: Option<Status>,
    /// Generation under which the peer greeted.
    generation: u64,
    announced: bool,
}

impl Link {
    pub(crate) fn is_up(&self) -> bool {
        self.0.is_some()
    }

    pub(crate) fn up(&mut self, now: Time) {
        self.0 = Some(Connected {
            heard: now,
            sent: now,
            greeted: false,
            peer: None,
            generation: 0,
            announced: false,
        });
    }

    pub(crate) fn down(&mut self) {
        self.0 = None;
    }

    pub(crate) fn heard(&mut self, now: Time) {
        if let Some(link) = &mut self.0 {
            link.heard = now;
        }
    }

    pub(crate) fn sent(&mut self, now: Time) {
        if let Some(link) = &mut self.0 {
            link.sent = now;
        }
    }

    /// True once: this side has to greet.
    pub(crate) fn greet(&mut self) -> bool {
        match &mut self.0 {
            Some(link) if !link.greeted => {
                link.greeted = true;
                true
            }
            _ => false,
        }
    }

    pub(crate) fn greeted_by(&mut self, status: Status, generation: u64) {
        if let Some(link) = &mut self.0 {
            link.peer = Some(status);
            link.generation = generation;
        }
    }

    /// Whether the peer has greeted. A connection alone proves nothing: the kernel takes a dead process's sockets apart only some
    /// time after it.
    pub(crate) fn has_greeted(&self) -> bool {
        self.0.as_ref().is_some_and(|link| link.peer.is_some())
    }

    /// The peer's status when both sides have greeted.
    pub(crate) fn peer(&self) -> Option<Status> {
        let link = self.0.as_ref()?;
        link.peer.filter(|_| link.greeted)
    }

    /// The generation under which the peer greeted; 0 without a link.
    pub(crate) fn peer_generation(&self) -> u64 {
        self.0.as_ref().map_or(0, |link| link.generation)
    }

    /// The peer's status, once, when both sides have greeted.
    pub(crate) fn announce(&mut self) -> Option<Status> {
        let peer = self.peer()?;
        let link = self.0.as_mut()?;
        (!std::mem::replace(&mut link.announced, true)).then_some(peer)
    }

    pub(crate) fn silent(&self, now: Time, timeout: Duration) -> bool {
        self.silent_at(timeout).is_some_and(|at| at <= now)
    }

    pub(crate) fn heartbeat_due(&self, now: Time, heartbeat: Duration) -> bool {
        self.heartbeat_at(heartbeat).is_some_and(|at| at <= now)
    }

    pub(crate) fn silent_at(&self, timeout: Duration) -> Option<Time> {
        self.0.as_ref().map(|link| link.heard + timeout)
    }

    pub(crate) fn heartbeat_at(&self, heartbeat: Duration) -> Option<Time> {
        self.0.as_ref().map(|link| link.sent + heartbeat)
    }
}
