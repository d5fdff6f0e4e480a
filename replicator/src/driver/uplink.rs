//! A primary whose uplink has lost its carrier hands its guest over: the standby's may be good (PROTOCOL.md §6.3).

use std::time::{Duration, Instant};

use evertwin_protocol::Role;
use tracing::{error, info, warn};

use super::Driver;
use crate::control::{PeerUplinks, UplinkStatus};
use crate::uplink::{Uplink, Watched};
use crate::wire::{self, Header, UPLINK, VERSION, WireError, uplinks_frame};

/// Time between two looks.
const EVERY: Duration = Duration::from_millis(100);
/// How long a guest stays that has just come, or was to go and did not.
const REST: Duration = Duration::from_secs(10);

/// What this twin knows of both hosts' uplinks.
pub(super) struct Uplinks {
    watched: Vec<Watched>,
    next: Instant,
    /// What the peer has said, over this link.
    peer: Option<PeerUplinks>,
    /// The same, over whatever link it was: it is told to the operator when it changes.
    reported: Option<PeerUplinks>,
    /// Why the guest stays on a host without uplink: what the operator was told.
    stays: Option<Stays>,
    rests_until: Option<Instant>,
}

/// Why a guest stays on a host whose uplink is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stays {
    /// Its memory is not replicated.
    NotMovable,
    NoStandby,
    /// The peer has no uplink either.
    PeerLost,
    /// The peer has not said whether it has.
    PeerUnknown,
}

impl Uplinks {
    pub(super) fn new(uplinks: Vec<Uplink>) -> Self {
        Self {
            watched: uplinks.into_iter().map(Watched::new).collect(),
            next: Instant::now(),
            peer: None,
            reported: None,
            stays: None,
            rests_until: None,
        }
    }

    /// There is a new link: what was said over the last one may be so no longer.
    pub(super) fn peer_greets(&mut self) {
        self.peer = None;
    }

    /// The guest has come to this host just now.
    pub(super) fn guest_came(&mut self) {
        self.rest(Instant::now());
    }

    fn rest(&mut self, now: Instant) {
        self.rests_until = Some(now + REST);
    }

    fn ours(&self) -> PeerUplinks {
        let good = |watched: &Watched| watched.is_good() || !watched.hands_over();
        let lost = self.watched.iter().filter(|watched| !watched.is_good());
        let lost: Vec<&str> = lost.map(Watched::name).collect();
        PeerUplinks {
            good: self.watched.iter().all(good),
            lost: lost.join(", "),
        }
    }

    /// A lost uplink for which the guest is handed over, if there is one: rather one that has no carrier now.
    fn lost(&self) -> Option<&Watched> {
        let counts = |watched: &&Watched| watched.hands_over() && !watched.is_good();
        let lost = self.watched.iter().filter(counts);
        lost.min_by_key(|watched| watched.has_carrier())
    }

    /// Whether a guest would find its uplinks at the peer. Who has not said so is not believed to have them.
    fn peer_is_good(&self) -> Option<bool> {
        fail::fail_point!("uplink::unheard", |_| Some(true));
        Some(self.peer.as_ref()?.good)
    }
}

impl Driver<'_> {
    /// When the uplinks are to be looked at next.
    pub(super) fn next_look_at_uplinks(&self) -> Option<Instant> {
        (!self.uplinks.watched.is_empty()).then_some(self.uplinks.next)
    }

    /// Looks at this host's uplinks, if it is time, and does what follows from it.
    pub(super) fn watch_uplinks(&mut self) {
        let now = Instant::now();
        if self.next_look_at_uplinks().is_none_or(|next| now < next) {
            return;
        }
        self.uplinks.next = now + EVERY;
        let mut changed = false;
        for watched in &mut self.uplinks.watched {
            let Some(good) = watched.look(now) else {
                continue;
            };
            changed = true;
            let uplink = watched.name();
            if good {
                info!(uplink, "an uplink has its carrier back");
            } else {
                warn!(
                    uplink,
                    "an uplink has lost its carrier: check its cable and its switch, and whether the interface is there and up"
                );
            }
        }
        if changed {
            self.tell_uplinks();
        }
        self.leave_lost_uplink(now);
    }

    /// Tells the peer of this host's uplinks, once both have greeted.
    pub(super) fn tell_uplinks(&mut self) {
        let seen = self.uplinks.watched.first().is_some_and(Watched::was_seen);
        if !seen || self.peer_version.min(VERSION) < UPLINK {
            return;
        }
        let ours = self.uplinks.ours();
        let generation = self.twin.generation();
        if let Some(link) = &mut self.network.link
            && link.verified
            && link.greeted
        {
            link.queue_control(uplinks_frame(generation, &ours));
        }
    }

    /// The peer tells of its uplinks.
    pub(super) fn take_uplinks(&mut self, header: Header, payload: &[u8]) -> Result<(), WireError> {
        let said = wire::uplinks(payload).ok_or(WireError::Malformed(header.kind))?;
        let peer = self.config.peer;
        if self.uplinks.reported.as_ref() != Some(&said) {
            if said.lost.is_empty() {
                info!(%peer, "the peer's uplinks have carrier");
            } else {
                warn!(%peer, uplinks = said.lost, "uplinks of the peer's have lost their carrier");
            }
            self.uplinks.reported = Some(said.clone());
        }
        self.uplinks.peer = Some(said);
        Ok(())
    }

    /// Hands the guest over if it can reach nobody here, and can there.
    fn leave_lost_uplink(&mut self, now: Instant) {
        let Some(lost) = self.uplinks.lost().filter(|_| self.runs_guest()) else {
            self.uplinks.stays = None;
            return;
        };
        if lost.has_carrier() {
            // It needs its time until it counts as good, but it is no reason to go.
            return;
        }
        let uplink = lost.name().to_owned();
        let stays = if self.config.lease.is_some() {
            Some(Stays::NotMovable)
        } else if self.twin.role() != Role::Protected {
            Some(Stays::NoStandby)
        } else {
            match self.uplinks.peer_is_good() {
                Some(true) => None,
                Some(false) => Some(Stays::PeerLost),
                None => Some(Stays::PeerUnknown),
            }
        };
        if let Some(why) = stays {
            self.tell_stays(&uplink, why);
            return;
        }
        let rests = self.uplinks.rests_until.is_some_and(|until| now < until);
        if rests || !self.can_exchange_roles() {
            return;
        }
        let peer = self.config.peer;
        error!(uplink, %peer, "an uplink has no carrier here: the guest goes on at the peer");
        // Should it be refused, it is not asked for again at once.
        self.uplinks.rest(now);
        self.exchange_roles();
    }

    /// Said once for each reason.
    fn tell_stays(&mut self, uplink: &str, why: Stays) {
        if self.uplinks.stays.replace(why) == Some(why) {
            return;
        }
        let peer = self.config.peer;
        match why {
            Stays::NotMovable => warn!(
                uplink,
                "an uplink has no carrier here, and the guest stays: its memory is not replicated, so it can't be handed over"
            ),
            Stays::NoStandby => warn!(
                uplink,
                %peer,
                "an uplink has no carrier here, and the guest stays: there is no standby in step"
            ),
            Stays::PeerLost => warn!(
                uplink,
                %peer,
                "an uplink has no carrier here, and the guest stays: the peer's has none either"
            ),
            Stays::PeerUnknown => warn!(
                uplink,
                %peer,
                "an uplink has no carrier here, and the guest stays: the peer has not said whether its own has; give it the same configuration and release"
            ),
        }
    }

    /// What an operator is told of this host's uplinks.
    pub(super) fn uplink_status(&self) -> Vec<UplinkStatus> {
        let status = |watched: &Watched| UplinkStatus {
            name: watched.name().to_owned(),
            carrier: watched.has_carrier(),
            good: watched.is_good(),
        };
        self.uplinks.watched.iter().map(status).collect()
    }

    /// And of the peer's, if it has said anything over this link.
    pub(super) fn peer_uplinks(&self) -> Option<PeerUplinks> {
        let link = self.network.link.as_ref();
        link.filter(|link| link.verified)?;
        self.uplinks.peer.clone()
    }
}
