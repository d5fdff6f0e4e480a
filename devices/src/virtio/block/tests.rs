use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use tempfile::TempDir;
use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestMemoryBackend, MmapRegion};

use super::super::Device;
use super::super::feature::{EVENT_IDX, INDIRECT_DESC, TRANSPORT, VERSION_1};
use super::super::testing::{self, Buf, DATA, Driver, readable, reg, writable};
use super::*;
use crate::GuestMemory;

pub(super) const SECTORS: u64 = 16384;
pub(super) const ALL: u64 = TRANSPORT
    | feature::SIZE_MAX
    | feature::SEG_MAX
    | feature::BLK_SIZE
    | feature::TOPOLOGY
    | feature::FLUSH;
/// What only a writable disk offers.
pub(super) const ZEROING: u64 = feature::DISCARD | feature::WRITE_ZEROES;
pub(super) const DISCARD: u32 = 11;
pub(super) const WRITE_ZEROES: u32 = 13;
pub(super) const OK: u8 = 0;
pub(super) const IO_ERROR: u8 = 1;
pub(super) const UNSUPPORTED: u8 = 2;

/// Where headers and status bytes of the n-th request are.
fn header_at(n: u64) -> u64 {
    0x8_0000 + 32 * n
}

pub(super) struct Disk {
    pub(super) driver: Driver<Block>,
    pub(super) path: PathBuf,
    requests: u64,
    _dir: TempDir,
}

impl Disk {
    pub(super) fn new(features: u64, read_only: bool) -> Self {
        Self::with_memory(testing::memory(), features, read_only)
    }

    fn with_memory(mem: Arc<GuestMemory>, features: u64, read_only: bool) -> Self {
        Self::on(tempfile::tempdir().unwrap(), mem, features, read_only)
    }

    /// With its image in this directory.
    pub(super) fn on(dir: TempDir, mem: Arc<GuestMemory>, features: u64, read_only: bool) -> Self {
        image_in(&dir);
        Self::at(dir, mem, features, read_only)
    }

    /// With what is called `disk.img` in this directory.
    pub(super) fn at(dir: TempDir, mem: Arc<GuestMemory>, features: u64, read_only: bool) -> Self {
        Self::through(CacheMode::Host, dir, mem, features, read_only)
    }

    /// The same, through the page cache or past it.
    pub(super) fn through(
        cache: CacheMode,
        dir: TempDir,
        mem: Arc<GuestMemory>,
        features: u64,
        read_only: bool,
    ) -> Self {
        let path = dir.path().join("disk.img");
        let mut image = DiskImage::open(&path, read_only).unwrap();
        image.set_cache(cache).unwrap();
        let flags = rustix::fs::fcntl_getfl(image.guests_file()).unwrap();
        let direct = flags.contains(rustix::fs::OFlags::DIRECT);
        assert_eq!(direct, cache != CacheMode::Host);
        let block = Block::over(0, image, DiskSerial::of_disk(0)).unwrap();
        Self {
            driver: Driver::up(mem, block, features, 256),
            path,
            requests: 0,
            _dir: dir,
        }
    }

    /// A device over a blank image that carries on with the driver of another.
    pub(super) fn twin(other: &Self, mem: Arc<GuestMemory>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = image_in(&dir);
        let mut driver = Driver::new(
            mem,
            Block::open(0, &path, false, DiskSerial::of_disk(0)).unwrap(),
        );
        driver.take_over(&other.driver);
        Self {
            driver,
            path,
            requests: other.requests,
            _dir: dir,
        }
    }

    fn buffers(&mut self, kind: u32, sector: u64, data: &[Buf]) -> (Vec<Buf>, u64) {
        let header = header_at(self.requests);
        self.requests += 1;
        self.driver.fill(header, &kind.to_le_bytes());
        self.driver.fill(header + 4, &[0; 4]);
        self.driver.fill(header + 8, &sector.to_le_bytes());
        let status = header + 16;
        self.driver.fill(status, &[0xee]);
        let mut buffers = vec![readable(header, 16)];
        buffers.extend(data);
        buffers.push(writable(status, 1));
        (buffers, status)
    }

    /// Offers a request; gives the address of its status byte.
    pub(super) fn offer(&mut self, kind: u32, sector: u64, data: &[Buf]) -> u64 {
        let (buffers, status) = self.buffers(kind, sector, data);
        self.driver.offer(QUEUE, &buffers);
        status
    }

    /// Has a request done; gives its status and how many bytes were written.
    pub(super) fn request(&mut self, kind: u32, sector: u64, data: &[Buf]) -> (u8, u32) {
        let status = self.offer(kind, sector, data);
        self.driver.kick(QUEUE);
        let returned = self.driver.wait(QUEUE, 1);
        (self.status(status), returned[0].1)
    }

    fn status(&self, at: u64) -> u8 {
        self.driver.bytes(at, 1)[0]
    }

    pub(super) fn contents(&self) -> Vec<u8> {
        fs::read(&self.path).unwrap()
    }
}

fn image_in(dir: &TempDir) -> PathBuf {
    let path = dir.path().join("disk.img");
    let file = fs::File::create(&path).unwrap();
    file.set_len(SECTORS * SECTOR_BYTES).unwrap();
    path
}

fn pattern(seed: u64, len: usize) -> Vec<u8> {
    (0..len as u64)
        .map(|i| ((seed * 7919 + i) % 251) as u8)
        .collect()
}

#[test]
fn writes_reach_the_image_and_reads_return_it() {
    for features in [ALL, VERSION_1, VERSION_1 | EVENT_IDX] {
        let mut disk = Disk::new(features, false);
        let data = pattern(1, 4096);
        disk.driver.fill(DATA, &data);
        // In three pieces, none of them a whole sector.
        let pieces = [
            readable(DATA, 100),
            readable(DATA + 100, 3000),
            readable(DATA + 3100, 996),
        ];
        assert_eq!(disk.request(1, 8, &pieces), (OK, 1));
        assert_eq!(disk.contents()[4096..8192], data);
        assert_eq!(disk.request(4, 0, &[]), (OK, 1));

        let into = [writable(DATA + 0x8000, 1000), writable(DATA + 0x9000, 1048)];
        assert_eq!(disk.request(0, 10, &into), (OK, 2049));
        assert_eq!(disk.driver.bytes(DATA + 0x8000, 1000), data[1024..2024]);
        assert_eq!(disk.driver.bytes(DATA + 0x9000, 1048), data[2024..3072]);
    }
}

#[test]
fn indirect_requests_are_served() {
    let mut disk = Disk::new(ALL, false);
    disk.driver.fill(DATA, &[7; 1024]);
    let (buffers, status) = disk.buffers(1, 0, &[readable(DATA, 512), readable(DATA + 512, 512)]);
    disk.driver.offer_indirect(QUEUE, 0x9_0000, &buffers);
    disk.driver.kick(QUEUE);
    disk.driver.wait(QUEUE, 1);
    assert_eq!(disk.status(status), OK);
    assert_eq!(disk.contents()[..1024], [7; 1024]);
}

#[test]
fn configuration_tells_size_and_limits() {
    let disk = Disk::new(ALL, false);
    assert_eq!(disk.driver.config(0, 8), SECTORS.to_le_bytes());
    assert_eq!(disk.driver.config(8, 4), SIZE_MAX.to_le_bytes());
    assert_eq!(disk.driver.config(12, 4), SEG_MAX.to_le_bytes());
    assert_eq!(disk.driver.get(0x08), 2);
    // Logical block, topology, and what discard and write zeroes take.
    assert_eq!(disk.driver.config(20, 4), 512u32.to_le_bytes());
    assert_eq!(disk.driver.config(24, 8), [3, 0, 8, 0, 0, 0, 0, 0]);
    let word = |at| u32::from_le_bytes(disk.driver.config(at, 4).try_into().unwrap());
    assert_eq!([36, 40, 44].map(word), [MAX_RANGE_SECTORS, 1, 8]);
    assert_eq!([48, 52].map(word), [MAX_RANGE_SECTORS, 1]);
    assert_eq!(disk.driver.config(56, 1), [1]);
}

#[test]
fn identifier_names_the_disk() {
    let mut disk = Disk::new(ALL, false);
    assert_eq!(disk.request(8, 0, &[writable(DATA, 20)]), (OK, 21));
    assert_eq!(disk.driver.bytes(DATA, 20), b"evertwin-vda\0\0\0\0\0\0\0\0");
    assert_eq!(disk.request(8, 0, &[writable(DATA, 19)]), (IO_ERROR, 1));
}

#[test]
fn bad_requests_get_an_error() {
    let mut disk = Disk::new(ALL, false);
    let sector = writable(DATA, 512);
    assert_eq!(disk.request(0, SECTORS, &[sector]), (IO_ERROR, 1));
    assert_eq!(disk.request(0, SECTORS - 1, &[sector]), (OK, 513));
    assert_eq!(disk.request(0, u64::MAX, &[sector]), (IO_ERROR, 1));
    assert_eq!(disk.request(0, u64::MAX / 512, &[sector]), (IO_ERROR, 1));
    assert_eq!(disk.request(0, 0, &[writable(DATA, 511)]), (IO_ERROR, 1));
    assert_eq!(disk.request(0, 0, &[]), (IO_ERROR, 1));
    assert_eq!(disk.request(1, 0, &[]), (IO_ERROR, 1));
    assert_eq!(
        disk.request(1, SECTORS, &[readable(DATA, 512)]),
        (IO_ERROR, 1)
    );
    let too_long = [readable(DATA, MAX_REQUEST_BYTES + 512)];
    assert_eq!(disk.request(1, 0, &too_long), (IO_ERROR, 1));
    assert_eq!(disk.request(0x1234, 0, &[]), (UNSUPPORTED, 1));
    assert_eq!(disk.request(2, 0, &[]), (UNSUPPORTED, 1));
    // A header that is too short.
    disk.driver
        .offer(QUEUE, &[readable(DATA, 15), writable(DATA + 16, 1)]);
    disk.driver.kick(QUEUE);
    disk.driver.wait(QUEUE, 1);
    assert_eq!(disk.status(DATA + 16), IO_ERROR);
    assert_eq!(disk.driver.get(reg::STATUS), 15);
    // No place for the status: the guest can't be answered.
    disk.driver.offer(QUEUE, &[readable(DATA, 16)]);
    disk.driver.kick(QUEUE);
    disk.driver.turn();
    assert_eq!(disk.driver.get(reg::STATUS), 15 | 64);
}

#[test]
fn the_longest_request_is_served() {
    let mut disk = Disk::new(ALL, false);
    let data = pattern(3, MAX_REQUEST_BYTES as usize);
    disk.driver.fill(DATA, &data);
    let all = [readable(DATA, MAX_REQUEST_BYTES)];
    assert_eq!(disk.request(1, 5, &all), (OK, 1));
    assert_eq!(disk.contents()[5 * 512..][..data.len()], data);
}

#[test]
fn a_read_only_disk_is_not_written() {
    let mut disk = Disk::new(ALL | feature::RO, true);
    assert_eq!(disk.request(1, 0, &[readable(DATA, 512)]), (IO_ERROR, 1));
    assert_eq!(disk.request(0, 0, &[writable(DATA, 512)]), (OK, 513));
    assert!(disk.contents().iter().all(|&byte| byte == 0));
}

#[test]
fn many_requests_are_in_flight_at_once() {
    let mut disk = Disk::new(ALL, false);
    let statuses: Vec<u64> = (0..80)
        .map(|i| {
            let at = DATA + i * 0x1_0000;
            disk.driver.fill(at, &pattern(i, 0x8000));
            disk.offer(1, i * 64, &[readable(at, 0x8000)])
        })
        .collect();
    disk.driver.kick(QUEUE);
    let mut heads: Vec<u32> = disk.driver.wait(QUEUE, 80).iter().map(|r| r.0).collect();
    heads.sort_unstable();
    assert_eq!(heads, (0..80).map(|i| i * 3).collect::<Vec<_>>());
    let contents = disk.contents();
    for (i, status) in statuses.into_iter().enumerate() {
        assert_eq!(disk.status(status), OK);
        assert_eq!(contents[i * 0x8000..][..0x8000], pattern(i as u64, 0x8000));
    }
}

#[test]
fn what_is_in_flight_is_bounded() {
    let mut disk = Disk::new(ALL, false);
    for i in 0..64 {
        disk.offer(1, 0, &[readable(DATA + i, MAX_REQUEST_BYTES)]);
    }
    disk.driver.kick(QUEUE);
    let mut returned = 0;
    while returned < 64 {
        returned += disk.driver.wait(QUEUE, 1).len();
        let bytes = disk.driver.device().backend().in_flight_bytes;
        assert!(bytes < MAX_IN_FLIGHT_BYTES + MAX_REQUEST_BYTES as usize);
    }
}

#[test]
fn everything_the_device_writes_is_dirty() {
    let mut disk = Disk::new(ALL, false);
    let status = disk.offer(0, 0, &[writable(DATA + 4000, 1024)]);
    let mem = Arc::clone(&disk.driver.mem);
    let mapping: &MmapRegion<crate::DirtyMarks> = mem.iter().next().unwrap();
    mapping.bitmap().reset();
    disk.driver.kick(QUEUE);
    disk.driver.wait(QUEUE, 1);
    let dirty = |address: u64| mapping.bitmap().dirty_at(address as usize);
    assert!(dirty(DATA + 4000) && dirty(DATA + 5000) && dirty(status));
    assert!(dirty(testing::used(QUEUE)));
    assert!(!dirty(testing::table(QUEUE)) && !dirty(testing::avail(QUEUE)));
}

#[test]
fn writes_are_recorded_and_repeated_on_the_twin() {
    let mut disk = Disk::new(ALL, false);
    let twin = Disk::twin(&disk, testing::memory());
    disk.driver.fill(DATA, &pattern(1, 1024));
    disk.request(1, 0, &[readable(DATA, 512)]);
    assert!(disk.driver.device().take_disk_writes().is_empty());

    disk.driver.device().record_disk_writes(true);
    disk.request(1, 2, &[readable(DATA + 1, 512), readable(DATA, 512)]);
    disk.request(0, 2, &[writable(DATA + 4096, 512)]);
    disk.request(1, 3, &[readable(DATA + 9, 512)]);
    let mut writes = disk.driver.device().take_disk_writes();
    assert_eq!(writes.len(), 2);
    assert_eq!(
        (writes[0].disk, writes[0].offset, writes[0].data.span()),
        (0, 1024, 1024)
    );
    assert!(disk.driver.device().take_disk_writes().is_empty());

    // Another disk's writes are none of its business, and none passes its end.
    let mut foreign = writes[0].clone();
    foreign.disk = 1;
    foreign.offset = 0;
    writes.push(foreign);
    twin.driver.device().apply_disk_writes(&writes).unwrap();
    assert_eq!(twin.contents()[1024..], disk.contents()[1024..]);
    assert_eq!(twin.contents()[..1024], [0; 1024]);
    writes[0].offset = SECTORS * SECTOR_BYTES - 512;
    assert!(twin.driver.device().apply_disk_writes(&writes).is_err());

    disk.request(1, 3, &[readable(DATA, 512)]);
    disk.driver.device().record_disk_writes(false);
    assert!(disk.driver.device().take_disk_writes().is_empty());
}

#[test]
fn recorded_writes_hold_the_guest_back() {
    let mut disk = Disk::new(ALL, false);
    disk.driver.device().record_disk_writes(true);
    for _ in 0..30 {
        disk.offer(1, 0, &[readable(DATA, MAX_REQUEST_BYTES)]);
    }
    disk.driver.kick(QUEUE);
    let limit = MAX_RECORDED_BYTES / MAX_REQUEST_BYTES as usize;
    let before = disk.driver.wait(QUEUE, limit).len();
    while disk.driver.device().backend().ring.in_flight() > 0 {
        disk.driver.turn();
    }
    let before = before + disk.driver.returned(QUEUE).len();
    let most = limit + MAX_IN_FLIGHT_BYTES / MAX_REQUEST_BYTES as usize;
    assert!((limit..=most).contains(&before), "{before}");
    // Taking them lets the rest go.
    assert_eq!(disk.driver.device().take_disk_writes().len(), before);
    disk.driver.wait(QUEUE, 30 - before);
}

/// A request that was in flight when the state was captured is done on the twin.
#[test]
fn requests_in_flight_are_issued_again() {
    let mut disk = Disk::new(ALL, false);
    // Taken off the ring by the device, and not answered: as if the disk were slow.
    disk.driver.fill(DATA, &[5; 512]);
    let write = disk.offer(1, 3, &[readable(DATA, 512)]);
    let read = disk.offer(0, 9, &[writable(DATA + 512, 512)]);
    let twin_memory = testing::copy(&disk.driver.mem);
    let mut state = disk.driver.save();
    state.transport.queues[QUEUE].next_avail = 2;
    state.backend = BackendState::Block(BlockState {
        in_flight: vec![0, 3],
    });

    let mut twin = Disk::twin(&disk, twin_memory);
    twin.driver.fill(DATA + 512, &[1; 512]);
    twin.driver.device().restore(state.clone()).unwrap();
    assert_eq!(twin.driver.save(), state, "still in flight");
    twin.driver.turn();
    assert_eq!(twin.driver.save(), state, "nothing moves before resume");
    twin.driver.device().resume();
    twin.driver.wait(QUEUE, 2);
    assert_eq!((twin.status(write), twin.status(read)), (OK, OK));
    assert_eq!(twin.contents()[3 * 512..4 * 512], [5; 512]);
    assert_eq!(twin.driver.bytes(DATA + 512, 512), [0; 512]);
    assert!(twin.driver.interrupted());
}

/// Captures in mid-workload, at many moments: the twin, with the writes recorded so far,
/// finishes every request, and the disk is as if nothing had happened.
#[test]
fn a_state_captured_at_any_moment_goes_on() {
    const ROUNDS: u64 = 120;
    let mut in_flight_seen = 0;
    for round in 0..ROUNDS {
        let mut disk = Disk::new(ALL, false);
        disk.driver.device().record_disk_writes(true);
        let mut statuses = Vec::new();
        for i in 0..24 {
            let at = DATA + i * 0x1000;
            disk.driver.fill(at, &pattern(round + i, 0x1000));
            statuses.push(disk.offer(1, i * 8, &[readable(at, 0x1000)]));
            if i % 4 == 0 {
                statuses.push(disk.offer(4, 0, &[]));
            }
        }
        // Nothing begun, just begun, or some of it done.
        match round % 3 {
            0 => {}
            1 => disk.driver.set(reg::QUEUE_NOTIFY, 0),
            _ => {
                disk.driver.set(reg::QUEUE_NOTIFY, 0);
                disk.driver.turn();
            }
        }
        let (state, writes, memory) = {
            let mut device = disk.driver.device();
            let memory = testing::copy(&disk.driver.mem);
            (device.save(), device.take_disk_writes(), memory)
        };
        if let BackendState::Block(BlockState { in_flight }) = &state.backend {
            in_flight_seen += in_flight.len();
        }

        let mut twin = Disk::twin(&disk, memory);
        drop(disk);
        twin.driver.device().apply_disk_writes(&writes).unwrap();
        twin.driver.device().restore(state).unwrap();
        twin.driver.device().resume();
        twin.driver.wait(QUEUE, statuses.len());
        for status in statuses {
            assert_eq!(twin.status(status), OK);
        }
        let contents = twin.contents();
        for i in 0..24 {
            let expected = pattern(round + i, 0x1000);
            assert_eq!(
                contents[i as usize * 0x1000..][..0x1000],
                expected,
                "round {round}"
            );
        }
    }
    assert!(in_flight_seen > 0, "no state had requests in flight");
}

#[test]
fn impossible_requests_in_flight_are_refused() {
    let disk = Disk::new(ALL, false);
    let good = disk.driver.save();
    for in_flight in [vec![256], vec![0; DEPTH + 1]] {
        let mut state = good.clone();
        state.backend = BackendState::Block(BlockState { in_flight });
        let refused = disk.driver.device().restore(state);
        assert_eq!(refused, Err(RestoreError::InFlight));
    }
    let mut state = good.clone();
    state.transport.queues[QUEUE].ready = false;
    state.backend = BackendState::Block(BlockState { in_flight: vec![0] });
    let refused = disk.driver.device().restore(state);
    assert_eq!(refused, Err(RestoreError::InFlight));
    assert_eq!(disk.driver.save(), good);
}

#[test]
fn reset_forgets_requests_but_not_their_writes() {
    let mut disk = Disk::new(ALL, false);
    disk.driver.device().record_disk_writes(true);
    let statuses: Vec<u64> = (0..50)
        .map(|i| {
            disk.offer(4, 0, &[]);
            disk.offer(1, i * 8, &[readable(DATA, 4096)])
        })
        .collect();
    disk.driver.fill(DATA, &[3; 4096]);
    disk.driver.set(reg::QUEUE_NOTIFY, 0);
    let answered = disk.driver.returned(QUEUE).len();
    disk.driver.set(reg::STATUS, 0);
    let untouched: Vec<u64> = statuses
        .into_iter()
        .filter(|&status| disk.status(status) == 0xee)
        .collect();
    disk.driver.start(ALL, 256);
    assert!(answered <= 100);
    // The new driver's request comes after all of the old ones.
    assert_eq!(disk.request(0, 0, &[writable(DATA + 4096, 512)]), (OK, 513));
    assert_eq!(disk.driver.device().backend().ring.in_flight(), 0);
    for status in untouched {
        assert_eq!(disk.status(status), 0xee, "an old request was answered");
    }
    let written = disk.driver.device().take_disk_writes();
    let contents = disk.contents();
    let on_disk = (0..50).filter(|i| contents[i * 4096] == 3).count();
    assert_eq!(written.len(), on_disk);
}

#[test]
fn device_features_depend_on_the_image() {
    let disk = Disk::new(ALL | INDIRECT_DESC, false);
    let offered = disk.driver.device().backend().features();
    assert_eq!(offered & (feature::RO | ZEROING), ZEROING);
    let disk = Disk::new(ALL, true);
    let offered = disk.driver.device().backend().features();
    assert_eq!(offered & (feature::RO | ZEROING), feature::RO);
    let identity = disk.driver.device().identity();
    assert_eq!(
        identity.to_string(),
        "disk 0, evertwin-vda, of 16384 sectors, read-only"
    );
}
