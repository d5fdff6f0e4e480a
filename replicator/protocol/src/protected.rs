//! Running the guest with its output gated on the standby.

use crate::bug::Bug;
use crate::context::{Context, Right};
use crate::event::{Action, CloseReason, Command, End, Envelope, Message, Refusal, Report, Role};
use crate::handover::HandingOver;
use crate::holding::{Holding, Verdict, judge};
use crate::interrupted::Interrupted;
use crate::pace::{Pace, Step};
use crate::record::{Answer, Record, Request};
use crate::solo::Solo;
use crate::state::{Event, Loss, State, out_of_place};
use crate::time::Time;

/// Failed captures in a row after which there is no protecting this guest.
const MAX_FAILURES: u32 = 10;

/// Epochs are captured and shipped; what the standby has acknowledged is released.
#[derive(Debug)]
pub(crate) struct Protected {
    right: Right,
    /// Output was held before the sync: there is no solo right to fall back on.
    gated: bool,
    pace: Pace,
    /// A capture or a look is under way.
    busy: bool,
    /// Captures that failed in a row.
    failures: u32,
    /// The last epoch that committed.
    committed: u64,
    naming: Naming,
    wish: Option<Wish>,
}

/// The operator wants the guest to be handed over.
#[derive(Clone, Copy, Debug)]
struct Wish {
    command: Command,
    /// This twin ends then.
    leave: bool,
    /// The capture that is under way is the last.
    begun: bool,
}

/// How far the standby is named in the arbiter's record (I4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Naming {
    /// The first epoch has not committed yet.
    NotYet,
    /// Asked for this record.
    Asked(Record),
    /// The arbiter failed: it may or may not be written, and is read before anything else.
    Unknown,
    Named,
}

impl Protected {
    /// The output gate is closed. Starts with the epoch that completes the sync.
    pub(crate) fn begin(cx: &mut Context, right: Right, gated: bool) -> State {
        cx.begin_lease();
        let mut state = Self {
            right,
            gated,
            pace: Pace::new(cx.now, &cx.config),
            busy: false,
            failures: 0,
            committed: right.next_epoch - 1,
            naming: Naming::NotYet,
            wish: None,
        };
        state.capture(cx);
        if cx.config.has(Bug::NameBeforeAck) {
            state.name(cx);
        }
        State::Protected(state)
    }

    /// The guest was just taken over from the peer, which holds what this right begins with.
    /// It is named, and dirty pages are tracked.
    pub(crate) fn taken_over(cx: &mut Context, right: Right) -> State {
        cx.send(Message::TookOver, 0);
        cx.report(Report::Protected(right.generation));
        State::Protected(Self {
            right,
            gated: false,
            pace: Pace::new(cx.now, &cx.config),
            busy: false,
            failures: 0,
            committed: 0,
            naming: Naming::Named,
            wish: None,
        })
    }

    pub(crate) fn role(&self) -> Role {
        match self.naming {
            Naming::Named => Role::Protected,
            Naming::NotYet | Naming::Asked(_) | Naming::Unknown => Role::Naming,
        }
    }

    /// Hands the guest over to the standby, once the running capture is done (T25).
    pub(crate) fn hand_over(mut self, cx: &mut Context, command: Command, leave: bool) -> State {
        if cx.config.lease.is_some() {
            cx.refuse(command, Refusal::NotReplicated);
        } else if self.naming != Naming::Named {
            cx.refuse(command, Refusal::NotProtected);
        } else if self.wish.is_some() {
            cx.refuse(command, Refusal::Busy);
        } else {
            self.wish = Some(Wish {
                command,
                leave,
                begun: false,
            });
            self.pump(cx);
        }
        State::Protected(self)
    }

    pub(crate) fn deadline(&self, cx: &Context) -> Option<Time> {
        self.may_capture(cx).then(|| self.pace.due(&cx.config))
    }

    pub(crate) fn step(mut self, cx: &mut Context, event: Event) -> State {
        match event {
            Event::Captured { epoch, idle } => {
                self.settle(event);
                self.pace.captured(cx.now, idle, &cx.config);
                cx.act(Action::Ship {
                    generation: self.right.generation,
                    epoch,
                });
                if cx.config.has(Bug::ReleaseOnShip) && self.naming == Naming::Named {
                    cx.act(Action::Release(epoch));
                }
                if cx.config.has(Bug::DropHarvestEarly) {
                    cx.act(Action::Committed(epoch));
                }
                if let Some(wish) = self.wish.filter(|wish| wish.begun) {
                    return HandingOver::begin(cx, self.right, epoch, self.committed, wish.leave);
                }
            }
            Event::CaptureFailed => {
                self.settle(event);
                if let Some(wish) = self.wish.take() {
                    cx.refuse(wish.command, Refusal::NoCapture);
                }
                if self.failures == MAX_FAILURES {
                    // Output is not to be held for ever.
                    cx.close(CloseReason::NoCapture);
                }
                self.pace.failed(cx.now, &cx.config);
            }
            Event::Dirty(dirty) => {
                self.settle(event);
                if dirty {
                    self.pace.found_dirty();
                } else {
                    self.pace.looked(cx.now, &cx.config);
                }
            }
            Event::OutputWaiting => self.output_waits(),
            Event::Message(envelope) => self.hear(cx, envelope),
            Event::Answer(answer) => return self.answered(cx, answer),
            Event::Retry => cx.ask(Request::Read),
            Event::LinkLost(loss) => return self.unlink(cx, loss),
            Event::GuestExited => return self.leave(cx),
            Event::Tick
            | Event::Peer(_)
            | Event::RoundSent
            | Event::Harvested(_)
            | Event::PeerDead
            | Event::Operator(_) => {}
        }
        self.pump(cx);
        State::Protected(self)
    }

    /// What was under way has ended.
    pub(crate) fn settle(&mut self, event: Event) {
        self.busy = false;
        match event {
            Event::Captured { epoch, .. } => {
                self.failures = 0;
                self.right.next_epoch = epoch + 1;
            }
            Event::CaptureFailed => self.failures += 1,
            _ => {}
        }
    }

    pub(crate) fn output_waits(&mut self) {
        self.pace.output_waits();
    }

    /// Is this the last epoch that committed, or one after it?
    pub(crate) fn sent(&self, epoch: u64) -> bool {
        (self.committed..self.right.next_epoch).contains(&epoch)
    }

    /// The standby is back and holds all epochs up to this one. It gets those that it lacks (T38).
    pub(crate) fn resume(mut self, cx: &mut Context, held: u64) -> State {
        cx.report(Report::Resumed(self.right.generation));
        if held > self.committed {
            self.commit(cx, held);
        }
        let lacking = if cx.config.has(Bug::ResumeLacking) {
            0..0
        } else {
            held + 1..self.right.next_epoch
        };
        for epoch in lacking {
            cx.act(Action::Ship {
                generation: self.right.generation,
                epoch,
            });
        }
        self.pump(cx);
        State::Protected(self)
    }

    fn may_capture(&self, cx: &Context) -> bool {
        // Back-pressure: a slow link or standby makes epochs longer, not queues.
        let in_flight = self.right.next_epoch - 1 - self.committed;
        !self.busy && in_flight < cx.config.window
    }

    fn pump(&mut self, cx: &mut Context) {
        if !self.may_capture(cx) {
            return;
        }
        if let Some(wish) = &mut self.wish {
            wish.begun = true;
            self.busy = true;
            let epoch = self.right.next_epoch;
            return cx.act(if cx.config.has(Bug::GuestRunsOn) {
                Action::Capture(epoch)
            } else {
                Action::CaptureLast(epoch)
            });
        }
        match self.pace.step(cx.now, &cx.config) {
            Some(Step::Capture) => self.capture(cx),
            Some(Step::Peek) => {
                self.busy = true;
                cx.act(Action::Peek);
            }
            None => {}
        }
    }

    fn capture(&mut self, cx: &mut Context) {
        self.busy = true;
        self.pace.begins(cx.now);
        cx.lease_captures(self.right.next_epoch);
        cx.act(Action::Capture(self.right.next_epoch));
    }

    fn hear(&mut self, cx: &mut Context, envelope: Envelope) {
        let epoch = envelope.epoch;
        match envelope.message {
            Message::Ack if epoch > self.committed && epoch < self.right.next_epoch => {
                self.commit(cx, epoch);
            }
            // The standby leaves.
            Message::Bye => cx.close(CloseReason::PeerLeft),
            other => out_of_place(cx, other),
        }
    }

    /// An epoch has committed: its output may leave, if the standby could take over (I1, T12).
    fn commit(&mut self, cx: &mut Context, epoch: u64) {
        self.committed = epoch;
        cx.extend_lease(epoch);
        // Only now is this harvest dropped (I5).
        cx.act(Action::Committed(epoch));
        match self.naming {
            Naming::Named => cx.act(Action::Release(self.committed)),
            // The standby is synced and all output is gated on it: now it is eligible (I4, T10).
            // Output waits until the arbiter knows.
            Naming::NotYet if cx.config.arbiter => self.name(cx),
            Naming::NotYet => self.protected(cx),
            Naming::Asked(_) | Naming::Unknown if cx.config.has(Bug::ReleaseBeforeNamed) => {
                cx.act(Action::Release(self.committed));
            }
            Naming::Asked(_) | Naming::Unknown => {}
        }
    }

    fn name(&mut self, cx: &mut Context) {
        let expected = Record::solo(self.right.generation, cx.config.node);
        let new = Record {
            standby: Some(cx.config.peer),
            ..expected
        };
        self.naming = Naming::Asked(new);
        cx.ask(Request::Swap {
            expected: Some(expected),
            new,
        });
    }

    /// The standby is named, and may take over from here on (T11).
    fn protected(&mut self, cx: &mut Context) {
        self.naming = Naming::Named;
        let (me, peer) = (cx.config.node, cx.config.peer);
        cx.note(Record::protected(self.right.generation, me, peer));
        cx.act(Action::Release(self.committed));
        cx.send(Message::Named, 0);
        cx.report(Report::Protected(self.right.generation));
    }

    fn answered(mut self, cx: &mut Context, answer: Answer) -> State {
        let record = match (answer, self.naming) {
            (Answer::Won, Naming::Asked(new)) => Some(new),
            (Answer::Failed, Naming::Asked(new)) if cx.config.has(Bug::NamingFailedIsWon) => {
                Some(new)
            }
            (Answer::Record(record) | Answer::Lost(record), _) => record,
            (Answer::Won | Answer::Failed, _) => {
                self.naming = Naming::Unknown;
                cx.back_off();
                self.pump(cx);
                return State::Protected(self);
            }
        };
        match judge(cx, self.right.generation, record) {
            Verdict::Named => self.protected(cx),
            // Not written. Were it refused though, the arbiter would contradict itself.
            Verdict::Solo(generation)
                if generation == self.right.generation && answer == Answer::Record(record) =>
            {
                self.name(cx);
            }
            Verdict::Solo(_) | Verdict::Unclear => {
                self.naming = Naming::Unknown;
                cx.back_off();
            }
            // T15.
            Verdict::Gone => return cx.fence(),
        }
        self.pump(cx);
        State::Protected(self)
    }

    /// The standby is gone. What it has not acknowledged stays held (I1, T13, T14).
    fn unlink(self, cx: &mut Context, loss: Loss) -> State {
        if let Some(wish) = self.wish {
            cx.refuse(wish.command, Refusal::NotProtected);
        }
        // Without an arbiter a standby is in no hurry, and may not have heard that it is named.
        let reconnects = cx.config.arbiter && !cx.config.reconnect.is_zero();
        let transient = matches!(loss, Loss::Broken | Loss::Faulty);
        if reconnects && transient && self.naming == Naming::Named {
            return Interrupted::begin(cx, Self { wish: None, ..self });
        }
        self.give_up(cx)
    }

    /// The standby will not be back in time (T40).
    pub(crate) fn give_up(self, cx: &mut Context) -> State {
        cx.act(Action::StopTracking);
        if cx.config.has(Bug::SoloOnLinkLoss) {
            cx.act(Action::OpenOutput);
            return Solo::enter(cx, self.right);
        }
        if cx.config.has(Bug::OpenBeforeStrike) {
            cx.act(Action::OpenOutput);
        }
        match self.naming {
            // It was never named: the right to release alone was never given up.
            Naming::NotYet if !self.gated => {
                cx.act(Action::OpenOutput);
                Solo::after_a_sync(cx, self.right)
            }
            _ if !cx.config.arbiter => Holding::for_peer(cx, self.right),
            _ => {
                cx.report(Report::Holding);
                self.strike(cx, None)
            }
        }
    }

    /// The guest has ended. Its last words are released under the solo right (T14).
    pub(crate) fn leave(self, cx: &mut Context) -> State {
        cx.act(Action::StopTracking);
        match self.naming {
            Naming::NotYet if !self.gated => {
                cx.act(Action::OpenOutput);
                cx.send(Message::Bye, 0);
                cx.end(End::GuestExited)
            }
            _ if !cx.config.arbiter => Holding::exited(cx, self.right),
            _ => {
                let deadline = cx.now + cx.config.leave;
                self.strike(cx, Some(deadline))
            }
        }
    }

    fn strike(self, cx: &mut Context, leave_by: Option<Time>) -> State {
        match self.naming {
            Naming::Named => Holding::striking(cx, self.right, leave_by),
            Naming::Asked(new) => Holding::asked(self.right, Some(new), leave_by),
            // A read is under way or will be.
            Naming::NotYet | Naming::Unknown => Holding::asked(self.right, None, leave_by),
        }
    }
}
