//! A standby's disks: a thread of their own does what the primary asks of them, one thing after the other, so that neither heartbeats
//! nor acknowledgements wait for a disk (I10).

#[cfg(test)]
mod tests;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use evertwin_devices::virtio::block::{Block, CopyBase, Journal, Point};
use evertwin_devices::virtio::{DiskData, DiskWrite};
use evertwin_replicator::crash::crash_point;
use evertwin_replicator::machine::{
    DiskCheck, DiskChecked, DiskPosition, DiskRoom, MachineError, RoomMade,
};
use vmm_sys_util::eventfd::EventFd;

use super::{growth, lock, scrub};
use crate::machine::{self, SharedDevice};

/// With so many bytes of writes waiting for the disks, no more are to be brought.
const MAX_WAITING: usize = 64 << 20;
/// What a write counts as besides its bytes, so that small ones and zeroes are bounded, too.
const WRITE_OVERHEAD: usize = 256;
/// Bytes of epochs that go to the journal at once.
const MAX_BATCH: usize = 8 << 20;

/// How one disk becomes a copy.
#[derive(Debug)]
pub(super) struct Copy {
    /// Only what has changed since this point comes. None: all of it.
    pub(super) from: Option<Point>,
    /// Where it begins, if the twin can go on with it.
    pub(super) base: Option<CopyBase>,
}

/// Something to be done with a standby's disks.
#[derive(Debug)]
pub(super) enum Task {
    /// They become copies, each in this way.
    Begin(Vec<Copy>, Sender<io::Result<()>>),
    /// What a sync brings: an unfinished copy is filled.
    Fill(Vec<DiskWrite>),
    /// All that the copies bring before this position has been written.
    Copied(DiskPosition),
    /// What an epoch brings.
    Epoch(Vec<DiskWrite>),
    /// The copies are whole.
    Finish,
    /// What they hold now is this point. Older ones but these can be forgotten.
    Follow(Point, Vec<Point>),
    /// One of them is to grow.
    Room(DiskRoom, Sender<RoomMade>),
    /// One of them is compared as it is now.
    Compare(DiskCheck, Sender<DiskChecked>),
    /// The guest goes on here: nobody else writes to them from now on.
    Take(Sender<()>),
    /// All that was asked before is done.
    Wait(Sender<()>),
}

/// The thread, and the way to it.
#[derive(Debug)]
pub(super) struct Applier {
    tasks: Option<Sender<Task>>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    waiting: usize,
    /// Why the disks are not what they should be.
    failure: Option<String>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Applier {
    /// Starts the thread. `changed` is written when something has been done that others wait for, or has failed.
    pub(super) fn start(
        vm: &str,
        devices: Vec<SharedDevice>,
        changed: EventFd,
    ) -> io::Result<Self> {
        let (tasks, queue) = unbounded();
        let shared = Arc::new(Shared::default());
        let worker = Worker {
            vm: vm.to_owned(),
            devices,
            changed,
            shared: Arc::clone(&shared),
            journal: None,
            journaled: Batch::default(),
        };
        let thread = std::thread::Builder::new().name("disk-apply".to_owned());
        let thread = thread.spawn(move || worker.run(&queue))?;
        Ok(Self {
            tasks: Some(tasks),
            shared,
            thread: Some(thread),
        })
    }

    /// Has something done after all that was asked before.
    ///
    /// # Errors
    /// Something that was asked before has failed.
    pub(super) fn ask(&self, task: Task) -> Result<(), String> {
        let cost = cost(&task);
        let mut state = self.shared.lock();
        if let Some(failure) = &state.failure {
            return Err(failure.clone());
        }
        state.waiting += cost;
        drop(state);
        let sent = self.tasks.as_ref().map(|tasks| tasks.send(task));
        match sent {
            Some(Ok(())) => Ok(()),
            _ => Err("the disks' thread has ended".to_owned()),
        }
    }

    /// Has something done, and waits until it is.
    ///
    /// # Errors
    /// It has failed, or something that was asked before.
    pub(super) fn ask_and_wait(&self, task: fn(Sender<()>) -> Task) -> Result<(), String> {
        let (tell, done) = bounded(1);
        self.ask(task(tell))?;
        // Also if the thread has ended: then why is told.
        let _ = done.recv();
        self.failure().map_or(Ok(()), Err)
    }

    /// Whether there is no room for more writes. `changed` is written when there is room again.
    pub(super) fn is_behind(&self) -> bool {
        let state = self.shared.lock();
        state.failure.is_none() && state.waiting >= MAX_WAITING
    }

    /// Why the disks are not what they should be, if so.
    pub(super) fn failure(&self) -> Option<String> {
        self.shared.lock().failure.clone()
    }
}

impl Drop for Applier {
    fn drop(&mut self) {
        self.tasks = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What a task takes of the room for writes.
fn cost(task: &Task) -> usize {
    match task {
        Task::Fill(writes) | Task::Epoch(writes) => writes.iter().map(cost_of).sum(),
        _ => 0,
    }
}

fn cost_of(write: &DiskWrite) -> usize {
    match &write.data {
        DiskData::Bytes(bytes) => bytes.len() + WRITE_OVERHEAD,
        DiskData::Zeroes { .. } => WRITE_OVERHEAD,
    }
}

/// What the thread works with.
struct Worker {
    vm: String,
    devices: Vec<SharedDevice>,
    changed: EventFd,
    shared: Arc<Shared>,
    /// Made when the first epoch comes. It has nothing while an unfinished copy is filled or the guest runs here.
    journal: Option<Journal>,
    /// What is in the journal already and on no disk yet.
    journaled: Batch,
}

/// Epochs that go to the journal, and then to the disks, at once.
#[derive(Debug, Default)]
struct Batch {
    epochs: Vec<Vec<DiskWrite>>,
    /// What they take of the room for writes.
    cost: usize,
}

impl Batch {
    /// These writes, and those of the epochs that wait right behind them. Also what comes next, if it was taken from the queue.
    fn take(writes: Vec<DiskWrite>, queue: &Receiver<Task>) -> (Self, Option<Task>) {
        let mut batch = Self::default();
        batch.add(writes);
        while batch.cost < MAX_BATCH {
            match queue.try_recv() {
                Ok(Task::Epoch(writes)) => batch.add(writes),
                other => return (batch, other.ok()),
            }
        }
        (batch, None)
    }

    fn add(&mut self, writes: Vec<DiskWrite>) {
        self.cost += writes.iter().map(cost_of).sum::<usize>();
        self.epochs.push(writes);
    }

    fn is_empty(&self) -> bool {
        self.epochs.iter().all(Vec::is_empty)
    }
}

impl Worker {
    fn run(mut self, queue: &Receiver<Task>) {
        let mut next = None;
        while let Some(task) = next.take().or_else(|| self.wait(queue)) {
            if let Err(error) = self.work(task, queue, &mut next) {
                self.fail(&error);
            }
        }
        if let Some(mut journal) = self.journal.take()
            && !self.has_failed()
            && let Err(error) = journal.close()
        {
            tracing::warn!(%error, "the journal of the disks is repeated at the next start");
        }
    }

    /// The next task. What is only in the journal goes to the disks as soon as there is none.
    fn wait(&mut self, queue: &Receiver<Task>) -> Option<Task> {
        if let Ok(task) = queue.try_recv() {
            return Some(task);
        }
        if let Err(error) = self.write_journaled() {
            self.fail(&error);
        }
        queue.recv().ok()
    }

    fn has_failed(&self) -> bool {
        self.shared.lock().failure.is_some()
    }

    fn free(&self, cost: usize) {
        let mut state = self.shared.lock();
        let before = state.waiting;
        state.waiting -= cost;
        if before >= MAX_WAITING && state.waiting < MAX_WAITING {
            let _ = self.changed.write(1);
        }
    }

    fn fail(&self, error: &io::Error) {
        let failure = format!("disk writes can't be repeated here: {error}");
        self.shared.lock().failure.get_or_insert(failure);
        let _ = self.changed.write(1);
    }

    /// Does a task when all before it is done, but that epochs may be in the journal only when the next ones come.
    fn work(
        &mut self,
        task: Task,
        queue: &Receiver<Task>,
        next: &mut Option<Task>,
    ) -> io::Result<()> {
        if !matches!(task, Task::Epoch(_)) {
            self.write_journaled()?;
        }
        if self.has_failed() {
            return Ok(());
        }
        match task {
            Task::Begin(copies, tell) => {
                let begun = self.begin(copies);
                if let Err(error) = &begun {
                    self.fail(error);
                }
                // Who waits for it tells why it failed.
                let _ = tell.send(begun);
                let _ = self.changed.write(1);
                Ok(())
            }
            Task::Fill(writes) => {
                let cost = writes.iter().map(cost_of).sum();
                write(&self.devices, &writes)?;
                self.free(cost);
                Ok(())
            }
            Task::Copied(to) => {
                self.note_copied(to);
                Ok(())
            }
            Task::Epoch(writes) => {
                let batch;
                (batch, *next) = Batch::take(writes, queue);
                self.apply(batch)
            }
            Task::Finish => {
                self.each_disk(Block::has_all);
                machine::finish_copies(&self.devices);
                Ok(())
            }
            Task::Follow(point, keep) => {
                self.each_disk(|disk| {
                    disk.begin_point(point, &keep);
                    disk.settle_point(point, false);
                });
                Ok(())
            }
            Task::Room(room, tell) => {
                let made = self.make_room(room);
                let _ = tell.send((room.size, made));
                let _ = self.changed.write(1);
                Ok(())
            }
            Task::Compare(check, tell) => {
                let _ = tell.send(scrub::compare(&self.devices, &check));
                let _ = self.changed.write(1);
                Ok(())
            }
            Task::Take(tell) => {
                self.forget_journal()?;
                let _ = tell.send(());
                Ok(())
            }
            Task::Wait(tell) => {
                let _ = tell.send(());
                Ok(())
            }
        }
    }

    fn each_disk(&self, mut with: impl FnMut(&mut Block)) {
        for device in &self.devices {
            if let Some(disk) = lock(device).disk() {
                with(disk);
            }
        }
    }

    /// What it has must not be repeated any more.
    fn forget_journal(&mut self) -> io::Result<()> {
        match self.journal.take() {
            Some(mut journal) => journal.forget(),
            None => Ok(()),
        }
    }

    /// A disk's image becomes larger, and all that is known of it beside it. What the journal has stays good.
    fn make_room(&mut self, room: DiskRoom) -> Result<(), MachineError> {
        if let Some(journal) = &self.journal {
            journal.expect_growth().map_err(MachineError::new)?;
        }
        growth::use_room(&self.devices, room)?;
        if let Some(journal) = &mut self.journal {
            let disks = machine::journaled(&self.devices);
            journal.images_have_grown(disks.map_err(MachineError::new)?);
        }
        Ok(())
    }

    /// Prepares each disk for its copy.
    fn begin(&mut self, copies: Vec<Copy>) -> io::Result<()> {
        self.forget_journal()?;
        let disks = self
            .devices
            .iter()
            .filter(|device| lock(*device).disk().is_some());
        disks
            .zip(copies)
            .try_for_each(|(device, copy)| begin_copy(device, copy))
    }

    /// Each disk before this position has all of its copy, and the one at it a part.
    fn note_copied(&self, to: DiskPosition) {
        let DiskPosition { device, offset } = to;
        for (index, shared) in self
            .devices
            .iter()
            .enumerate()
            .take_while(|(index, _)| *index <= device)
        {
            let end = if index == device { offset } else { u64::MAX };
            if let Some(disk) = lock(shared).disk() {
                disk.received(end);
            }
        }
    }

    /// Repeats epochs: first all of them in the journal, then on the disks, which is left to be done while the next ones go to the journal.
    fn apply(&mut self, batch: Batch) -> io::Result<()> {
        if batch.is_empty() {
            self.free(batch.cost);
            return Ok(());
        }
        if skips_journal() {
            self.journaled = batch;
            return self.write_journaled();
        }
        if self.journal.as_ref().is_some_and(Journal::is_full) {
            self.write_journaled()?;
        }
        let before = std::mem::replace(&mut self.journaled, batch);
        let journal = match &mut self.journal {
            Some(journal) => journal,
            none => none.insert(new_journal(&self.vm, &self.devices)?),
        };
        let (epochs, devices) = (&self.journaled.epochs, &self.devices);
        let done = match before.is_empty() {
            true => journal.append(epochs),
            false => std::thread::scope(|scope| {
                let thread = std::thread::Builder::new().name("disk-journal".to_owned());
                let appended = thread.spawn_scoped(scope, || journal.append(epochs))?;
                let written = write_epochs(devices, &before.epochs);
                let appended = appended.join();
                written.and(appended.unwrap_or_else(|_| Err(io::Error::other("it has panicked"))))
            }),
        };
        self.free(before.cost);
        done
    }

    /// Writes to the disks what is only in the journal.
    fn write_journaled(&mut self) -> io::Result<()> {
        let batch = std::mem::take(&mut self.journaled);
        let written = match self.has_failed() {
            true => Ok(()),
            false => write_epochs(&self.devices, &batch.epochs),
        };
        self.free(batch.cost);
        written
    }
}

/// Never, but for a test that breaks I3 on purpose: who dies in the middle of an epoch has half of it.
fn skips_journal() -> bool {
    fail::fail_point!("journal::skip", |_| true);
    false
}

/// Repeats epochs on the disks, with a point to crash half way through each.
fn write_epochs(devices: &[SharedDevice], epochs: &[Vec<DiskWrite>]) -> io::Result<()> {
    epochs.iter().try_for_each(|writes| {
        let (first, second) = writes.split_at(writes.len() / 2);
        write(devices, first)?;
        crash_point("epoch::half_written");
        write(devices, second)
    })
}

/// Repeats writes on the disks: each takes those that carry its number.
fn write(devices: &[SharedDevice], writes: &[DiskWrite]) -> io::Result<()> {
    fail::fail_point!("disk::skip_apply", |_| Ok(()));
    let mut devices = devices.iter();
    devices.try_for_each(|device| lock(device).apply_disk_writes(writes))
}

fn new_journal(vm: &str, devices: &[SharedDevice]) -> io::Result<Journal> {
    Journal::new(vm, machine::journaled(devices)?)
}

/// Prepares one disk for its copy.
fn begin_copy(device: &SharedDevice, copy: Copy) -> io::Result<()> {
    let Some(mark) = lock(device).disk().map(|disk| Arc::clone(disk.copy_mark())) else {
        return Ok(());
    };
    // Without the device's lock, which others want meanwhile.
    let unfinished = mark.is_unfinished()?;
    mark.begin()?;
    let Copy { from, base } = copy;
    let bytes = base.as_ref().map(|base| base.lacks.bytes());
    if let Some(disk) = lock(device).disk() {
        disk.begin_copy(from, base)?;
        let copy = match from {
            None => "full",
            Some(_) if unfinished => "resumed",
            Some(_) => "delta",
        };
        tracing::info!(disk = disk.number(), copy, bytes, "disk becomes a copy");
    }
    Ok(())
}
