//! Doing what the core says.

use std::sync::Arc;
use std::time::{Duration, Instant};

use evertwin_protocol::{Action, Answer, Envelope, Input, Message};
use tracing::{error, info, warn};

use super::inbound::Kept;
use super::sync::SyncRound;
use super::{Driver, Shipment};
use crate::config::Error;
use crate::crash::crash_point;
use crate::machine::{Capture, MachineError, PAGE_SIZE};
use crate::sent::Position;
use crate::wire::{CHANGES, Change, Delta, Frame, Hello, Kind, VERSION, ship};

/// Buffers of epochs with more page bytes than this are not kept for the next epoch.
const SPARE_BYTES: usize = 32 << 20;

impl Driver<'_> {
    /// `bytes` are the page contents that the last input spoke of.
    pub(super) fn act(&mut self, action: Action, bytes: &[u8]) -> Result<(), Error> {
        match action {
            Action::Send(envelope) => self.send(envelope),
            Action::Close(reason) => {
                self.closing(reason);
                self.network.cut_link();
                self.forget_received();
            }
            Action::Ask(request) => {
                let asked = self.arbiter.as_ref().map(|arbiter| arbiter.ask(request));
                if let Some(answer) = asked.unwrap_or(Some(Answer::Failed)) {
                    self.inputs.push_back(Input::Arbiter(answer));
                }
            }
            Action::Boot => {
                // That of the other twin's guest has been waited for.
                self.lease_end = None;
                self.machine.boot()?;
                crash_point("boot::after");
            }
            Action::HoldOutput => self.machine.hold_output(),
            Action::OpenOutput => {
                self.machine.open_output();
                crash_point("output::opened");
            }
            Action::DropOutput => self.machine.drop_output(),
            Action::Release(epoch) => {
                self.machine.release_through(epoch);
                crash_point("epoch::released");
            }
            Action::StartTracking => {
                self.machine.start_tracking();
                self.starts_tracking = true;
            }
            Action::StopTracking => self.stop_tracking(),
            Action::SendMemory(generation) => {
                let (memory, rate) = (&self.identity.memory, self.config.resync_rate);
                self.sync = Some(SyncRound::everything(generation, memory, rate));
                self.ask_for_held();
                self.crash_point_sent("sync::begun");
            }
            Action::Harvest => {
                let harvested = self.machine.harvest_live(&mut self.harvest);
                if self.or_lose_link(harvested, "dirty pages could not be harvested") {
                    let pages = self.harvest.len() as u64;
                    self.inputs.push_back(Input::Harvested(pages));
                }
            }
            Action::SendHarvest(generation) => {
                let pages = std::mem::take(&mut self.harvest);
                self.sync = Some(SyncRound::harvest(generation, pages, self.slowed));
            }
            Action::KeepHarvest => {
                let pages = self.harvest.len();
                info!(
                    pages,
                    "sync rounds are over: the first epoch carries the rest"
                );
                self.machine.redirty(&self.harvest);
            }
            Action::SlowGuest(percent) => {
                self.slowed = percent;
                self.tell_speed();
                self.machine.slow_guest(percent);
            }
            Action::Lease(until) => {
                self.lease_end = until;
                let until = until.map(|at| Duration::from_nanos(at.as_nanos()));
                self.machine.lease(until);
            }
            Action::StopGuest => self.machine.stop_guest()?,
            Action::ContinueGuest => self.machine.continue_guest()?,
            Action::Peek => {
                let harvested = self.machine.harvest_live(&mut self.harvest);
                if self.or_lose_link(harvested, "dirty pages could not be harvested") {
                    // The next capture carries them (I5).
                    self.machine.redirty(&self.harvest);
                    let dirty = !self.harvest.is_empty();
                    self.inputs.push_back(Input::Dirty(dirty));
                }
            }
            Action::Capture(epoch) => self.capture(epoch, false),
            Action::CaptureLast(epoch) => self.capture(epoch, true),
            Action::Ship { generation, epoch } => self.ship(generation, epoch),
            Action::Committed(epoch) => self.committed(epoch),
            Action::Expect(_) => {
                self.kept = Kept::default();
                self.forget_received();
                self.fit_disks()?;
                self.tell_held()?;
            }
            Action::Store => {
                if let Some(write) = self.disk_part.take() {
                    fail::fail_point!("disk::skip_sync", |_| Ok(()));
                    self.machine.write_disks(&[write])?;
                    crash_point("fill::disks");
                } else {
                    self.machine.zero_pages(&self.pages.zero)?;
                    self.machine.store_pages(&self.pages.full, bytes)?;
                    crash_point("fill::memory");
                }
            }
            Action::Apply(epoch) => self.apply(epoch)?,
            Action::Promote => {
                crash_point("promote::before");
                self.lease_end = None;
                let inbound = self.kept.take();
                // A generation's epochs are numbered anew.
                self.last_epoch = 0;
                // Of a guest that is protected from its first instruction on.
                self.tracking_started();
                self.delay_points();
                self.machine.promote(inbound)?;
                self.refresh_identity();
                crash_point("promote::after");
            }
            Action::Fence => {
                fail::fail_point!("fence::ignore", |_| {
                    self.machine.open_output();
                    Ok(())
                });
                self.machine.fence();
            }
            Action::Note(record) => self.note(record)?,
            Action::Report(report) => {
                self.report(report);
                self.give_back_memory(report);
                self.settle(report);
                self.settle_growth();
                self.withhold_failures(report);
            }
            Action::End(end) => self.end(end),
        }
        Ok(())
    }

    fn end(&mut self, end: evertwin_protocol::End) {
        if end == evertwin_protocol::End::Fenced {
            fail::fail_point!("fence::ignore", |_| ());
        }
        self.settle_end(end);
        self.ended = Some(end);
    }

    fn send(&mut self, envelope: Envelope) {
        if envelope.message == Message::Ack {
            fail::fail_point!("epoch::ack_early", |_| ());
        }
        let kind = match envelope.message {
            Message::Hello(status) => {
                let hello = self.hello(status).encode();
                self.queue(Frame::new(Kind::Hello, envelope.generation, 0, &hello));
                if let Some(link) = &mut self.network.link {
                    link.greeted = true;
                }
                self.tell_beacon();
                return self.tell_uplinks();
            }
            Message::SyncBegin => Kind::SyncBegin,
            Message::Ack => Kind::Ack,
            Message::Named => Kind::Named,
            Message::Heartbeat => Kind::Heartbeat,
            Message::Bye => Kind::Bye,
            Message::HandOver => Kind::HandOver,
            Message::TookOver => Kind::TookOver,
            // The core only ever receives these; pages go by `Ship` and `SendMemory`.
            Message::SyncPages | Message::Epoch => return,
        };
        self.queue(Frame::new(kind, envelope.generation, envelope.epoch, &[]));
        match envelope.message {
            Message::Named => self.crash_point_sent("naming::told"),
            Message::HandOver => self.crash_point_sent("handover::offered"),
            Message::TookOver => self.crash_point_sent("handover::took_over"),
            _ => {}
        }
    }

    pub(super) fn queue(&mut self, frame: Frame) {
        if let Some(link) = &mut self.network.link {
            link.queue_control(frame);
        }
    }

    /// What this twin says of itself.
    pub(super) fn hello(&self, status: evertwin_protocol::Status) -> Hello {
        Hello {
            status,
            node: self.config.node,
            peer: self.config.peer,
            identity: self.identity.clone(),
            version: VERSION,
        }
    }

    /// Without tracking there can be no standby: the link is closed, the guest runs on.
    fn or_lose_link(&mut self, result: Result<(), MachineError>, what: &'static str) -> bool {
        if let Err(error) = &result {
            error!(%error, "{what}");
            self.lose_link(what);
        }
        result.is_ok()
    }

    /// The machine may have begun to track: if so, waits for it.
    pub(super) fn tracking_started(&mut self) {
        if std::mem::take(&mut self.starts_tracking) {
            let started = self.machine.tracking_started();
            self.or_lose_link(started, "dirty tracking could not be started");
            self.plan_copies();
        }
    }

    fn stop_tracking(&mut self) {
        self.starts_tracking = false;
        self.sync = None;
        // What was in flight is of no use any more. The next standby gets a full sync, so
        // no page of these harvests is lost (I5).
        self.shipments.clear();
        if let Some(sent) = &mut self.sent {
            sent.forget();
        }
        if let Some(link) = &mut self.network.link {
            link.drop_bulk();
        }
        self.machine.stop_tracking();
    }

    /// `last`: the guest stays where it is.
    fn capture(&mut self, epoch: u64, last: bool) {
        if !last {
            self.begin_point(epoch);
        }
        let mut capture = self.spare_capture();
        let Some(into) = Arc::get_mut(&mut capture) else {
            return self.inputs.push_back(Input::CaptureFailed);
        };
        let captured = if last {
            self.machine.capture_last(epoch, into)
        } else {
            self.machine.capture(epoch, into)
        };
        match captured {
            Ok(()) => {
                let idle = into.pages.is_empty() && into.disk_writes.is_empty();
                self.shipments.push_back(Shipment { epoch, capture });
                self.last_epoch_was.is_now();
                self.inputs.push_back(Input::Captured { epoch, idle });
                if !last {
                    self.settle_sums(epoch, idle);
                }
                crash_point(if last {
                    "handover::captured"
                } else {
                    "epoch::captured"
                });
            }
            Err(error) => {
                warn!(%error, epoch, "the epoch could not be captured; it goes on");
                self.spare.push(capture);
                self.forget_point();
                self.inputs.push_back(Input::CaptureFailed);
            }
        }
    }

    /// Keeps a capture's buffers, unless a rare large epoch has made them so.
    fn recycle(&mut self, capture: Arc<Capture>) {
        if capture.bytes.len() <= SPARE_BYTES {
            self.spare.push(capture);
        }
    }

    fn spare_capture(&mut self) -> Arc<Capture> {
        // Some may still be on their way to a socket.
        let free = self
            .spare
            .iter()
            .position(|capture| Arc::strong_count(capture) == 1);
        free.map_or_else(Arc::default, |index| self.spare.swap_remove(index))
    }

    fn ship(&mut self, generation: u64, epoch: u64) {
        let shipment = self.shipments.iter().find(|entry| entry.epoch == epoch);
        let (Some(shipment), Some(link)) = (shipment, &mut self.network.link) else {
            return;
        };
        let memory = self.identity.memory.iter();
        let memory_pages = memory.map(|region| region.len).sum::<u64>() / PAGE_SIZE as u64;
        let delta = match &mut self.sent {
            Some(sent) if self.peer_version.min(VERSION) >= CHANGES => {
                sent.go_on(Position {
                    link: link.id,
                    generation,
                    epoch,
                });
                Delta::since(sent, &shipment.capture)
            }
            _ => Delta::whole(&shipment.capture),
        };
        let half = half_of(&shipment.capture);
        let mut bytes = 0;
        let queued = ship(
            &shipment.capture,
            delta,
            generation,
            epoch,
            memory_pages,
            |frame| {
                if half.is_none_or(|half| bytes < half) {
                    bytes += frame.len();
                    link.queue_bulk(frame);
                }
            },
        );
        if queued.is_none() {
            let what = "the epoch is larger than an epoch may be: its disk writes or state";
            error!(epoch, "{what}");
            return self.lose_link(what);
        }
        self.tell_point(generation, epoch);
        self.tell_check(generation, epoch);
        if self.network.link.is_some() {
            self.early_release(epoch);
        }
        if half.is_some() {
            self.crash_with_queue_sent();
        }
        self.crash_point_sent("epoch::shipped");
    }

    /// A point to crash at once what is queued has left, as far as the socket takes it.
    pub(super) fn crash_point_sent(&mut self, _name: &str) {
        fail::fail_point!(_name, |_| self.crash_with_queue_sent());
    }

    fn crash_with_queue_sent(&mut self) {
        // Sends are tried at once when they are submitted.
        let _ = self.turn().map(|()| self.ring.submit());
        crate::crash::die();
    }

    /// Nothing, but for a test that breaks I1 on purpose.
    fn early_release(&mut self, _epoch: u64) {
        fail::fail_point!("release::early", |_| self.machine.release_through(_epoch));
    }

    fn committed(&mut self, through: u64) {
        while let Some(shipment) = self
            .shipments
            .pop_front_if(|shipment| shipment.epoch <= through)
        {
            self.recycle(shipment.capture);
        }
        self.last_epoch = through;
        self.growth_committed(through);
        crash_point("epoch::committed");
    }

    fn apply(&mut self, epoch: u64) -> Result<(), Error> {
        // The acknowledgement leaves first: the primary's output need not wait for the copy.
        self.turn()?;
        self.ring.submit().map_err(Error::Ring)?;
        crash_point("epoch::acked");
        let (capture, changes) = self.assembly.epoch();
        let Capture {
            state,
            pages,
            bytes,
            disk_writes,
        } = capture;
        self.machine.store_pages(pages, bytes)?;
        crash_point("epoch::half_applied");
        changes.try_for_each(|change| match change {
            Change::Zero(page) => self.machine.zero_pages(&[page]),
            Change::Part { page, at, bytes } => self.machine.store_part(page, at, bytes),
        })?;
        self.machine.apply(state, disk_writes)?;
        self.assembly.applied();
        self.kept.committed(epoch);
        self.last_epoch = epoch;
        self.applied = Some(Instant::now());
        self.last_epoch_was.is_now();
        crash_point("epoch::applied");
        Ok(())
    }
}

/// Nothing, but for a test that has this twin die with half of an epoch sent: so many bytes.
fn half_of(_capture: &Capture) -> Option<usize> {
    fail::fail_point!("epoch::half_shipped", |_| {
        let Capture { bytes, state, .. } = _capture;
        Some((bytes.len() + state.len()) / 2)
    });
    None
}
