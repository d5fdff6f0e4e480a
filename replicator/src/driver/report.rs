//! What the operator is told. Others wait for some of these messages.

use evertwin_protocol::{CloseReason, Report};
use tracing::{error, info, warn};

use super::Driver;
use crate::crash::crash_point;

impl Driver<'_> {
    pub(super) fn report(&mut self, report: Report) {
        let peer = self.config.peer;
        // Said once, and not each time that the arbiter is asked.
        let again = self.reported.replace(report) == Some(report);
        if again
            && matches!(
                report,
                Report::ArbiterFailed | Report::NotNamedYet | Report::WaitingForPeer(_)
            )
        {
            return;
        }
        match report {
            Report::GuestRunning(generation) => info!(generation, "guest running"),
            Report::WaitingForPeer(Some(record)) => info!(
                %peer,
                generation = record.generation,
                releaser = %record.releaser,
                "waiting for the peer: it may hold the guest's newest state"
            ),
            Report::WaitingForPeer(None) => info!(%peer, "waiting for the peer"),
            Report::Syncing(generation) => info!(%peer, generation, "sync begins"),
            Report::Protected(generation) => {
                info!(%peer, generation, protection = self.protection(), "protected");
            }
            Report::Solo(generation) => info!(generation, "solo"),
            Report::Holding => warn!(%peer, "holding output: the peer is gone"),
            Report::StandbyReady(generation) => {
                info!(%peer, generation, "standby ready");
                crash_point("standby::ready");
            }
            Report::NotPromoting => warn!(
                %peer,
                "the primary is gone; without an arbiter nothing is promoted by itself"
            ),
            Report::NotNamed => info!(%peer, "the primary is gone; this twin may not take over"),
            Report::NotNamedYet => info!(
                %peer,
                "the primary is gone; this twin may not take over yet: the arbiter is asked again"
            ),
            Report::Promoting(generation) => {
                info!(%peer, generation, "the primary is gone: asking to take over");
            }
            Report::Promoted(generation) => {
                self.uplinks.guest_came();
                info!(generation, "promoted");
            }
            Report::Lapsing(wait) => {
                self.lease_end = Some(self.now() + wait);
                info!(
                    %peer,
                    wait = humantime(wait),
                    "the guest is booted here when the peer's lease must have run out"
                );
            }
            Report::Stopped => warn!(
                %peer,
                "the guest is stopped until it is clear whose it is"
            ),
            Report::Continued => info!(%peer, "the guest goes on"),
            Report::Fenced => error!(%peer, "fenced"),
            Report::Interrupted => warn!(%peer, "the link broke: waiting for the peer to be back"),
            Report::Resumed(generation) => info!(%peer, generation, "resumed"),
            Report::HandingOver(generation) => info!(%peer, generation, "handing the guest over"),
            Report::HandedOver(generation) => {
                self.forward_for_a_while();
                self.last_epoch = 0;
                info!(%peer, generation, "handed over: this twin is the standby");
            }
            Report::TakenBack(generation) => {
                warn!(%peer, generation, "not handed over: the guest goes on here");
            }
            Report::Refused(command, why) => warn!(?command, ?why, "not done"),
            Report::ArbiterFailed => warn!("the arbiter gave no usable answer; asking again"),
        }
    }

    /// Says how fast the guest may run from now on.
    pub(super) fn tell_speed(&self) {
        let peer = self.config.peer;
        match 100 - self.slowed.min(100) {
            100 => info!(%peer, "the guest runs at full speed again"),
            speed_percent => warn!(
                %peer,
                speed_percent,
                "the guest dirties memory faster than the link takes it: slowed until the standby has caught up"
            ),
        }
    }

    pub(super) fn closing(&self, reason: CloseReason) {
        let Some(link) = &self.network.link else {
            return;
        };
        let peer = link.address;
        match reason {
            CloseReason::Silent => {
                let timeout = humantime(self.config.timeout);
                warn!(%peer, timeout, reason = "the peer is silent", "link down");
            }
            CloseReason::Unreachable => {
                warn!(%peer, reason = "the peer's host does not answer", "link down");
            }
            CloseReason::StaleGeneration => warn!(
                %peer,
                generation = self.twin.generation(),
                reason = "the peer speaks under a right that is not in force",
                "link down"
            ),
            CloseReason::OutOfPlace(message) => {
                warn!(%peer, ?message, reason = "the message has no place here", "link down");
            }
            CloseReason::NoCapture => {
                error!(%peer, reason = "no epoch could be captured", "link down");
            }
            CloseReason::TwoPrimaries(generation) if self.arbiter.is_some() => error!(
                %peer,
                generation,
                reason = "both twins run the guest: the arbiter is asked whose right it is",
                "link down"
            ),
            CloseReason::TwoPrimaries(generation) => error!(
                %peer,
                generation,
                reason = "both twins run the guest: without an arbiter the one of the older generation ends; if it is the same, stop the twin whose state is not to be kept",
                "link down"
            ),
            CloseReason::NotTakenOver => {
                warn!(%peer, reason = "the peer did not take over in time", "link down");
            }
            CloseReason::PeerLeft => info!(%peer, reason = "the peer leaves", "link down"),
        }
    }
}

fn humantime(span: std::time::Duration) -> String {
    format!("{}ms", span.as_millis())
}
