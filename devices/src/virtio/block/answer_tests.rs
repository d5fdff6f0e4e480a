use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::super::testing::{DATA, readable, reg, writable};
use super::super::{Device, DiskData, DiskWrite};
use super::tests::{ALL, Disk, IO_ERROR, OK, ZEROING};
use super::*;

const READ: u32 = 0;
const WRITE: u32 = 1;
const FLUSH: u32 = 4;

/// A disk that holds answers, and what tells that one waits.
fn holding() -> (Disk, EventFd) {
    let disk = Disk::new(ALL | ZEROING, false);
    let told = EventFd::new(EFD_NONBLOCK).unwrap();
    with(&disk, |block| {
        block.set_answer_event(told.try_clone().unwrap());
        block.hold_answers();
        block.record_disk_writes(true);
    });
    (disk, told)
}

fn with<T>(disk: &Disk, what: impl FnOnce(&mut Block) -> T) -> T {
    what(disk.driver.device().disk().unwrap())
}

/// Ends an epoch: what it carries.
fn end(disk: &Disk, epoch: u64) -> Vec<DiskWrite> {
    with(disk, |block| {
        let writes = block.take_disk_writes();
        block.seal_answers(epoch);
        writes
    })
}

/// Waits until the device has so many answers to hold.
fn wait_held(disk: &mut Disk, count: usize) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while with(disk, |block| block.answers.count()) < count {
        assert!(Instant::now() < deadline);
        disk.driver.turn();
    }
}

#[test]
fn a_write_is_answered_when_its_epoch_has_committed() {
    let (mut disk, told) = holding();
    disk.driver.fill(DATA, &[7; 512]);
    let first = disk.offer(WRITE, 0, &[readable(DATA, 512)]);
    disk.driver.kick(QUEUE);
    wait_held(&mut disk, 1);
    assert!(told.read().is_ok(), "nobody is told that an answer waits");
    // What reads is answered at once, and sees what was written.
    assert_eq!(
        disk.request(READ, 0, &[writable(DATA + 0x1000, 512)]),
        (OK, 513)
    );
    assert_eq!(disk.driver.bytes(DATA + 0x1000, 512), [7; 512]);
    // A flush promises that the write is there, and waits as well.
    disk.offer(FLUSH, 0, &[]);
    disk.driver.kick(QUEUE);
    wait_held(&mut disk, 2);

    let writes = end(&disk, 1);
    assert!(
        matches!(&writes[..], [DiskWrite { data: DiskData::Bytes(bytes), .. }] if bytes[..] == [7; 512])
    );
    let later = disk.offer(WRITE, 8, &[readable(DATA, 512)]);
    disk.driver.kick(QUEUE);
    wait_held(&mut disk, 3);
    assert!(told.read().is_ok(), "the next epoch has an answer, too");
    disk.driver.turn();
    assert!(disk.driver.returned(QUEUE).is_empty());

    with(&disk, |block| block.release_answers(1));
    assert_eq!(disk.driver.wait(QUEUE, 2).len(), 2);
    assert!(disk.driver.interrupted());
    assert_eq!(disk.driver.bytes(first, 1), [OK]);
    assert_eq!(
        disk.driver.bytes(later, 1),
        [0xee],
        "of an epoch that has not"
    );
    end(&disk, 2);
    with(&disk, |block| block.release_answers(2));
    disk.driver.wait(QUEUE, 1);
    // Without a write before it, a flush promises nothing new.
    assert_eq!(disk.request(FLUSH, 0, &[]), (OK, 1));
}

#[test]
fn all_is_answered_when_there_is_no_twin_any_more() {
    let (mut disk, _) = holding();
    for sector in 0..3 {
        disk.offer(WRITE, sector, &[readable(DATA, 512)]);
        disk.driver.kick(QUEUE);
        wait_held(&mut disk, sector as usize + 1);
        if sector == 0 {
            end(&disk, 1);
        }
    }
    with(&disk, |block| block.give_answers());
    disk.driver.wait(QUEUE, 3);
    assert_eq!(disk.request(WRITE, 9, &[readable(DATA, 512)]), (OK, 1));
}

#[test]
fn a_guest_that_starts_anew_gets_no_old_answers() {
    let (mut disk, _) = holding();
    disk.offer(WRITE, 0, &[readable(DATA, 512)]);
    disk.driver.kick(QUEUE);
    wait_held(&mut disk, 1);
    assert_eq!(
        end(&disk, 1).len(),
        1,
        "the twin gets the write all the same"
    );
    disk.driver.set(reg::STATUS, 0);
    with(&disk, |block| block.release_answers(1));
    disk.driver.start(ALL | ZEROING, 256);
    disk.driver.turn();
    assert!(disk.driver.returned(QUEUE).is_empty());
    assert_eq!(
        disk.request(READ, 1 << 40, &[writable(DATA, 512)]),
        (IO_ERROR, 1)
    );
}
