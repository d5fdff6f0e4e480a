//! A peer that is quiet: is its host still there?
//!
//! A process may be kept from its processor for a while, and only a long silence tells that from its death. Its host's kernel
//! answers all the same. So who hears nothing where a heartbeat was due looks at the peer's beacon, and a host that does not answer, twice,
//! is taken for gone at once: without power, frozen, or cut off. It may be a mistake, as any silence may.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use evertwin_protocol::{Input, Role};
use tracing::debug;

use super::Driver;
use crate::attempt::Attempt;
use crate::config::Error;
use crate::ring::{Completion, Op};

/// Looks in a row without an answer that are enough. One may be lost.
const LOOKS: u32 = 2;

/// Pause after an answer: the host is there, its twin may be back at any moment.
const PAUSE: Duration = Duration::from_millis(20);

/// How long the first look over a link may take, which only tells whether looking is of use.
const FIRST_PATIENCE: Duration = Duration::from_secs(1);

/// Until it is tried again if it was not.
const FIRST_PAUSE: Duration = Duration::from_secs(10);

/// A twin that looks at its clock so late was kept from its own processor: it has perhaps not seen an answer yet.
const LATE: Duration = Duration::from_millis(5);

/// What is known of the peer's host.
pub(super) struct Suspicion {
    look: Attempt,
    next_id: u64,
    /// When the look that is under way began.
    begun: Instant,
    /// The link over whose path the host has answered, and how long that took.
    answers: Option<(u64, Duration)>,
    unanswered: u32,
}

impl Suspicion {
    pub(super) fn new() -> Self {
        Self {
            look: Attempt::new(Op::Look),
            next_id: 0,
            begun: Instant::now(),
            answers: None,
            unanswered: 0,
        }
    }

    /// The peer has said anew where to look.
    pub(super) fn forget(&mut self) {
        self.answers = None;
    }

    /// How long the host takes for an answer; none if it has never given one over this link.
    fn answers(&self, link: u64) -> Option<Duration> {
        let (over, time) = self.answers?;
        (over == link).then_some(time)
    }
}

impl Driver<'_> {
    /// The link that is watched, how long it has been quiet, and after how much of that the peer is suspected.
    fn watched(&self) -> Option<(u64, Duration, Duration)> {
        let after = self.config.suspect?;
        let link = self.network.link.as_ref()?;
        let follows = matches!(self.twin.role(), Role::Protected | Role::Synced);
        // Without an arbiter nobody goes on by itself: there is no hurry. Who does not listen hears nothing.
        let wanted = follows && link.verified && self.arbiter.is_some() && self.behind.is_none();
        wanted.then(|| (link.id, link.quiet(), after))
    }

    /// Looks whether the host of a quiet peer is there.
    pub(super) fn watch_peer(&mut self) -> Result<(), Error> {
        self.missed.make_room();
        let now = Instant::now();
        let until = self.suspicion.look.deadline(false);
        // Also if nobody is watched any more: it would never end by itself.
        let expired = self.suspicion.look.expire(&mut self.ring, now);
        let expired = expired.map_err(Error::Ring)?;
        let (Some((link, quiet, after)), Some(beacon)) = (self.watched(), self.missed.peer())
        else {
            self.suspicion.unanswered = 0;
            return Ok(());
        };
        let suspicion = &mut self.suspicion;
        let answers = suspicion.answers(link);
        if answers.is_some() && quiet < after {
            suspicion.unanswered = 0;
            return Ok(());
        }
        if expired && until.is_some_and(|until| now < until + LATE) {
            suspicion.unanswered += 1;
        }
        let Some(time) = answers else {
            if expired {
                suspicion.look.pause_until(now + FIRST_PAUSE);
            }
            suspicion.unanswered = 0;
            return self.look(beacon, now, FIRST_PATIENCE);
        };
        if suspicion.unanswered >= LOOKS {
            suspicion.unanswered = 0;
            self.peer_is_unreachable();
            return Ok(());
        }
        let patience = (self.config.heartbeat * 3 / 10).max(time * 4);
        self.look(beacon, now, patience)
    }

    fn look(&mut self, beacon: SocketAddr, now: Instant, patience: Duration) -> Result<(), Error> {
        let suspicion = &mut self.suspicion;
        if !suspicion.look.due(now) {
            return Ok(());
        }
        suspicion.next_id += 1;
        suspicion.begun = now;
        let id = suspicion.next_id;
        let begun = suspicion
            .look
            .begin(&mut self.ring, beacon, id, now + patience);
        if let Err(error) = begun {
            debug!(%error, "the peer's host can't be looked for");
            suspicion.unanswered += 1;
            suspicion.look.pause_until(now + patience);
        }
        Ok(())
    }

    /// A look has ended.
    pub(super) fn looked(&mut self, completion: &Completion) {
        let suspicion = &mut self.suspicion;
        let now = Instant::now();
        let Some(seen) = suspicion.look.ended(completion, now, PAUSE) else {
            return;
        };
        match seen {
            // Also if there is no such port any more: then the link ends soon.
            Err(error) if error.kind() != std::io::ErrorKind::ConnectionRefused => {
                suspicion.unanswered += 1;
            }
            _ => {
                suspicion.unanswered = 0;
                let link = self.network.link.as_ref().map(|link| link.id);
                let took = now - suspicion.begun;
                suspicion.answers = link.map(|link| (link, took));
            }
        }
    }

    fn peer_is_unreachable(&mut self) {
        if self.config.has_paths() {
            self.lose_link("the peer's host does not answer on this path");
        } else {
            self.inputs.push_back(Input::Unreachable);
        }
    }

    /// When to look again.
    pub(super) fn next_look_at_host(&self) -> Option<Instant> {
        let running = self.suspicion.look.deadline(false);
        let Some((link, quiet, after)) = self.watched() else {
            return running;
        };
        self.missed.peer()?;
        let next = self.suspicion.look.deadline(true)?;
        match self.suspicion.answers(link) {
            Some(_) => Some(next.max(Instant::now() + after.saturating_sub(quiet))),
            None => Some(next),
        }
    }
}
