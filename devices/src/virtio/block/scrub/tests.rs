use std::os::fd::AsRawFd as _;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};

use super::super::super::Device;
use super::super::super::testing::{self, DATA, readable, writable};
use super::super::tests::{ALL, Disk, OK, SECTORS, WRITE_ZEROES, ZEROING};
use super::super::{QUEUE, SECTOR_BYTES};
use super::*;

const IN: u32 = 0;
const OUT: u32 = 1;
const SECTORS_PER_BLOCK: u64 = BLOCK_BYTES / SECTOR_BYTES;

/// Calls for the device.
fn with<T>(disk: &mut Disk, call: impl FnOnce(&mut Block) -> T) -> T {
    call(disk.driver.device().disk().unwrap())
}

fn write(disk: &mut Disk, sector: u64, bytes: u32) {
    assert_eq!(disk.request(OUT, sector, &[readable(DATA, bytes)]), (OK, 1));
}

#[test]
fn what_the_guest_changes_while_it_is_watched_is_told() {
    let mut disk = Disk::new(ALL | ZEROING, false);
    write(&mut disk, 0, 512);
    with(&mut disk, |block| block.watch(&[0, 1, 2, 5, 6, 9]));
    assert_eq!(
        disk.request(IN, 0, &[writable(DATA, 4096)]),
        (OK, 4097),
        "to read is not to change"
    );
    // The end of block 1 and the beginning of 2, and one that nobody watches.
    write(&mut disk, 2 * SECTORS_PER_BLOCK - 1, 1024);
    write(&mut disk, 3 * SECTORS_PER_BLOCK, 4096);
    disk.driver
        .fill(DATA, &(6 * SECTORS_PER_BLOCK).to_le_bytes());
    disk.driver.fill(DATA + 8, &1u32.to_le_bytes());
    disk.driver.fill(DATA + 12, &0u32.to_le_bytes());
    let range = [readable(DATA, 16)];
    assert_eq!(disk.request(WRITE_ZEROES, 0, &range), (OK, 1));
    let mut touched = with(&mut disk, Block::end_watch);
    touched.sort_unstable();
    assert_eq!(touched, [1, 2, 6]);
    write(&mut disk, 0, 512);
    let touched = with(&mut disk, Block::end_watch);
    assert!(touched.is_empty(), "the watch has ended: {touched:?}");
}

#[test]
fn what_is_in_flight_counts_as_touched() {
    // Its writes fail, are kept from the guest, and stay in flight.
    let dir = tempfile::tempdir().unwrap();
    let image = memfd_create("disk", MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&image, SECTORS * SECTOR_BYTES).unwrap();
    let path = format!("/proc/self/fd/{}", image.as_raw_fd());
    std::os::unix::fs::symlink(path, dir.path().join("disk.img")).unwrap();
    let mut disk = Disk::at(dir, testing::memory(), ALL, false);
    with(&mut disk, |block| block.withhold_failures(true));
    fcntl_add_seals(&image, SealFlags::WRITE).unwrap();
    disk.offer(OUT, SECTORS_PER_BLOCK, &[readable(DATA, 512)]);
    disk.driver.kick(QUEUE);
    disk.driver.turn();
    assert_eq!(with(&mut disk, |block| block.in_flight.len()), 1);
    with(&mut disk, |block| block.watch(&[0, 1, 2]));
    assert_eq!(with(&mut disk, Block::end_watch), [1]);
    // Of what was in flight at the twin and has not begun here, nobody knows where it goes.
    with(&mut disk, |block| {
        block.reissue.push_back(0);
        block.watch(&[7, 8]);
        assert_eq!(block.end_watch(), [7, 8]);
        block.reissue.clear();
    });
}

#[test]
fn a_guest_that_comes_from_elsewhere_ends_what_was_known() {
    let mut disk = Disk::new(ALL, false);
    with(&mut disk, |block| block.watch(&[3]));
    let state = disk.driver.save();
    disk.driver.device().restore(state).unwrap();
    assert_eq!(with(&mut disk, Block::end_watch), [3]);
}

#[test]
fn a_block_is_recorded_as_it_is_now() {
    let mut disk = Disk::new(ALL, false);
    let twin = Disk::twin(&disk, testing::memory());
    disk.driver.fill(DATA, &[7; 4096]);
    write(&mut disk, 0, 4096);
    // Nobody repeats what is written.
    with(&mut disk, |block| block.record_again(0)).unwrap();
    disk.driver.device().record_disk_writes(true);
    with(&mut disk, |block| block.record_again(0)).unwrap();
    with(&mut disk, |block| block.record_again(1)).unwrap();
    disk.driver.fill(DATA, &[8; 4096]);
    write(&mut disk, 8, 4096);
    let writes = disk.driver.device().take_disk_writes();
    assert_eq!(writes.len(), 3, "what the guest writes later comes later");
    let zeroes = DiskData::Zeroes {
        len: BLOCK_BYTES,
        unmap: true,
    };
    assert_eq!(writes[1].data, zeroes);
    twin.driver.device().apply_disk_writes(&writes).unwrap();
    assert_eq!(twin.contents(), disk.contents());
}

#[test]
fn equal_blocks_have_equal_sums() {
    let mut disk = Disk::new(ALL, false);
    let reader = with(&mut disk, |block| block.reader()).unwrap();
    let before = reader.sum(1).unwrap();
    assert_eq!(before, reader.sum(0).unwrap());
    disk.driver.fill(DATA, &[7; 512]);
    write(&mut disk, 2 * SECTORS_PER_BLOCK - 1, 512);
    assert_ne!(before, reader.sum(1).unwrap());
    assert_eq!(before, reader.sum(2).unwrap());
    let last = (SECTORS / SECTORS_PER_BLOCK) as u32;
    assert_eq!(before, reader.sum(last - 1).unwrap());
    for outside in [last, u32::MAX] {
        assert!(reader.sum(outside).is_err());
        assert!(with(&mut disk, |block| block.record_again(outside)).is_err());
    }
}

#[test]
fn the_last_block_may_be_shorter() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk.img");
    File::create(&image)
        .unwrap()
        .set_len(BLOCK_BYTES + 512)
        .unwrap();
    let mut disk = Disk::at(dir, testing::memory(), ALL, false);
    let reader = with(&mut disk, |block| block.reader()).unwrap();
    reader.sum(1).unwrap();
    disk.driver.device().record_disk_writes(true);
    with(&mut disk, |block| block.record_again(1)).unwrap();
    assert_eq!(disk.driver.device().take_disk_writes()[0].data.span(), 512);
}
