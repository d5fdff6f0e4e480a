//! The network: ordered connections that are late, cut, silent, or not to be had.

use std::collections::BTreeSet;

use evertwin_protocol::{Envelope, Input, Message};

use super::{Event, MILLI, Packet, World};

#[derive(Default)]
pub(crate) struct Network {
    /// No new connections; packets are lost, and nobody is told.
    pub(crate) silent: bool,
    /// The same, but both sides see their connections end.
    pub(crate) partitioned: bool,
    /// Connections that lost a packet: nothing passes any more, for nothing overtakes it.
    stuck: BTreeSet<u64>,
    /// When the last packet of each direction arrives: packets stay in order.
    last: [u64; 2],
}

impl Network {
    pub(crate) fn heal(&mut self) {
        self.silent = false;
        self.partitioned = false;
    }
}

impl World {
    pub(super) fn dial(&mut self) {
        let pause = (1 + self.random.below(20)) * MILLI;
        self.at(pause, Event::Dial);
        if self.network.silent || self.network.partitioned {
            if self.network.partitioned {
                self.break_connection();
            }
            return;
        }
        let wanted = self.nodes[1]
            .as_ref()
            .is_some_and(|dialer| dialer.twin.wants_link());
        if !wanted || self.nodes[0].is_none() {
            return;
        }
        self.serial += 1;
        let connection = self.serial;
        for node in [0, 1] {
            if let Some(process) = &mut self.nodes[node] {
                process.connection = Some(connection);
            }
            self.input(node, Input::LinkUp);
        }
    }

    pub(super) fn send(&mut self, from: usize, envelope: Envelope, history: Vec<u64>) {
        let Some(connection) = self.nodes[from].as_ref().and_then(|node| node.connection) else {
            return;
        };
        if self.network.silent || self.network.partitioned {
            self.network.stuck.insert(connection);
        }
        if self.network.stuck.contains(&connection) {
            return;
        }
        let slow = if self.random.chance(1) { 40 } else { 1 };
        let arrival = self.now + MILLI / 100 + self.random.below(slow * MILLI);
        let last = &mut self.network.last[from];
        *last = arrival.max(*last);
        let delay = *last - self.now;
        let packet = Packet { envelope, history };
        let to = 1 - from;
        self.at(
            delay,
            Event::Deliver {
                to,
                connection,
                packet,
            },
        );
    }

    pub(super) fn send_round(&mut self, node: usize, generation: u64) {
        let parts = 1 + self.random.below(3);
        for _ in 0..parts {
            let envelope = Envelope {
                generation,
                epoch: 0,
                message: Message::SyncPages,
            };
            self.send(node, envelope, Vec::new());
        }
        let delay = self.random.below(20 * MILLI);
        let Some(process) = &self.nodes[node] else {
            return;
        };
        let (life, sync) = (process.life, process.syncs);
        self.at(delay, Event::RoundSent { node, life, sync });
    }

    pub(super) fn deliver(&mut self, to: usize, connection: u64, packet: Packet) {
        let Some(node) = &mut self.nodes[to] else {
            return;
        };
        if node.connection != Some(connection) {
            return;
        }
        match packet.envelope.message {
            Message::Epoch => node.received = packet.history,
            Message::Ack => node.acknowledged = true,
            _ => {}
        }
        self.input(to, Input::Received(packet.envelope));
    }

    /// Both sides lose their connection, each in its own time.
    pub(super) fn break_connection(&mut self) {
        for node in [0, 1] {
            let connection = self.nodes[node].as_ref().and_then(|node| node.connection);
            if let Some(connection) = connection {
                self.cut_later(node, connection);
            }
        }
    }

    pub(super) fn cut_later(&mut self, at: usize, connection: u64) {
        let delay = self.random.below(5 * MILLI);
        self.at(delay, Event::Cut { at, connection });
    }
}
