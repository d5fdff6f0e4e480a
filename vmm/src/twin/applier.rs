//! A standby's disks: a thread of their own does what the primary asks of them, one thing after the other, so that neither heartbeats
//! nor acknowledgements wait for a disk (I10).

#[cfg(test)]
mod tests;

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use evertwin_devices::virtio::block::{Block, Journal, Point};
use evertwin_devices::virtio::{DiskData, DiskWrite};
use evertwin_replicator::crash::crash_point;
use evertwin_replicator::machine::{DiskCheck, DiskChecked, DiskRoom, MachineError, RoomMade};
use vmm_sys_util::eventfd::EventFd;

use super::{growth, lock, scrub};
use crate::machine::{self, SharedDevice};

/// Bytes of writes that may wait for the disks; who brings more waits as well.
const MAX_WAITING: usize = 64 << 20;
/// What a write counts as besides its bytes, so that small ones and zeroes are bounded, too.
const WRITE_OVERHEAD: usize = 256;
/// Bytes of epochs that go to the journal at once.
const MAX_BATCH: usize = 8 << 20;

/// Something to be done with a standby's disks.
#[derive(Debug)]
pub(super) enum Task {
    /// They become copies from these points, or of all.
    Begin(Vec<Option<Point>>, Sender<io::Result<()>>),
    /// What a sync brings: an unfinished copy is filled.
    Fill(Vec<DiskWrite>),
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
    freed: Condvar,
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
        };
        let thread = std::thread::Builder::new().name("disk-apply".to_owned());
        let thread = thread.spawn(move || worker.run(&queue))?;
        Ok(Self {
            tasks: Some(tasks),
            shared,
            thread: Some(thread),
        })
    }

    /// Has something done after all that was asked before. Waits for room if it brings writes.
    ///
    /// # Errors
    /// Something that was asked before has failed.
    pub(super) fn ask(&self, task: Task) -> Result<(), String> {
        let cost = cost(&task);
        let mut state = self.shared.lock();
        while state.failure.is_none() && cost > 0 && state.waiting >= MAX_WAITING {
            let freed = self.shared.freed.wait(state);
            state = freed.unwrap_or_else(PoisonError::into_inner);
        }
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
}

impl Worker {
    fn run(mut self, queue: &Receiver<Task>) {
        let mut next = None;
        while let Some(task) = next.take().or_else(|| queue.recv().ok()) {
            let mut done = cost(&task);
            if self.shared.lock().failure.is_none() {
                let result = match task {
                    Task::Epoch(writes) => {
                        let mut epochs = vec![writes];
                        while done < MAX_BATCH {
                            match queue.try_recv() {
                                Ok(Task::Epoch(writes)) => {
                                    done += writes.iter().map(cost_of).sum::<usize>();
                                    epochs.push(writes);
                                }
                                other => {
                                    next = other.ok();
                                    break;
                                }
                            }
                        }
                        self.apply(&epochs)
                    }
                    task => self.work(task),
                };
                if let Err(error) = result {
                    self.fail(&error);
                }
            }
            self.shared.lock().waiting -= done;
            self.shared.freed.notify_all();
        }
        if let Some(mut journal) = self.journal.take()
            && self.shared.lock().failure.is_none()
            && let Err(error) = journal.close()
        {
            tracing::warn!(%error, "the journal of the disks is repeated at the next start");
        }
    }

    fn fail(&self, error: &io::Error) {
        let failure = format!("disk writes can't be repeated here: {error}");
        self.shared.lock().failure.get_or_insert(failure);
        let _ = self.changed.write(1);
    }

    fn work(&mut self, task: Task) -> io::Result<()> {
        match task {
            Task::Begin(from, tell) => {
                let begun = self.begin(&from);
                if let Err(error) = &begun {
                    self.fail(error);
                }
                // Who waits for it tells why it failed.
                let _ = tell.send(begun);
                let _ = self.changed.write(1);
                Ok(())
            }
            Task::Fill(writes) => self.write(&writes),
            // In a batch, with those that wait behind it.
            Task::Epoch(writes) => self.apply(&[writes]),
            Task::Finish => {
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
    fn begin(&mut self, from: &[Option<Point>]) -> io::Result<()> {
        self.forget_journal()?;
        let disks = self
            .devices
            .iter()
            .filter(|device| lock(*device).disk().is_some());
        disks
            .zip(from)
            .try_for_each(|(device, from)| begin_copy(device, *from))
    }

    /// Repeats epochs: first all of them in the journal, then on the disks.
    fn apply(&mut self, epochs: &[Vec<DiskWrite>]) -> io::Result<()> {
        if epochs.iter().all(Vec::is_empty) {
            return Ok(());
        }
        // Breaks I3 on purpose: who dies in the middle of an epoch has half of it.
        fail::fail_point!("journal::skip", |_| {
            epochs
                .iter()
                .try_for_each(|writes| self.write_epoch(writes))
        });
        let journal = match &mut self.journal {
            Some(journal) => journal,
            none => none.insert(new_journal(&self.vm, &self.devices)?),
        };
        journal.append(epochs)?;
        epochs
            .iter()
            .try_for_each(|writes| self.write_epoch(writes))
    }

    /// Repeats an epoch's writes on the disks, with a point to crash half way through them.
    fn write_epoch(&self, writes: &[DiskWrite]) -> io::Result<()> {
        let (first, second) = writes.split_at(writes.len() / 2);
        self.write(first)?;
        crash_point("epoch::half_written");
        self.write(second)
    }

    /// Repeats writes on the disks: each takes those that carry its number.
    fn write(&self, writes: &[DiskWrite]) -> io::Result<()> {
        fail::fail_point!("disk::skip_apply", |_| Ok(()));
        let mut devices = self.devices.iter();
        devices.try_for_each(|device| lock(device).apply_disk_writes(writes))
    }
}

fn new_journal(vm: &str, devices: &[SharedDevice]) -> io::Result<Journal> {
    Journal::new(vm, machine::journaled(devices)?)
}

/// Prepares one disk for its copy.
fn begin_copy(device: &SharedDevice, from: Option<Point>) -> io::Result<()> {
    let Some(mark) = lock(device).disk().map(|disk| Arc::clone(disk.copy_mark())) else {
        return Ok(());
    };
    // Without the device's lock, which others want meanwhile.
    mark.begin()?;
    if let Some(disk) = lock(device).disk() {
        disk.begin_copy(from)?;
        let copy = if from.is_some() { "delta" } else { "full" };
        tracing::info!(disk = disk.number(), copy, "disk becomes a copy");
    }
    Ok(())
}
