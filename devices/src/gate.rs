//! The output gate: holds what leaves the VM until the epoch that produced it has
//! committed (I1).
//!
//! Output of all devices goes through one gate. While the gate is open it is passed on at
//! once. While it holds, output is kept in order; [`OutputGate::seal`] marks all of it as
//! belonging to the epoch that ends, and [`OutputGate::release_through`] emits what was
//! sealed up to an epoch.

mod lease;

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::lock;
use lease::Lease;

/// Bookkeeping charged for each held piece of output, in bytes, so that tiny frames are
/// bounded as well.
const ITEM_OVERHEAD: usize = 64;

/// Where output goes in the end: a TAP, a terminal.
pub trait Sink: Send {
    /// Passes `bytes` on: one frame, or a piece of a stream. Must not block for long. A
    /// failure drops the bytes as a network card would; the sink counts them.
    fn emit(&mut self, bytes: &[u8]);

    /// True for a byte stream, whose pieces may be joined; false for frames.
    fn is_stream(&self) -> bool {
        false
    }
}

/// Names a sink of a gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SinkId(usize);

/// What became of submitted output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Submit {
    /// It went to its sink.
    Passed,
    /// The gate took it and keeps it.
    Held,
    /// Nothing was taken: try again when the sink's room event fires.
    Full,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Open,
    Holding,
    Discarded,
}

struct Item {
    sink: usize,
    bytes: Vec<u8>,
}

impl Item {
    fn cost(&self) -> usize {
        self.bytes.len() + ITEM_OVERHEAD
    }
}

struct SinkEntry {
    sink: Mutex<Box<dyn Sink>>,
    stream: bool,
}

/// The part of a sink's bookkeeping that lives under the state lock.
#[derive(Default)]
struct Account {
    held: usize,
    starved: bool,
    room: Option<EventFd>,
}

struct State {
    mode: Mode,
    /// It holds since its lease ran out, and for no other reason.
    lapsed: bool,
    accounts: Vec<Account>,
    unsealed: Vec<Item>,
    sealed: VecDeque<(u64, Vec<Item>)>,
}

/// Counters of a gate since its creation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GateCounters {
    /// Pieces of output that were passed on at once.
    pub passed: u64,
    /// Pieces that were held.
    pub held: u64,
    /// Held pieces that were emitted later.
    pub released: u64,
    /// Pieces dropped because the VM lost the right to release output.
    pub discarded: u64,
    /// Times a device was told that the gate is full.
    pub full: u64,
}

#[derive(Default)]
struct AtomicCounters {
    passed: AtomicU64,
    held: AtomicU64,
    released: AtomicU64,
    discarded: AtomicU64,
    full: AtomicU64,
}

/// The gate. One per VM.
pub struct OutputGate {
    // Locks are taken in the order `release`, a sink, `state`. A device that submits while
    // the gate holds takes `state` alone, and no sink is called under `state`.
    release: Mutex<()>,
    sinks: RwLock<Vec<Arc<SinkEntry>>>,
    state: Mutex<State>,
    discarded: AtomicBool,
    lease: Lease,
    limit_bytes: usize,
    waiting: EventFd,
    counters: AtomicCounters,
}

impl OutputGate {
    /// A gate that is open. `limit_bytes` bounds what is held for each sink.
    pub fn new(limit_bytes: usize) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            release: Mutex::new(()),
            sinks: RwLock::new(Vec::new()),
            state: Mutex::new(State {
                mode: Mode::Open,
                lapsed: false,
                accounts: Vec::new(),
                unsealed: Vec::new(),
                sealed: VecDeque::new(),
            }),
            discarded: AtomicBool::new(false),
            lease: Lease::default(),
            limit_bytes,
            waiting: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            counters: AtomicCounters::default(),
        }))
    }

    /// Adds a sink. Bytes of one sink leave in the order in which they were submitted.
    pub fn add_sink(&self, sink: Box<dyn Sink>) -> SinkId {
        let entry = Arc::new(SinkEntry {
            stream: sink.is_stream(),
            sink: Mutex::new(sink),
        });
        let mut sinks = self
            .sinks
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        sinks.push(entry);
        lock(&self.state).accounts.push(Account::default());
        SinkId(sinks.len() - 1)
    }

    /// Writes to `event` whenever there is room again after a [`Submit::Full`] for `sink`.
    pub fn set_room_event(&self, sink: SinkId, event: EventFd) {
        lock(&self.state).accounts[sink.0].room = Some(event);
    }

    /// Offers output to the gate.
    pub fn submit(&self, sink: SinkId, bytes: &[u8]) -> Submit {
        let entry = self.sink(sink.0);
        {
            let mut state = lock(&self.state);
            if state.mode != Mode::Open {
                return self.keep(&mut state, sink.0, entry.stream, bytes);
            }
        }
        let mut target = lock(&entry.sink);
        {
            // The gate may have closed while this thread waited for the sink.
            let mut state = lock(&self.state);
            if self.lapses(&mut state) || state.mode != Mode::Open {
                return self.keep(&mut state, sink.0, entry.stream, bytes);
            }
        }
        target.emit(bytes);
        self.counters.passed.fetch_add(1, Ordering::Relaxed);
        Submit::Passed
    }

    /// From now on everything is held. When this returns, nothing is on its way out.
    pub fn hold(&self) {
        fail::fail_point!("gate::hold", |_| ());
        let _releasing = lock(&self.release);
        {
            let mut state = lock(&self.state);
            if state.mode == Mode::Open {
                state.mode = Mode::Holding;
            }
            state.lapsed = false;
        }
        self.drain_sinks();
    }

    /// Emits everything held, in order, and passes output on at once from then on.
    pub fn open(&self) {
        let _releasing = lock(&self.release);
        loop {
            let batch = {
                let mut state = lock(&self.state);
                if state.mode != Mode::Holding {
                    return;
                }
                let mut batch: Vec<Item> = state
                    .sealed
                    .drain(..)
                    .flat_map(|(_, items)| items)
                    .collect();
                batch.append(&mut state.unsealed);
                if batch.is_empty() {
                    state.lapsed = false;
                    // Output submitted during the emission below is emitted first too.
                    state.mode = Mode::Open;
                    return;
                }
                batch
            };
            let left = self.emit(batch);
            if !left.is_empty() {
                return self.put_back(left);
            }
        }
    }

    /// Output may leave until `until`, a reading of `CLOCK_BOOTTIME`, and from then on it is held; none:
    /// for ever. A gate that is closed since its lease ran out opens again.
    pub fn lease(&self, until: Option<Duration>) {
        self.lease.set(until);
        if lock(&self.state).lapsed {
            self.open();
        }
    }

    /// Drops everything held and whatever comes later: this VM lost the right to release
    /// output. When this returns, nothing is on its way out.
    pub fn discard(&self) {
        self.discarded.store(true, Ordering::SeqCst);
        lock(&self.state).mode = Mode::Discarded;
        self.drop_held();
        self.drain_sinks();
    }

    /// Drops everything held: the guest that made it goes on elsewhere, from an earlier epoch.
    /// The gate stays as it is.
    pub fn drop_held(&self) {
        let dropped = {
            let mut state = lock(&self.state);
            let mut dropped = std::mem::take(&mut state.unsealed);
            dropped.extend(state.sealed.drain(..).flat_map(|(_, items)| items));
            for account in &mut state.accounts {
                account.held = 0;
            }
            dropped.len()
        };
        self.counters
            .discarded
            .fetch_add(dropped as u64, Ordering::Relaxed);
    }

    /// All output held and not yet sealed belongs to `epoch`. Epochs must grow from call to
    /// call. Returns true when there was any.
    pub fn seal(&self, epoch: u64) -> bool {
        let mut state = lock(&self.state);
        // A wake-up not yet seen is about this epoch; the next one starts silent.
        let _ = self.waiting.read();
        if state.unsealed.is_empty() {
            return false;
        }
        let items = std::mem::take(&mut state.unsealed);
        state.sealed.push_back((epoch, items));
        true
    }

    /// Emits the sealed output of all epochs up to `epoch`.
    pub fn release_through(&self, epoch: u64) {
        let _releasing = lock(&self.release);
        loop {
            let items = {
                let mut state = lock(&self.state);
                match state.sealed.front() {
                    Some((sealed, _)) if *sealed <= epoch => {}
                    _ => return,
                }
                match state.sealed.pop_front() {
                    Some((_, items)) => items,
                    None => return,
                }
            };
            let left = self.emit(items);
            if !left.is_empty() {
                return self.put_back(left);
            }
        }
    }

    /// Written when output becomes held in an epoch that had none: a reason to end the
    /// epoch early.
    pub fn waiting(&self) -> &EventFd {
        &self.waiting
    }

    /// Bytes held for all sinks, with bookkeeping.
    pub fn held_bytes(&self) -> usize {
        lock(&self.state).accounts.iter().map(|a| a.held).sum()
    }

    /// True while output is held back, or dropped after [`Self::discard`].
    pub fn is_holding(&self) -> bool {
        lock(&self.state).mode != Mode::Open
    }

    /// What the gate did so far.
    pub fn counters(&self) -> GateCounters {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        GateCounters {
            passed: get(&self.counters.passed),
            held: get(&self.counters.held),
            released: get(&self.counters.released),
            discarded: get(&self.counters.discarded),
            full: get(&self.counters.full),
        }
    }

    fn sink(&self, index: usize) -> Arc<SinkEntry> {
        let sinks = self
            .sinks
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        Arc::clone(&sinks[index])
    }

    fn keep(&self, state: &mut State, sink: usize, stream: bool, bytes: &[u8]) -> Submit {
        if state.mode == Mode::Discarded {
            self.counters.discarded.fetch_add(1, Ordering::Relaxed);
            return Submit::Held;
        }
        let first = state.unsealed.is_empty();
        let account = &mut state.accounts[sink];
        let joins = stream && state.unsealed.last().is_some_and(|last| last.sink == sink);
        let cost = bytes.len() + if joins { 0 } else { ITEM_OVERHEAD };
        // Something that alone passes the limit must still get through an empty gate.
        if account.held > 0 && account.held + cost > self.limit_bytes {
            account.starved = true;
            self.counters.full.fetch_add(1, Ordering::Relaxed);
            return Submit::Full;
        }
        account.held += cost;
        match state.unsealed.last_mut() {
            Some(last) if joins => last.bytes.extend_from_slice(bytes),
            _ => state.unsealed.push(Item {
                sink,
                bytes: bytes.to_vec(),
            }),
        }
        self.counters.held.fetch_add(1, Ordering::Relaxed);
        if first {
            // The counter of an event fd can't overflow here: each seal clears it.
            let _ = self.waiting.write(1);
        }
        Submit::Held
    }

    /// Closes an open gate whose lease is over. True if it was.
    fn lapses(&self, state: &mut State) -> bool {
        let lapses = state.mode == Mode::Open && self.lease.is_over();
        if lapses {
            state.mode = Mode::Holding;
            state.lapsed = true;
        }
        lapses
    }

    /// What could not be emitted comes before all else that is held.
    fn put_back(&self, mut left: Vec<Item>) {
        let mut state = lock(&self.state);
        state.lapsed = true;
        left.append(&mut state.unsealed);
        state.unsealed = left;
    }

    /// Emits items taken off the queue, and returns those that come too late for the lease. The caller
    /// holds the release lock.
    fn emit(&self, mut items: Vec<Item>) -> Vec<Item> {
        let mut left = Vec::new();
        for at in 0..items.len() {
            let item = &items[at];
            let entry = self.sink(item.sink);
            let mut target = lock(&entry.sink);
            if self.discarded.load(Ordering::SeqCst) {
                self.counters.discarded.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            if self.lease.is_over() {
                left = items.split_off(at);
                break;
            }
            target.emit(&item.bytes);
            self.counters.released.fetch_add(1, Ordering::Relaxed);
        }
        let mut state = lock(&self.state);
        for item in &items {
            let account = &mut state.accounts[item.sink];
            account.held = account.held.saturating_sub(item.cost());
        }
        for account in &mut state.accounts {
            if account.starved && account.held < self.limit_bytes {
                account.starved = false;
                if let Some(room) = &account.room {
                    let _ = room.write(1);
                }
            }
        }
        left
    }

    /// Waits until no thread is inside a sink.
    fn drain_sinks(&self) {
        let sinks = self
            .sinks
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone();
        for entry in sinks {
            drop(lock(&entry.sink));
        }
    }
}

#[cfg(test)]
mod tests;
