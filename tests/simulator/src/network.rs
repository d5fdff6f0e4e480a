//! The network between the twins: connections that are late, cut, half open, or silent.
//!
//! Within a connection each direction is in order, but what is said overtakes bulk data.

use evertwin_protocol::{Envelope, Input, Message, Role, Status};

use crate::queue::Event;
use crate::random::Random;
use crate::world::{MICRO, MILLI, World};

/// Connections that the listener keeps before one of them says who it is.
const STRANGERS: usize = 4;

/// How often a twin looks whether a peer that it misses is alive.
const LOOK_EVERY: u64 = 2 * MILLI;

/// A message and what travels beside it: the number of a load, or 0.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frame {
    pub(crate) envelope: Envelope,
    pub(crate) load: u32,
}

impl Frame {
    fn bulk(&self) -> bool {
        matches!(self.envelope.message, Message::SyncPages | Message::Epoch)
    }
}

/// One connection; directions are named by their sender.
#[derive(Clone, Copy, Debug, Default)]
struct Connection {
    /// Something was lost: nothing arrives any more, for nothing overtakes it.
    stuck: [bool; 2],
    /// When the last message arrives.
    control: [u64; 2],
    bulk: [u64; 2],
}

/// The link as a twin's driver sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Link {
    pub(crate) connection: u32,
    /// The peer has said who it is.
    pub(crate) verified: bool,
}

/// A direction that is silent.
#[derive(Clone, Copy, Debug, Default)]
struct Silence {
    until: u64,
    lost: bool,
}

#[derive(Debug)]
pub(crate) struct Network {
    random: Random,
    connections: Vec<Connection>,
    silence: [Silence; 2],
    /// Until when, and by how much, what a host sends is late.
    slow: [(u64, u64); 2],
    /// An epoch of an older generation that reached this host.
    pub(crate) old_epoch: [Option<Frame>; 2],
    pub(crate) new_epoch: [Option<Frame>; 2],
}

impl Network {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            random: Random::new(seed, 3),
            connections: Vec::new(),
            silence: Default::default(),
            slow: Default::default(),
            old_epoch: [None; 2],
            new_epoch: [None; 2],
        }
    }

    pub(crate) fn heal(&mut self) {
        self.silence = Default::default();
        self.slow = Default::default();
    }

    pub(crate) fn silence(&mut self, from: usize, until: u64, lost: bool) {
        self.silence[from] = Silence { until, lost };
    }

    pub(crate) fn slow(&mut self, from: usize, until: u64, by: u64) {
        self.slow[from] = (until, by);
    }

    /// Nothing arrives any more of what this host says on this connection.
    pub(crate) fn stick(&mut self, connection: u32, from: usize) {
        self.connections[connection as usize].stuck[from] = true;
    }

    /// When something sent now arrives; never, if it is lost.
    fn arrival(&mut self, now: u64, connection: u32, from: usize, bulk: bool) -> Option<u64> {
        let Silence { until, lost } = self.silence[from];
        let way = &mut self.connections[connection as usize];
        if until > now && lost {
            way.stuck[from] = true;
        }
        if way.stuck[from] {
            return None;
        }
        let mut at = now.max(until) + self.random.between(20, 400) * MICRO;
        if self.random.chance(1) {
            at += self.random.below(30 * MILLI);
        }
        let (slow_until, by) = self.slow[from];
        if slow_until > now {
            at += by;
        }
        at = at.max(way.control[from]);
        if bulk {
            at = at.max(way.bulk[from]);
            way.bulk[from] = at;
        } else {
            way.control[from] = at;
        }
        Some(at)
    }
}

impl World<'_> {
    /// The dialing twin's driver looks for its peer, if it wants to.
    pub(crate) fn dial(&mut self) {
        let pause = self.network.random.between(3, 12) * MILLI;
        self.queue.push(self.now + pause, Event::Dial);
        let now = self.now;
        let host = &mut self.hosts[1];
        let paused = host.paused_until > now;
        let Some(process) = &mut host.process else {
            return;
        };
        let wanted = process.link.is_none() && process.twin.wants_link();
        let reachable = self
            .network
            .silence
            .iter()
            .all(|silence| silence.until <= now);
        if paused || !wanted || !reachable || self.hosts[0].process.is_none() {
            return;
        }
        let life = self.hosts[0].lives;
        let connection = self.network.connections.len() as u32;
        self.network.connections.push(Connection::default());
        if let Some(process) = &mut self.hosts[1].process {
            process.link = Some(Link {
                connection,
                verified: false,
            });
        }
        if let Some(at) = self.network.arrival(now, connection, 1, false) {
            self.queue.push(at, Event::Accept { life, connection });
        }
        self.input(1, Input::LinkUp);
    }

    pub(crate) fn accept(&mut self, life: u32, connection: u32) {
        let process = self.hosts[0].process.as_mut();
        let Some(process) = process.filter(|process| process.life == life) else {
            return self.end_connection(0, connection);
        };
        process.strangers.push(connection);
        if process.strangers.len() > STRANGERS {
            let oldest = process.strangers.remove(0);
            self.end_connection(0, oldest);
        }
    }

    /// Everything that the driver has queued goes out.
    pub(crate) fn flush(&mut self, host: usize) {
        let now = self.now;
        let Some(process) = &mut self.hosts[host].process else {
            return;
        };
        let Some(link) = process.link else {
            process.outbox.clear();
            return;
        };
        for frame in process.outbox.drain(..) {
            let connection = link.connection;
            if let Some(at) = self.network.arrival(now, connection, host, frame.bulk()) {
                let to = 1 - host;
                let event = Event::Deliver {
                    to,
                    connection,
                    frame,
                };
                self.queue.push(at, event);
            }
        }
    }

    /// One end is gone: the other is told, unless that is lost, too.
    pub(crate) fn end_connection(&mut self, from: usize, connection: u32) {
        let in_order = self.network.random.chance(50);
        let sent = self.network.arrival(self.now, connection, from, in_order);
        if let Some(at) = sent {
            let at_peer = 1 - from;
            let event = Event::Ended {
                at: at_peer,
                connection,
            };
            self.queue.push(at, event);
        }
        self.network.stick(connection, from);
    }

    /// The driver notices that a connection has ended.
    pub(crate) fn ended(&mut self, host: usize, connection: u32) {
        let Some(process) = &mut self.hosts[host].process else {
            return;
        };
        process.strangers.retain(|stranger| *stranger != connection);
        if process
            .link
            .is_some_and(|link| link.connection == connection)
        {
            self.lose_link(host, Input::LinkDown);
        }
    }

    /// A twin that misses its peer looks for it soon, and again and again.
    pub(crate) fn schedule_probe(&mut self, host: usize, since: u64) {
        if let Some(process) = &mut self.hosts[host].process
            && process.twin.misses_peer()
            && !std::mem::replace(&mut process.probing, true)
        {
            let life = process.life;
            let event = Event::Probe { host, life, since };
            self.queue.push(self.now + LOOK_EVERY, event);
        }
    }

    /// Who died since, or was started anew, is found dead. Now and then so is a peer that lives:
    /// somebody else answered for it.
    pub(crate) fn probe(&mut self, host: usize, life: u32, since: u64) {
        if !self.hosts[host].lives(life) {
            return;
        }
        let peer = self.hosts[1 - host].process.as_ref();
        let dead = peer.is_none_or(|peer| peer.started > since);
        let mistaken = || Random::new(self.schedule.seed ^ self.now, 9).below(32) == 0;
        let dead = dead || mistaken();
        let Some(process) = &mut self.hosts[host].process else {
            return;
        };
        process.probing = false;
        if dead && process.twin.misses_peer() {
            self.note(|| format!("host {host} finds its peer dead"));
            self.input(host, Input::PeerDead);
        } else {
            self.schedule_probe(host, since);
        }
    }

    /// The driver drops its link, and tells the core how.
    pub(crate) fn lose_link(&mut self, host: usize, how: Input) {
        self.cut_link(host);
        self.input(host, how);
    }

    /// The driver drops its link; what it had not sent is lost.
    pub(crate) fn cut_link(&mut self, host: usize) {
        if let Some(process) = &mut self.hosts[host].process
            && let Some(link) = process.link.take()
        {
            process.outbox.clear();
            self.end_connection(host, link.connection);
        }
    }

    pub(crate) fn deliver(&mut self, to: usize, connection: u32, frame: Frame) {
        let Some(process) = &mut self.hosts[to].process else {
            return;
        };
        let message = frame.envelope.message;
        let hello = matches!(message, Message::Hello(_));
        if let Some(index) = process.strangers.iter().position(|id| *id == connection) {
            match message {
                Message::Hello(_) => {
                    process.strangers.remove(index);
                    self.replace_link(to, connection);
                    self.received(to, frame);
                }
                Message::Heartbeat => {}
                _ => {
                    process.strangers.remove(index);
                    self.end_connection(to, connection);
                }
            }
            return;
        }
        let Some(link) = process.link.filter(|link| link.connection == connection) else {
            return;
        };
        if link.verified {
            self.input(to, Input::Heard);
        }
        let Some(process) = &mut self.hosts[to].process else {
            return;
        };
        let Some(link) = &mut process.link else {
            return;
        };
        if link.connection != connection {
            return;
        }
        let follows = matches!(process.twin.role(), Role::Filling | Role::Synced);
        // A peer that may not greet yet gives signs of life only.
        let misplaced = match message {
            Message::Hello(_) => link.verified,
            Message::Heartbeat => false,
            _ => !link.verified || frame.bulk() && !follows,
        };
        if std::mem::take(&mut self.hosts[to].damage_next) || misplaced {
            self.note(|| format!("host {to} drops the connection: bad {message:?}"));
            return self.lose_link(to, Input::LinkFault);
        }
        if hello {
            link.verified = true;
        } else if !link.verified {
            return;
        }
        self.received(to, frame);
    }

    /// The peer has connected again before its old connection was found dead.
    fn replace_link(&mut self, host: usize, connection: u32) {
        if self.hosts[host]
            .process
            .as_ref()
            .is_some_and(|process| process.link.is_some())
        {
            self.lose_link(host, Input::LinkDown);
        }
        if let Some(process) = &mut self.hosts[host].process {
            process.link = Some(Link {
                connection,
                verified: true,
            });
        }
        self.input(host, Input::LinkUp);
    }

    /// A whole message of the peer, for the core.
    pub(crate) fn received(&mut self, host: usize, frame: Frame) {
        let Some(process) = &mut self.hosts[host].process else {
            return;
        };
        let envelope = frame.envelope;
        if let Some(epoch) = held_by_sender(&envelope) {
            self.commits.arrived(envelope.generation, epoch);
        }
        match envelope.message {
            Message::Ack => process.acknowledged = true,
            Message::Epoch => {
                process.received = frame.load;
                process.whole = Some((envelope.generation, envelope.epoch));
                self.network.remember(host, frame);
            }
            Message::SyncPages => process.received = frame.load,
            _ => {}
        }
        self.input(host, Input::Received(envelope));
    }

    /// A message of an older generation arrives on the link: an acknowledgement of what is in
    /// flight just now, or the next epoch.
    pub(crate) fn stale(&mut self, host: usize) {
        let Some(process) = &self.hosts[host].process else {
            return;
        };
        if !process.link.is_some_and(|link| link.verified) {
            return;
        }
        let frame = match process.twin.role() {
            Role::Protected => Frame {
                envelope: Envelope {
                    generation: process.twin.generation().saturating_sub(1),
                    epoch: process.shipped,
                    message: Message::Ack,
                },
                load: 0,
            },
            Role::Synced => match self.network.old_epoch[host] {
                Some(frame) if frame.envelope.generation < process.twin.generation() => {
                    let mut frame = frame;
                    frame.envelope.epoch = process.whole.map_or(0, |(_, epoch)| epoch + 1);
                    frame
                }
                _ => return,
            },
            _ => return,
        };
        self.note(|| format!("host {host} gets an old {:?}", frame.envelope));
        if frame.envelope.message == Message::Ack {
            return self.input(host, Input::Received(frame.envelope));
        }
        self.received(host, frame);
    }
}

/// The epoch that a standby says to hold: by its acknowledgement, or in its hello after its link
/// broke. One that was handed over has no number of its own.
fn held_by_sender(envelope: &Envelope) -> Option<u64> {
    match envelope.message {
        Message::Ack => Some(envelope.epoch),
        Message::Hello(Status::Synced { epoch }) => (epoch > 0).then_some(epoch),
        _ => None,
    }
}

impl Network {
    /// Keeps the last epoch of the generation before.
    fn remember(&mut self, host: usize, frame: Frame) {
        if let Some(last) = self.new_epoch[host]
            && last.envelope.generation < frame.envelope.generation
        {
            self.old_epoch[host] = Some(last);
        }
        self.new_epoch[host] = Some(frame);
    }
}
