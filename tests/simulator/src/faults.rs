//! What goes wrong, when it does.

use evertwin_protocol::{Command as Asked, Input};

use crate::host::Armed;
use crate::queue::Event;
use crate::schedule::{Command, What};
use crate::world::{MICRO, MILLI, Phase, World};

/// The end of a connection is noticed within this time.
const NOTICE: u64 = 5 * MILLI;

/// A crash that found no action happens after this time, and this for each action before it.
const CRASH_BY: u64 = 30 * MILLI;
const EACH_BY: u64 = MILLI;

impl World<'_> {
    /// A fault of the schedule begins.
    pub(crate) fn fault(&mut self, index: u32) {
        if self.phase != Phase::Faults {
            return;
        }
        let what = self.schedule.faults[index as usize].what;
        self.note(|| format!("fault: {what:?}"));
        let now = self.now;
        let until = |for_us: u64| now + for_us * MICRO;
        match what {
            What::Crash {
                host,
                after,
                power,
                silently,
                back_us,
            } => {
                self.hosts[host].armed = {
                    let serial = index;
                    let event = Event::Crash {
                        host,
                        armed: serial,
                    };
                    self.queue.push(now + CRASH_BY + after * EACH_BY, event);
                    Some(Armed {
                        serial,
                        after,
                        power,
                        silently,
                        back: back_us.map(|back_us| back_us * MICRO),
                    })
                }
            }
            What::Pause {
                host,
                for_us,
                guest,
            } => {
                let place = &mut self.hosts[host];
                place.paused_until = until(for_us);
                if guest {
                    place.guest_paused_until = until(for_us);
                }
                self.queue.push(until(for_us), Event::Resume { host });
            }
            What::Cut => self.cut_both(NOTICE),
            What::HalfCut { host } => {
                if let Some(process) = &self.hosts[host].process
                    && let Some(link) = process.link
                {
                    // What it says of it is lost.
                    self.network.stick(link.connection, host);
                    self.notice_end(host, link.connection, NOTICE);
                }
            }
            What::Silence { from, for_us, lost } => self.network.silence(from, until(for_us), lost),
            What::Partition { for_us } => {
                self.cut_both(NOTICE);
                for from in 0..2 {
                    self.network.silence(from, until(for_us), true);
                }
            }
            What::Slow {
                from,
                for_us,
                by_us,
            } => self.network.slow(from, until(for_us), by_us * MICRO),
            What::Damage { to } => self.hosts[to].damage_next = true,
            What::LoseEpoch { from } => self.hosts[from].lose_epoch = true,
            What::Stale { to } if self.hosts[to].paused_until <= now => self.stale(to),
            What::Stale { .. } => {}
            What::Suspicion { host } if self.hosts[host].paused_until <= now => {
                self.input(host, Input::Unreachable);
            }
            What::Suspicion { .. } => {}
            What::Arbiter {
                host,
                for_us,
                trouble,
            } => self.arbiter.trouble(host, until(for_us), trouble),
            What::CaptureFails { host, times } => self.hosts[host].capture_fails = times,
            What::TrackingFails { host } => self.hosts[host].tracking_fails = true,
            What::GuestExits { host } => self.happen(Event::GuestExits { host }),
            What::Operator { host, command } => self.happen(Event::Operator { host, command }),
        }
    }

    pub(crate) fn guest_exits(&mut self, host: usize) {
        if let Some(process) = &mut self.hosts[host].process
            && std::mem::take(&mut process.machine.running)
        {
            self.input(host, Input::GuestExited);
        }
    }

    pub(crate) fn operate(&mut self, host: usize, command: Command) {
        let input = match command {
            Command::Stop => Input::Stop,
            Command::Switchover => Input::Operator(Asked::Switchover),
            Command::Leave => Input::Operator(Asked::Leave),
            Command::Promote if self.vouches(host) => Input::Operator(Asked::Promote),
            Command::Promote => return,
        };
        self.input(host, input);
    }

    /// May an operator vouch that the peer is dead, and has nothing newer? With an arbiter
    /// that is not the question: it is refused.
    fn vouches(&self, host: usize) -> bool {
        let dead = self.hosts[1 - host].process.is_none();
        let Some(process) = &self.hosts[host].process else {
            return false;
        };
        let machine = &process.machine;
        let newest =
            machine.moment != 0 || machine.standing.is_some() || self.last_ran == Some(host);
        let note = |host: usize| self.hosts[host].noted.map_or(0, |note| note.generation);
        self.schedule.arbiter || dead && newest && note(1 - host) <= note(host)
    }

    /// Both sides learn that the connection has ended, each in its time.
    pub(crate) fn cut_both(&mut self, within: u64) {
        for host in 0..2 {
            if let Some(process) = &self.hosts[host].process
                && let Some(link) = process.link
            {
                self.notice_end(host, link.connection, within);
            }
        }
    }

    fn notice_end(&mut self, host: usize, connection: u32, within: u64) {
        let delay = self.hosts[host].random.below(within);
        let event = Event::Ended {
            at: host,
            connection,
        };
        self.queue.push(self.now + delay, event);
    }

    /// A pause is over: first what has arrived meanwhile, in order, then the clock.
    pub(crate) fn resume(&mut self, host: usize) {
        if self.hosts[host].paused_until > self.now {
            return;
        }
        for event in std::mem::take(&mut self.hosts[host].backlog) {
            self.happen(event);
        }
        self.input(host, Input::Tick);
    }

    /// The twin dies as it was armed to.
    pub(crate) fn crash(&mut self, host: usize) {
        let Some(armed) = self.hosts[host].armed.take() else {
            return;
        };
        if self.hosts[host].process.is_none() {
            return;
        }
        self.tally.crashes += 1;
        let Armed {
            power,
            silently,
            back,
            ..
        } = armed;
        self.note(|| format!("host {host} crashes, power lost: {power}"));
        if !silently {
            self.flush(host);
        }
        if power {
            self.lose_power(host);
        }
        self.leave(host);
        let place = &mut self.hosts[host];
        place.paused_until = 0;
        place.guest_paused_until = 0;
        if let Some(back) = back {
            self.queue.push(self.now + back, Event::Start { host });
        }
    }

    /// A host loses its power and never gets it back.
    pub(crate) fn lose_for_good(&mut self, host: usize) {
        self.lose_power(host);
        self.leave(host);
    }

    /// No end of a connection is told, and the disk is as it is.
    fn lose_power(&mut self, host: usize) {
        let place = &mut self.hosts[host];
        if let Some(process) = &place.process {
            for connection in process.connections() {
                self.network.stick(connection, host);
            }
        }
        place.disk.lose_power(&mut place.random);
    }

    /// The process is gone, and with it its ends of all connections.
    pub(crate) fn leave(&mut self, host: usize) {
        if let Some(process) = self.hosts[host].process.take() {
            for connection in process.connections() {
                self.end_connection(host, connection);
            }
        }
        self.hosts[host].backlog.clear();
    }
}
