//! Discards and write zeroes requests, here and on the twin.

use std::os::unix::fs::MetadataExt as _;

use super::super::Device;
use super::super::feature::VERSION_1;
use super::super::testing::{self, DATA, readable};
use super::tests::{ALL, DISCARD, Disk, IO_ERROR, OK, SECTORS, UNSUPPORTED, WRITE_ZEROES, ZEROING};
use super::*;

const OUT: u32 = 1;

impl Disk {
    /// Has a range discarded or zeroed.
    fn zero(&mut self, kind: u32, sector: u64, sectors: u32, flags: u32) -> u8 {
        self.driver.fill(DATA, &sector.to_le_bytes());
        self.driver.fill(DATA + 8, &sectors.to_le_bytes());
        self.driver.fill(DATA + 12, &flags.to_le_bytes());
        self.request(kind, 0, &[readable(DATA, 16)]).0
    }

    /// Fills the first MiB with ones.
    fn ones(&mut self) {
        self.driver.fill(DATA, &[1; 1 << 20]);
        let all = [readable(DATA, 1 << 20)];
        assert_eq!(self.request(OUT, 0, &all), (OK, 1));
    }

    fn blocks(&self) -> u64 {
        std::fs::metadata(&self.path).unwrap().blocks()
    }
}

#[test]
fn ranges_become_zero_and_nothing_else_does() {
    // Without FLUSH, zeroes are made durable as well.
    for features in [ALL | ZEROING, VERSION_1 | ZEROING] {
        let mut disk = Disk::new(features, false);
        disk.ones();
        let mut expected = vec![1; 1 << 20];
        let requests = [
            (DISCARD, 8, 64, 0),
            (WRITE_ZEROES, 101, 3, 0),
            (WRITE_ZEROES, 999, 500, 1),
        ];
        for (kind, sector, sectors, flags) in requests {
            assert_eq!(disk.zero(kind, sector, sectors, flags), OK);
            expected[sector as usize * 512..][..sectors as usize * 512].fill(0);
        }
        assert_eq!(disk.contents()[..1 << 20], expected);
        assert_eq!(disk.zero(DISCARD, 0, SECTORS as u32, 0), OK);
        assert!(disk.contents().iter().all(|&byte| byte == 0));
    }
}

#[test]
fn discards_give_space_back_and_plain_zeroes_keep_it() {
    let mut disk = Disk::new(ALL | ZEROING, false);
    disk.ones();
    let full = disk.blocks();
    assert_eq!(disk.zero(WRITE_ZEROES, 0, 2048, 0), OK);
    assert!(disk.blocks() >= full, "{} of {full}", disk.blocks());
    assert_eq!(disk.zero(WRITE_ZEROES, 0, 1024, 1), OK);
    assert_eq!(disk.zero(DISCARD, 1024, 1024, 0), OK);
    assert!(disk.blocks() < full / 2, "{} of {full}", disk.blocks());
}

/// A tmpfs can punch holes, but not make zeroes otherwise.
#[test]
fn zeroes_are_written_where_the_file_system_can_not_make_them() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let mut disk = Disk::on(dir, testing::memory(), ALL | ZEROING, false);
    disk.driver.device().record_disk_writes(true);
    disk.ones();
    assert_eq!(disk.zero(WRITE_ZEROES, 1, 1000, 0), OK);
    assert_eq!(disk.zero(DISCARD, 1001, 1000, 0), OK);
    let mut expected = vec![1; 1 << 20];
    expected[512..2001 * 512].fill(0);
    assert_eq!(disk.contents()[..1 << 20], expected);
    let recorded = disk.driver.device().backend().recorded_bytes;
    assert_eq!(recorded, (1 << 20) + 1000 * 512 + RECORDED_RANGE_BYTES);
    let writes = disk.driver.device().take_disk_writes();
    let twin = Disk::on(
        tempfile::tempdir_in("/dev/shm").unwrap(),
        testing::memory(),
        ALL,
        false,
    );
    twin.driver.device().apply_disk_writes(&writes).unwrap();
    assert_eq!(twin.contents()[..1 << 20], expected);
}

#[test]
fn bad_ranges_are_refused_and_change_nothing() {
    let mut disk = Disk::new(ALL | ZEROING, false);
    disk.driver.device().record_disk_writes(true);
    disk.ones();
    for kind in [DISCARD, WRITE_ZEROES] {
        let mut zero = |sector, sectors| disk.zero(kind, sector, sectors, 0);
        assert_eq!(zero(0, 0), IO_ERROR);
        assert_eq!(zero(SECTORS, 1), IO_ERROR);
        assert_eq!(zero(SECTORS - 1, 2), IO_ERROR);
        assert_eq!(zero(0, MAX_RANGE_SECTORS + 1), IO_ERROR);
        assert_eq!(zero(0, u32::MAX), IO_ERROR);
        assert_eq!(zero(u64::MAX, 1), IO_ERROR);
        assert_eq!(zero(u64::MAX / 512, 1), IO_ERROR);
        // Flags nobody knows, whatever the range.
        for flags in [2, 3, u32::MAX] {
            assert_eq!(disk.zero(kind, 0, 8, flags), UNSUPPORTED);
        }
        assert_eq!(disk.zero(kind, SECTORS, 8, 2), UNSUPPORTED);
        // Half a range, one and a half, two, none.
        for len in [8, 24, 32] {
            let data = [readable(DATA, len)];
            assert_eq!(disk.request(kind, 0, &data), (IO_ERROR, 1));
        }
        assert_eq!(disk.request(kind, 0, &[]), (IO_ERROR, 1));
    }
    assert_eq!(disk.zero(DISCARD, 0, 8, 1), UNSUPPORTED);
    assert_eq!(disk.contents()[..1 << 20], vec![1; 1 << 20]);
    let recorded = disk.driver.device().take_disk_writes();
    assert_eq!(recorded.len(), 1, "only what was written at first");
}

#[test]
fn a_read_only_disk_is_not_zeroed() {
    let mut disk = Disk::new(ALL | feature::RO, true);
    assert_eq!(disk.zero(DISCARD, 0, 8, 0), IO_ERROR);
    assert_eq!(disk.zero(WRITE_ZEROES, 0, 8, 0), IO_ERROR);
}

/// Zeroes before, between and after writes of the same sectors, in one epoch.
#[test]
fn the_twins_disk_is_the_same_in_whatever_order_they_come() {
    let mut disk = Disk::new(ALL | ZEROING, false);
    let twin = Disk::twin(&disk, testing::memory());
    disk.driver.device().record_disk_writes(true);
    disk.ones();
    let mut seed = 7u64;
    for _ in 0..300 {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1);
        let (sector, sectors) = (seed >> 33 & 255, 1 + (seed >> 45 & 31));
        match seed >> 60 {
            0..8 => {
                let len = sectors as u32 * 512;
                disk.driver
                    .fill(DATA, &vec![(seed >> 50) as u8; len as usize]);
                assert_eq!(disk.request(OUT, sector, &[readable(DATA, len)]).0, OK);
            }
            8..11 => assert_eq!(disk.zero(DISCARD, sector, sectors as u32, 0), OK),
            flags => {
                let unmap = flags as u32 & 1;
                let status = disk.zero(WRITE_ZEROES, sector, sectors as u32, unmap);
                assert_eq!(status, OK);
            }
        }
    }
    let writes = disk.driver.device().take_disk_writes();
    let zeroes = |write: &&DiskWrite| matches!(write.data, DiskData::Zeroes { .. });
    assert!(writes.iter().filter(zeroes).count() > 50);
    twin.driver.device().apply_disk_writes(&writes).unwrap();
    assert!(twin.contents() == disk.contents());

    let outside = DiskWrite {
        disk: 0,
        offset: SECTORS * SECTOR_BYTES - 512,
        data: DiskData::Zeroes {
            len: 1024,
            unmap: true,
        },
    };
    let error = twin.driver.device().apply_disk_writes(&[outside]);
    assert!(error.unwrap_err().to_string().contains("disk.img"));
}

#[test]
fn recorded_ranges_are_small_and_bounded() {
    let mut disk = Disk::new(ALL | ZEROING, false);
    disk.driver.device().record_disk_writes(true);
    assert_eq!(disk.zero(DISCARD, 0, SECTORS as u32, 0), OK);
    assert!(disk.driver.device().backend().recorded_bytes <= RECORDED_RANGE_BYTES);
    let most = MAX_RECORDED_BYTES / RECORDED_RANGE_BYTES;
    for _ in 1..most {
        assert_eq!(disk.zero(DISCARD, 0, 8, 0), OK);
    }
    // One more has to wait until these are taken.
    disk.offer(DISCARD, 0, &[readable(DATA, 16)]);
    disk.driver.kick(QUEUE);
    disk.driver.turn();
    assert!(disk.driver.returned(QUEUE).is_empty());
    assert_eq!(disk.driver.device().take_disk_writes().len(), most);
    disk.driver.wait(QUEUE, 1);
}

/// A loop device over a file, detached when dropped.
struct Loop(String);

impl Loop {
    fn over(file: &std::path::Path) -> Self {
        let output = std::process::Command::new("losetup")
            .args(["--find", "--show"])
            .arg(file)
            .output()
            .expect("losetup: run `make deps`");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "loop device, as root: {error}");
        Self(String::from_utf8(output.stdout).unwrap().trim().to_owned())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let mut detach = std::process::Command::new("losetup");
        let _ = detach.args(["--detach", &self.0]).status();
    }
}

#[test]
fn a_block_device_is_a_disk_as_well() {
    use_a_block_device(CacheMode::Host);
}

#[test]
fn a_block_device_is_used_past_the_page_cache() {
    use_a_block_device(CacheMode::Auto);
}

fn use_a_block_device(cache: CacheMode) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("backing.img");
    let backing = std::fs::File::create(&file).unwrap();
    backing.set_len(SECTORS * SECTOR_BYTES).unwrap();
    let device = Loop::over(&file);
    // What holds device files here is a path like any other.
    std::os::unix::fs::symlink(&device.0, dir.path().join("disk.img")).unwrap();
    let mut disk = Disk::through(cache, dir, testing::memory(), ALL | ZEROING, false);
    assert_eq!(disk.driver.config(0, 8), SECTORS.to_le_bytes());
    disk.driver.device().record_disk_writes(true);
    disk.ones();
    assert_eq!(disk.zero(DISCARD, 8, 64, 0), OK);
    assert_eq!(disk.zero(WRITE_ZEROES, 101, 3, 0), OK);
    assert_eq!(disk.zero(WRITE_ZEROES, 200, 8, 1), OK);
    let mut expected = vec![1; 1 << 20];
    for range in [8..72, 101..104, 200..208] {
        expected[range.start * 512..range.end * 512].fill(0);
    }
    assert_eq!(disk.contents()[..1 << 20], expected);
    let writes = disk.driver.device().take_disk_writes();
    assert_eq!(writes.len(), 4);
    disk.driver
        .device()
        .disk()
        .unwrap()
        .begin_copy(None, None)
        .unwrap();
    assert!(disk.contents().iter().all(|&byte| byte == 0));
    disk.driver.device().apply_disk_writes(&writes).unwrap();
    assert_eq!(disk.contents()[..1 << 20], expected);
    let piece = disk.driver.device().next_disk_contents(0, 4096).unwrap();
    assert_eq!(
        piece.unwrap().data,
        DiskData::Bytes(expected[..4096].to_vec().into())
    );
    // The device goes before what it is made of.
    drop(disk.driver);
    drop(device);
}
