//! A peer that is missed: is it dead, or will it be back?

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use evertwin_protocol::Input;
use tracing::{info, warn};

use super::Driver;
use crate::beacon::{Beacon, Probe};
use crate::config::Error;
use crate::ring::Completion;
use crate::wire::{self, BEACON, Header, VERSION, WireError, beacon_frame};

/// Room is made so often for those who look at this twin. A peer looks 50 times a second, and there is room for 128.
const ROOM: Duration = Duration::from_secs(1);

/// What each twin knows of the other's life beside their link (PROTOCOL.md §6.1).
pub(super) struct Missed {
    beacon: Beacon,
    probe: Probe,
    /// Where the peer can be looked for.
    peer: Option<SocketAddr>,
    /// When room was made for those who look.
    roomy: Instant,
}

impl Missed {
    pub(super) fn new() -> Self {
        Self {
            beacon: Beacon::default(),
            probe: Probe::new(),
            peer: None,
            roomy: Instant::now(),
        }
    }

    /// Where the peer can be looked for.
    pub(super) fn peer(&self) -> Option<SocketAddr> {
        self.peer
    }

    /// Makes room for those who look, now and then: where there is none nobody is answered.
    pub(super) fn make_room(&mut self) {
        if self.roomy.elapsed() >= ROOM {
            self.roomy = Instant::now();
            self.beacon.make_room();
        }
    }
}

impl Driver<'_> {
    /// Tells the peer where to look for this twin, once both have greeted.
    pub(super) fn tell_beacon(&mut self) {
        if self.peer_version.min(VERSION) < BEACON {
            // It neither looks nor can be looked for.
            self.missed.peer = None;
            return;
        }
        let Some(link) = &mut self.network.link else {
            return;
        };
        if !(link.verified && link.greeted) {
            return;
        }
        let at = link.local_address();
        match at.and_then(|at| self.missed.beacon.address(at)) {
            Ok(beacon) => link.queue_control(beacon_frame(beacon)),
            Err(error) => {
                warn!(%error, "no port for the peer to look at: it takes a broken link for a death")
            }
        }
    }

    /// The peer says where to look for it.
    pub(super) fn take_beacon(&mut self, header: Header, payload: &[u8]) -> Result<(), WireError> {
        let mut beacon = wire::beacon(payload).ok_or(WireError::Malformed(header.kind))?;
        if let Some(link) = &self.network.link
            && link.address.ip() == beacon.ip()
        {
            // With the scope that an address of the local link needs here.
            let port = beacon.port();
            beacon = link.address;
            beacon.set_port(port);
        }
        self.missed.peer = Some(beacon);
        self.suspicion.forget();
        Ok(())
    }

    /// Looks for a peer that is missed.
    pub(super) fn look_for_peer(&mut self) -> Result<(), Error> {
        if !self.twin.misses_peer() {
            return Ok(());
        }
        let Some(beacon) = self.missed.peer else {
            // Nothing would ever tell: who breaks a link is dead, as a rule.
            if self.config.reconnect.is_none() && !self.config.has_paths() {
                self.inputs.push_back(Input::PeerDead);
            }
            return Ok(());
        };
        let probe = &mut self.missed.probe;
        let turn = probe.turn(&mut self.ring, beacon, Instant::now());
        if turn.map_err(Error::Ring)? {
            self.peer_is_dead();
        }
        Ok(())
    }

    /// A look has ended.
    pub(super) fn looked_for_peer(&mut self, completion: &Completion) {
        if self.missed.probe.ended(completion, Instant::now()) && self.twin.misses_peer() {
            self.peer_is_dead();
        }
    }

    fn peer_is_dead(&mut self) {
        info!(peer = %self.config.peer, "the peer is dead: it is not waited for");
        self.inputs.push_back(Input::PeerDead);
    }

    /// When the next look is due.
    pub(super) fn next_look(&self) -> Option<Instant> {
        let looks = self.twin.misses_peer() && self.missed.peer.is_some();
        looks.then(|| self.missed.probe.deadline()).flatten()
    }
}
