use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use evertwin_devices::virtio::VirtioMmio;
use evertwin_devices::virtio::block::{DiskSerial, Recovery, recover};

use super::*;
use crate::memory;

const SIZE: u64 = 1 << 20;

fn whole() -> Copy {
    Copy {
        from: None,
        base: None,
    }
}

/// Two disks of a standby.
struct Stage {
    directory: tempfile::TempDir,
    devices: Vec<SharedDevice>,
    changed: EventFd,
    applier: Applier,
}

fn path(directory: &tempfile::TempDir, disk: u32) -> PathBuf {
    directory.path().join(format!("disk{disk}.img"))
}

fn stage() -> Stage {
    let directory = tempfile::tempdir().unwrap();
    let memory = Arc::new(memory::allocate(16 << 20).unwrap());
    let mut devices: Vec<SharedDevice> = Vec::new();
    for disk in 0..2 {
        let path = path(&directory, disk);
        File::create(&path).unwrap().set_len(SIZE).unwrap();
        let block = Block::open(disk, &path, false, DiskSerial::of_disk(disk)).unwrap();
        let device = VirtioMmio::new(Arc::clone(&memory), block).unwrap();
        devices.push(Arc::new(Mutex::new(device)));
    }
    let changed = EventFd::new(0).unwrap();
    let applier = Applier::start("shop", devices.clone(), changed.try_clone().unwrap());
    Stage {
        applier: applier.unwrap(),
        directory,
        devices,
        changed,
    }
}

fn write(disk: u32, offset: u64, byte: u8) -> DiskWrite {
    DiskWrite {
        disk,
        offset,
        data: DiskData::Bytes(vec![byte; 512].into()),
    }
}

impl Stage {
    fn contents(&self, disk: u32) -> u8 {
        let mut byte = [0];
        let image = File::open(path(&self.directory, disk)).unwrap();
        image.read_exact_at(&mut byte, 0).unwrap();
        byte[0]
    }

    /// What the next start would repeat.
    fn left(&self) -> Vec<DiskWrite> {
        let mut left = Vec::new();
        let disks = machine::journaled(&self.devices).unwrap();
        let found = recover("shop", &disks, |writes| {
            left.extend_from_slice(writes);
            Ok(())
        });
        assert_eq!(found.unwrap() == Recovery::Nothing, left.is_empty());
        left
    }
}

#[test]
fn an_epoch_is_in_the_journal_before_it_is_on_a_disk() {
    let stage = stage();
    // The second write is outside its disk, so the epoch fails half way through.
    let epoch = vec![write(0, 0, 1), write(1, SIZE, 1)];
    stage.applier.ask(Task::Epoch(epoch.clone())).unwrap();
    let failure = stage.applier.ask_and_wait(Task::Wait).unwrap_err();
    assert!(failure.contains("is outside this disk image"), "{failure}");
    assert_eq!((stage.contents(0), stage.contents(1)), (1, 0));
    assert_eq!(stage.left(), epoch);
    // Who is to be asked is told that there is something to ask for, and nothing more is done.
    stage.changed.read().unwrap();
    assert_eq!(stage.applier.failure(), Some(failure.clone()));
    let next = stage.applier.ask(Task::Epoch(vec![write(1, 0, 2)]));
    assert_eq!(next, Err(failure));
    assert_eq!(stage.contents(1), 0);
}

#[test]
fn a_guest_that_goes_on_here_is_not_overwritten_at_the_next_start() {
    let stage = stage();
    let epoch = vec![write(0, 0, 1), write(1, 0, 1)];
    stage.applier.ask(Task::Epoch(epoch)).unwrap();
    stage.applier.ask_and_wait(Task::Take).unwrap();
    assert_eq!((stage.contents(0), stage.contents(1)), (1, 1));
    assert_eq!(stage.left(), []);
}

#[test]
fn copies_are_filled_without_the_journal_and_epochs_are_not() {
    let stage = stage();
    let (tell, begun) = bounded(1);
    stage
        .applier
        .ask(Task::Begin(vec![whole(), whole()], tell))
        .unwrap();
    begun.recv().unwrap().unwrap();
    stage.applier.ask(Task::Fill(vec![write(0, 0, 1)])).unwrap();
    stage.applier.ask_and_wait(Task::Wait).unwrap();
    assert_eq!(stage.contents(0), 1);
    assert_eq!(stage.left(), []);
    stage
        .applier
        .ask(Task::Epoch(vec![write(0, 0, 2)]))
        .unwrap();
    stage.applier.ask(Task::Finish).unwrap();
    stage.applier.ask_and_wait(Task::Wait).unwrap();
    assert_eq!((stage.contents(0), stage.left().len()), (2, 1));
}

#[test]
fn an_orderly_end_leaves_nothing_to_repeat() {
    let mut stage = stage();
    stage
        .applier
        .ask(Task::Epoch(vec![write(0, 0, 1)]))
        .unwrap();
    let changed = stage.changed.try_clone().unwrap();
    let other = Applier::start("shop", Vec::new(), changed).unwrap();
    drop(std::mem::replace(&mut stage.applier, other));
    assert_eq!(stage.contents(0), 1);
    assert_eq!(stage.left(), []);
}

#[test]
fn who_brings_more_than_there_is_room_for_is_told_when_there_is_room_again() {
    let stage = stage();
    // Nothing is done meanwhile.
    let held = lock(&stage.devices[0]);
    let large = || {
        let mut write = write(0, 0, 3);
        write.data = DiskData::Bytes(vec![3; SIZE as usize].into());
        vec![write; 40]
    };
    for behind in [false, false, true, true] {
        assert_eq!(stage.applier.is_behind(), behind);
        stage.applier.ask(Task::Epoch(large())).unwrap();
    }
    drop(held);
    stage.changed.read().unwrap();
    assert!(!stage.applier.is_behind());
    stage.applier.ask_and_wait(Task::Wait).unwrap();
    assert_eq!(stage.applier.shared.lock().waiting, 0);
}
