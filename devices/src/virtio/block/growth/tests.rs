//! The guest is told, and what it then does is on the disk.

use std::fs::OpenOptions;

use super::super::tests::{ALL, Disk, IO_ERROR, OK, SECTORS, ZEROING};
use super::*;
use crate::virtio::testing::{self, DATA, readable};
use crate::virtio::{Device, RestoreError};

const LARGE: u64 = 2 * SECTORS;

fn write(disk: &mut Disk, sector: u64) -> u8 {
    disk.driver.fill(DATA, &[9; 512]);
    disk.request(1, sector, &[readable(DATA, 512)]).0
}

fn sectors(disk: &Disk) -> u64 {
    u64::from_le_bytes(disk.driver.config(0, 8).try_into().unwrap())
}

/// Makes room as a monitor does, and no more.
fn make_room(disk: &mut Disk, bytes: u64) -> Result<(), GrowthError> {
    let mut device = disk.driver.device();
    let block = device.disk().unwrap();
    let room = block.room(bytes).unwrap();
    room.clear()?;
    room.extend(true)?;
    block.use_room(bytes).unwrap();
    Ok(())
}

#[test]
fn the_guest_is_told_and_can_use_what_is_new() {
    let mut disk = Disk::new(ALL | ZEROING, false);
    // There is no room before it is made, and room is not the guest's.
    assert!(!disk.driver.device().grow(LARGE));
    make_room(&mut disk, LARGE * SECTOR_BYTES).unwrap();
    assert_eq!(
        (sectors(&disk), write(&mut disk, SECTORS)),
        (SECTORS, IO_ERROR)
    );
    let generation = disk.driver.get(0xfc);
    assert!(disk.driver.device().grow(LARGE));
    assert_ne!(disk.driver.get(0xfc), generation);
    // Interrupt status: the configuration has changed (4.2.2).
    assert_eq!(disk.driver.get(0x60) & 2, 2);
    assert_eq!((sectors(&disk), write(&mut disk, LARGE - 1)), (LARGE, OK));
    assert_eq!(write(&mut disk, LARGE), IO_ERROR);
    let contents = disk.contents();
    let end = (LARGE - 1) * SECTOR_BYTES;
    assert_eq!(contents[end as usize..], [9; 512]);
    // It does not shrink, nor grow to what it is.
    for sectors in [SECTORS, LARGE, LARGE + 1] {
        assert!(!disk.driver.device().grow(sectors), "{sectors}");
    }
}

#[test]
fn a_twin_has_the_size_that_the_guest_was_told() {
    let mut disk = Disk::new(ALL, false);
    let before = disk.driver.device().save();
    make_room(&mut disk, LARGE * SECTOR_BYTES).unwrap();
    assert_eq!(disk.driver.device().save(), before);
    assert!(disk.driver.device().grow(LARGE));
    let after = disk.driver.device().save();
    assert_eq!((before.grown_to(), after.grown_to()), (None, Some(LARGE)));

    let mut twin = Disk::twin(&disk, testing::memory());
    let refused = twin.driver.device().restore(after.clone());
    assert_eq!(refused, Err(RestoreError::Size(LARGE)));
    make_room(&mut twin, LARGE * SECTOR_BYTES).unwrap();
    twin.driver.device().restore(before).unwrap();
    assert_eq!(sectors(&twin), SECTORS);
    twin.driver.device().restore(after.clone()).unwrap();
    assert_eq!(
        (sectors(&twin), twin.driver.device().save()),
        (LARGE, after)
    );
}

#[test]
fn what_is_behind_the_end_must_be_zeroes() {
    let mut disk = Disk::new(ALL, false);
    let bytes = LARGE * SECTOR_BYTES;
    let file = OpenOptions::new().write(true).open(&disk.path).unwrap();
    file.set_len(bytes).unwrap();
    let write = |at: u64, byte: u8| {
        std::os::unix::fs::FileExt::write_all_at(&file, &[byte], at).unwrap();
    };
    write(bytes - 1, 1);
    let refused = make_room(&mut disk, bytes);
    assert!(
        matches!(refused, Err(GrowthError::NotEmpty { .. })),
        "{refused:?}"
    );
    write(bytes - 1, 0);
    make_room(&mut disk, bytes).unwrap();
}

#[test]
fn a_copy_of_a_smaller_disk_has_nothing_behind_it() {
    let disk = Disk::new(ALL, false);
    let signal = vmm_sys_util::eventfd::EventFd::new(0).unwrap();
    let end = SECTORS * SECTOR_BYTES;
    let mut device = disk.driver.device();
    let block = device.disk().unwrap();
    block.open_mirror("vm", signal).unwrap();
    block.fit(end / 2).unwrap();
    let image = block.ring.image();
    image.write_at(end / 2, &[7; 512]).unwrap();
    image.write_at(0, &[7; 512]).unwrap();
    // Of a point that it knows: what the twin did not write stays.
    let point = super::super::Point(5);
    block.begin_point(point, &[]);
    block.begin_copy(Some(point), None).unwrap();
    drop(device);
    let contents = disk.contents();
    assert_eq!(contents.len() as u64, end);
    assert_eq!(contents[..512], [7; 512]);
    assert!(contents[512..].iter().all(|byte| *byte == 0));
}
