//! What will happen, in order.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use evertwin_protocol::Answer;

use crate::network::Frame;
use crate::schedule::Command;

/// Something that happens.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Event {
    /// The core asked to be called.
    Tick { host: usize, life: u32 },
    /// The guest does something.
    Step { host: usize, life: u32 },
    /// The dialing twin looks for its peer.
    Dial,
    /// A connection reaches the listener; no process takes over the connections of another.
    Accept { life: u32, connection: u32 },
    /// A message arrives.
    Deliver {
        to: usize,
        connection: u32,
        frame: Frame,
    },
    /// The end of a connection arrives.
    Ended { at: usize, connection: u32 },
    /// A question arrives at the arbiter; an answer is on its way at this time, if ever.
    Effect {
        host: usize,
        life: u32,
        request: u32,
        answer_at: Option<u64>,
    },
    /// The arbiter's answer.
    Answer {
        host: usize,
        life: u32,
        answer: Answer,
    },
    /// The next part of a sync round can be sent.
    Round { host: usize, life: u32, round: u32 },
    /// A twin that misses its peer since then looks whether it lives.
    Probe { host: usize, life: u32, since: u64 },
    /// Held output waits.
    OutputWaits { host: usize, life: u32 },
    /// The guest ends by itself.
    GuestExits { host: usize },
    /// The operator asks something of a twin.
    Operator { host: usize, command: Command },
    /// A fault of the schedule begins.
    Fault(u32),
    /// A crash that found no action happens all the same.
    Crash { host: usize, armed: u32 },
    /// A twin is started.
    Start { host: usize },
    /// A pause may be over.
    Resume { host: usize },
    /// All faults end.
    Heal,
    /// Is the pair protected?
    Look,
}

#[derive(Debug)]
struct Entry {
    at: u64,
    serial: u64,
    event: Event,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    /// The earliest is the greatest; of two at the same time, the one that was there first.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.serial).cmp(&(self.at, self.serial))
    }
}

/// Events to come. Times are nanoseconds since the run's beginning.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    heap: BinaryHeap<Entry>,
    serial: u64,
}

impl Queue {
    pub(crate) fn push(&mut self, at: u64, event: Event) {
        self.serial += 1;
        self.heap.push(Entry {
            at,
            serial: self.serial,
            event,
        });
    }

    pub(crate) fn pop(&mut self) -> Option<(u64, Event)> {
        self.heap.pop().map(|entry| (entry.at, entry.event))
    }
}
