//! Doing what the core says, in the way of the production driver (`replicator/src/driver`).

use evertwin_protocol::{Action, Envelope, Input, Message, Report, Request, Status};

use crate::check::{Invariant, check_speed, demand};
use crate::host::Round;
use crate::machine::{ALL_BLOCKS, Load};
use crate::network::Frame;
use crate::queue::Event;
use crate::world::{MICRO, MILLI, World};

/// More actions than any input has: something spins.
const MOST_ACTIONS: u32 = 1_000;

/// Pages that go into one part of a sync round.
const PART: u32 = 6;

/// The lowest bit of some.
fn lowest(bits: u16) -> u16 {
    bits & bits.wrapping_neg()
}

impl World<'_> {
    /// Gives the core an input, and does what it says until all is done.
    pub(crate) fn input(&mut self, host: usize, input: Input) {
        let Some(process) = &mut self.hosts[host].process else {
            return;
        };
        process.inputs.push_back(input);
        if std::mem::replace(&mut process.busy, true) {
            return;
        }
        let life = process.life;
        let mut actions = 0;
        while let Some(input) = self.next_input(host, life) {
            let time = self.hosts[host].time(self.now);
            let Some(process) = &mut self.hosts[host].process else {
                return;
            };
            process.twin.handle(time, input);
            while let Some(action) = self.next_action(host, life) {
                actions += 1;
                let calm = actions < MOST_ACTIONS;
                self.judge(demand(calm, Invariant::Bounds, || {
                    format!("there is no end to what host {host} does")
                }));
                if self.violation.is_some() {
                    return;
                }
                self.act(host, action);
            }
        }
        if self.hosts[host].lives(life) {
            self.look_at_speed(host);
            self.flush(host);
            if let Some(process) = &mut self.hosts[host].process {
                process.busy = false;
            }
            self.schedule_tick(host);
            self.schedule_probe(host, self.now);
        }
    }

    fn next_input(&mut self, host: usize, life: u32) -> Option<Input> {
        let process = self.hosts[host].process.as_mut()?;
        (process.life == life).then(|| process.inputs.pop_front())?
    }

    /// The next action, unless this is where the twin dies.
    fn next_action(&mut self, host: usize, life: u32) -> Option<Action> {
        let place = &mut self.hosts[host];
        let process = place.process.as_mut()?;
        if process.life != life {
            return None;
        }
        let action = process.twin.poll_action()?;
        self.tally.actions[host] += 1;
        if let Some(armed) = &mut place.armed {
            if armed.after == 0 {
                self.note(|| format!("host {host} dies before {action:?}"));
                self.tear(host, action);
                self.crash(host);
                return None;
            }
            armed.after -= 1;
        }
        Some(action)
    }

    /// Dying within an epoch's application leaves a part of its writes on the disk.
    fn tear(&mut self, host: usize, action: Action) {
        let place = &mut self.hosts[host];
        if let (Action::Apply(_), Some(process)) = (action, &place.process) {
            let load = self.loads[process.received as usize];
            let some = place.random.below(256) as u8;
            place.disk.repeat(load.blocks & some, &load.disk);
        }
    }

    fn schedule_tick(&mut self, host: usize) {
        let now = self.now;
        let place = &self.hosts[host];
        let Some(process) = &place.process else {
            return;
        };
        let Some(time) = process.twin.poll_timeout() else {
            return;
        };
        // A deadline that stays in the past shows as too many events.
        let at = now + place.until(time, now).max(10 * MICRO);
        // A tick that was asked for before may come as well: it does no harm.
        if at < process.next_tick || process.next_tick <= now {
            let life = process.life;
            if let Some(process) = &mut self.hosts[host].process {
                process.next_tick = at;
            }
            self.queue.push(at, Event::Tick { host, life });
        }
    }

    fn act(&mut self, host: usize, action: Action) {
        match action {
            Action::Send(Envelope {
                message: Message::Heartbeat,
                ..
            }) => {}
            action => self.note(|| format!("host {host}: {action:?}")),
        }
        let now = self.now;
        let me = self.names[host];
        let place = &mut self.hosts[host];
        let clock = place.clock_us(now);
        let Some(process) = &mut place.process else {
            return;
        };
        let machine = &mut process.machine;
        match action {
            Action::Send(envelope) => {
                let generation = envelope.generation;
                let verdict = match envelope.message {
                    Message::Ack => {
                        process.promised = Some((generation, envelope.epoch));
                        let held = process.whole;
                        self.commits.acknowledged(held, generation, envelope.epoch)
                    }
                    Message::Hello(Status::Synced { epoch }) => {
                        self.commits.greeted(process.promised, generation, epoch)
                    }
                    _ => Ok(()),
                };
                self.judge(verdict);
                self.queue_frame(host, envelope, None);
            }
            Action::Close(_) => self.cut_link(host),
            Action::Ask(request) => {
                if let Request::Swap {
                    expected: Some(expected),
                    new,
                } = request
                    && new.standby.is_some()
                    && expected.releaser == new.releaser
                {
                    let ready = process.acknowledged && !machine.open;
                    self.judge(demand(ready, Invariant::EligibleStandby, || {
                        format!("{me} names a standby that does not hold what it releases")
                    }));
                }
                self.ask(host, request);
            }
            Action::Boot => self.boot(host),
            Action::HoldOutput => machine.open = false,
            Action::OpenOutput => {
                machine.open = true;
                self.release(host, None);
            }
            Action::Release(epoch) => {
                let generation = process.twin.generation();
                let mut verdict = self.commits.released(generation, epoch);
                if self.schedule.arbiter {
                    verdict = verdict.and(self.rights.released_gated(generation));
                }
                self.judge(verdict);
                self.liveness.released(host);
                self.release(host, Some(epoch));
            }
            Action::StartTracking => {
                process.acknowledged = false;
                machine.start_tracking();
                self.tracking(host);
            }
            Action::StopTracking => {
                machine.stop_tracking();
                process.round.number += 1;
                process.outbox.retain(|frame| frame.load == 0);
            }
            Action::SendMemory(generation) => {
                // The blocks go with the first part.
                let pages = if self.schedule.ha { 1 } else { u16::MAX };
                self.begin_round(host, generation, pages, ALL_BLOCKS);
            }
            Action::SendHarvest(generation) => {
                let pages = machine.harvest;
                self.begin_round(host, generation, pages, 0);
            }
            Action::Harvest => {
                if self.tracking(host)
                    && let Some(process) = &mut self.hosts[host].process
                {
                    let pages = process.machine.harvest();
                    process.inputs.push_back(Input::Harvested(pages));
                }
            }
            Action::KeepHarvest => machine.redirty(),
            Action::SlowGuest(percent) => {
                machine.slowed = percent;
                self.tally.slowed += u64::from(percent > 0);
            }
            Action::Lease(until) => {
                machine.lease = until;
                self.speak(host);
            }
            Action::StopGuest => machine.stopped = true,
            Action::ContinueGuest => {
                machine.stopped = false;
                self.speak(host);
            }
            Action::Peek => {
                let dirty = machine.harvest() > 0;
                machine.redirty();
                process.inputs.push_back(Input::Dirty(dirty));
            }
            Action::DropOutput => machine.drop_output(),
            Action::Note(record) => place.noted = Some(record),
            Action::Capture(epoch) | Action::CaptureLast(epoch) => {
                if place.capture_fails > 0 {
                    place.capture_fails -= 1;
                    process.inputs.push_back(Input::CaptureFailed);
                    return;
                }
                let idle = machine.capture(epoch, &place.disk, clock);
                if matches!(action, Action::CaptureLast(_)) {
                    machine.stay(clock);
                    process.promised = Some((process.twin.generation(), epoch));
                }
                process.inputs.push_back(Input::Captured { epoch, idle });
                let bounded = machine.in_flight() as u64 <= self.schedule.window;
                self.judge(demand(bounded, Invariant::Bounds, || {
                    format!("{me} has more than its window of epochs in flight")
                }));
            }
            Action::Ship { generation, epoch } => {
                let load = machine.shipment(epoch);
                process.shipped = epoch;
                if self.loses_epoch(host) {
                    return;
                }
                if let Some(load) = load {
                    let envelope = Envelope {
                        generation,
                        epoch,
                        message: Message::Epoch,
                    };
                    self.queue_frame(host, envelope, Some(load));
                }
            }
            Action::Committed(epoch) => {
                machine.committed(epoch);
                let generation = process.twin.generation();
                let verdict = self.commits.dropped(generation, epoch);
                self.judge(verdict);
            }
            Action::Expect(_) => {
                machine.standing = None;
                process.whole = None;
                place.disk.clear();
                self.liveness.begins(host);
            }
            Action::Store => {
                let load = &self.loads[process.received as usize];
                machine.store(load);
                place.disk.repeat(load.blocks, &load.disk);
            }
            Action::Apply(_) => self.apply(host),
            Action::Promote => self.promote(host),
            Action::Fence => machine.fence(),
            Action::Report(report) => self.report(host, report),
            Action::End(_) => {
                self.look_at_speed(host);
                self.end(host);
            }
        }
    }

    fn look_at_speed(&mut self, host: usize) {
        if let Some(process) = &self.hosts[host].process {
            self.judge(check_speed(process.twin.role(), process.machine.slowed));
        }
    }

    /// Tracking and harvests may fail; then there can be no standby, and the link goes.
    fn tracking(&mut self, host: usize) -> bool {
        if !std::mem::take(&mut self.hosts[host].tracking_fails) {
            return true;
        }
        self.note(|| format!("host {host} can't track"));
        self.lose_link(host, Input::LinkDown);
        false
    }

    /// A sender's mistake. No number tells a standby that the first epoch of a sync is missing,
    /// so that one is never left out. The connection ends soon: nothing else would.
    fn loses_epoch(&mut self, host: usize) -> bool {
        let process = self.hosts[host].process.as_ref();
        let follows = process.is_some_and(|process| process.acknowledged);
        let lost = follows && std::mem::take(&mut self.hosts[host].lose_epoch);
        if lost {
            self.note(|| "the epoch is left out".to_owned());
            self.cut_both(20 * MILLI);
        }
        lost
    }

    fn queue_frame(&mut self, host: usize, envelope: Envelope, load: Option<Load>) {
        let Some(process) = &mut self.hosts[host].process else {
            return;
        };
        if process.link.is_none() {
            return;
        }
        let number = match load {
            None => 0,
            Some(load) => {
                self.loads.push(load);
                (self.loads.len() - 1) as u32
            }
        };
        process.outbox.push(Frame {
            envelope,
            load: number,
        });
    }

    fn begin_round(&mut self, host: usize, generation: u64, pages: u16, blocks: u8) {
        if let Some(process) = &mut self.hosts[host].process {
            let number = process.round.number + 1;
            process.round = Round {
                number,
                generation,
                pages,
                blocks,
            };
            let life = process.life;
            let event = Event::Round {
                host,
                life,
                round: number,
            };
            self.queue.push(self.now + 200 * MICRO, event);
        }
    }

    /// Sends the next part of a sync round. The guest runs meanwhile: what it writes to pages
    /// that were sent is dirty, and its disk's writes follow.
    pub(crate) fn round(&mut self, host: usize, life: u32, round: u32) {
        let place = &mut self.hosts[host];
        let Some(process) = &mut place.process else {
            return;
        };
        if process.life != life || process.round.number != round {
            return;
        }
        let Round {
            generation,
            pages: left,
            blocks,
            ..
        } = process.round;
        if left == 0 {
            return self.input(host, Input::RoundSent);
        }
        let pages = if left.count_ones() > PART {
            // The lowest ones.
            (0..PART).fold(0, |part, _| part | lowest(left & !part))
        } else {
            left
        };
        process.round.pages &= !pages;
        process.round.blocks = 0;
        let load = process.machine.read(pages, blocks, &place.disk);
        let envelope = Envelope {
            generation,
            epoch: 0,
            message: Message::SyncPages,
        };
        self.queue_frame(host, envelope, Some(load));
        self.flush(host);
        let pause = self.hosts[host].random.between(500, 4_000) * MICRO;
        let event = Event::Round { host, life, round };
        self.queue.push(self.now + pause, event);
    }

    fn report(&mut self, host: usize, report: Report) {
        match report {
            Report::StandbyReady(_) => self.liveness.ready(host),
            Report::Protected(_) => self.tally.protected += 1,
            Report::Fenced => self.tally.fenced += 1,
            Report::HandedOver(_) => self.tally.handovers += 1,
            _ => {}
        }
    }

    /// The twin leaves by itself, once what is queued was sent. Somebody starts it again.
    fn end(&mut self, host: usize) {
        self.flush(host);
        self.leave(host);
        let back = self.hosts[host].random.between(1, 100) * MILLI;
        self.queue.push(self.now + back, Event::Start { host });
    }
}
