//! Guests: how they start, what they do, and what the world sees of it.

use evertwin_protocol::Input;

use crate::check::{Invariant, Verdict, check_copy, demand};
use crate::machine::Standing;
use crate::queue::Event;
use crate::story::Write;
use crate::world::{MICRO, Phase, World};

impl World<'_> {
    pub(crate) fn boot(&mut self, host: usize) {
        self.tally.boots += 1;
        self.look_at_the_other(host);
        self.last_ran = Some(host);
        let clock = self.hosts[host].clock_us(self.now);
        let place = &mut self.hosts[host];
        let Some(process) = &mut place.process else {
            return;
        };
        let generation = process.twin.generation();
        let moment = self.story.boot(place.disk.contents());
        process.machine.boot(moment, clock);
        let life = process.life;
        self.queue.push(self.now, Event::Step { host, life });
        self.commits.booted(generation);
        let mut verdict: Verdict =
            self.clients
                .booted(&self.story, moment, &self.hosts[host].disk, self.now);
        if self.schedule.arbiter {
            verdict = verdict.and(self.rights.booted(self.names[host], generation));
        }
        self.judge(verdict);
    }

    pub(crate) fn apply(&mut self, host: usize) {
        // The acknowledgement leaves first.
        self.flush(host);
        let place = &mut self.hosts[host];
        let Some(process) = &mut place.process else {
            return;
        };
        let load = &self.loads[process.received as usize];
        let standing = Standing {
            moment: load.moment,
            clock: load.clock,
        };
        process.machine.store(load);
        process.machine.standing = Some(standing);
        place.disk.repeat(load.blocks, &load.disk);
        let verdict = check_copy(&self.story, standing, &process.machine, &place.disk);
        self.judge(verdict);
        self.liveness.applied(host);
    }

    pub(crate) fn promote(&mut self, host: usize) {
        self.tally.promotions += 1;
        self.last_ran = Some(host);
        self.look_at_the_other(host);
        let me = self.names[host];
        let now = self.now;
        let place = &mut self.hosts[host];
        let clock = place.clock_us(now);
        let Some(process) = &mut place.process else {
            return;
        };
        let Some(standing) = process.machine.standing.take() else {
            let what = format!("{me} is promoted without an epoch");
            return self.judge(Err((Invariant::WholeEpochs, what)));
        };
        let generation = process.twin.generation();
        let machine = &process.machine;
        let mut verdict = check_copy(&self.story, standing, machine, &place.disk);
        if self.schedule.arbiter {
            // Who ran the guest here before may take it back.
            let ran = machine.moment != 0;
            verdict = verdict.and(self.rights.promoted(me, generation, machine.open, ran));
        }
        if machine.ha {
            // Only the disk is what it was.
            let moment = self.story.boot(place.disk.contents());
            let seen = self.clients.booted(&self.story, moment, &place.disk, now);
            verdict = verdict.and(seen);
            process.machine.boot(moment, clock);
        } else {
            if machine.open {
                verdict = verdict.and(self.clients.promoted(&self.story, standing.moment));
            }
            process.machine.promote(standing, clock);
        }
        let life = process.life;
        self.queue.push(now, Event::Step { host, life });
        self.judge(verdict);
        if let Phase::LastBlow { survivor, .. } = self.phase
            && survivor == host
        {
            self.phase = Phase::Done;
        }
    }

    /// The guest does something, and mostly tells the world.
    pub(crate) fn step(&mut self, host: usize, life: u32) {
        let now = self.now;
        let place = &mut self.hosts[host];
        let clock_us = place.clock_us(now);
        let paused_until = place.guest_paused_until;
        let Some(process) = &mut place.process else {
            return;
        };
        if process.life != life || !process.machine.running {
            return;
        }
        let random = &mut place.random;
        let pause = random.between(200, self.schedule.step_us) * MICRO;
        self.queue
            .push(now.max(paused_until) + pause, Event::Step { host, life });
        let slowed = process.machine.slowed;
        let stopped = process.machine.stopped;
        if paused_until > now || stopped || slowed > 0 && random.chance(slowed.into()) {
            return;
        }
        let machine = &mut process.machine;
        // Two pages of the guest's own, and one that the devices write to.
        let pages = 1 | 1 << random.below(16) | 1 << random.below(16);
        let write = random.chance(25).then(|| Write {
            block: random.below(4) as u8,
            durable: random.chance(50),
            before: 0,
        });
        let write = write.map(|write| Write {
            before: place.disk.block(write.block),
            ..write
        });
        let clock = machine.clock(clock_us);
        let moment = self.story.step(machine.moment, pages, write, clock);
        machine.went_on(moment, pages, write.map(|write| write.block));
        if let Some(write) = write {
            place.disk.write(write.block, moment);
            if write.durable {
                place.disk.flush();
            }
        }
        let says = write.is_some_and(|write| write.durable) || random.chance(60);
        if !says {
            return;
        }
        // Where only the disks are replicated, nothing waits but the answers to writes.
        let free = machine.ha && write.is_none();
        if machine.open || free {
            let alone = machine.open;
            return self.emit(host, moment, alone);
        }
        if machine.hold(moment) {
            let later = random.chance(30);
            if later {
                let at = now + random.below(300) * MICRO;
                self.queue.push(at, Event::OutputWaits { host, life });
            } else if place.paused_until <= now {
                self.input(host, Input::OutputWaiting);
            } else {
                place.backlog.push(Event::OutputWaits { host, life });
            }
        }
    }

    /// Lets go what is held: all of it, or what was sealed with these epochs.
    pub(crate) fn release(&mut self, host: usize, through: Option<u64>) {
        while let Some(moment) = self.hosts[host]
            .process
            .as_mut()
            .and_then(|process| process.machine.let_go(through))
        {
            self.emit(host, moment, through.is_none());
        }
    }

    /// What the guest was kept from saying is said, if it may now.
    pub(crate) fn speak(&mut self, host: usize) {
        let process = self.hosts[host].process.as_mut();
        for moment in process.map_or_else(Vec::new, |process| process.machine.take_unsaid()) {
            self.emit(host, moment, false);
        }
    }

    /// Nobody boots a guest from its disk while the other host's may run.
    fn look_at_the_other(&mut self, host: usize) {
        let other = &self.hosts[1 - host];
        let Some(process) = other.process.as_ref().filter(|_| self.schedule.ha) else {
            return;
        };
        let machine = &process.machine;
        // One that stands still itself, or comes back at this very instant, can't stop its guest, but keeps it from speaking.
        let silent = other.paused_until >= self.now && !machine.may_speak(other.time(self.now));
        let verdict = demand(
            !machine.running || machine.stopped || silent,
            Invariant::OneGuest,
            || {
                format!(
                    "host {host} runs its guest while that of host {} runs",
                    1 - host
                )
            },
        );
        self.judge(verdict);
    }

    /// Output has left the VM, unless it may not speak.
    fn emit(&mut self, host: usize, moment: u32, alone: bool) {
        let time = self.hosts[host].time(self.now);
        if let Some(process) = &mut self.hosts[host].process
            && !process.machine.may_speak(time)
        {
            return process.machine.keep(moment);
        }
        // A lease ends before anything can come late.
        let strict = alone || self.schedule.ha;
        let mut verdict = self.clients.see(&self.story, moment, strict, self.now);
        if alone && self.schedule.arbiter {
            verdict = verdict.and(self.rights.released_alone(self.names[host]));
        }
        self.judge(verdict);
    }
}
