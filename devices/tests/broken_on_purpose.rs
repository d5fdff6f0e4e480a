//! The points where a test may break an invariant: each one really breaks it, and nothing
//! is broken while it is off. Built with the feature `failpoints` only.
//!
//! Failpoints belong to the whole process, hence one test that goes through them in turn.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use evertwin_devices::GuestMemory;
use evertwin_devices::bus::BusDevice;
use evertwin_devices::gate::OutputGate;
use evertwin_devices::inbound::InboundLog;
use evertwin_devices::virtio::block::{Block, BlockSet, CopyBase, DiskSerial, Point};
use evertwin_devices::virtio::net::Net;
use evertwin_devices::virtio::{Device, VirtioMmio};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use vm_memory::bitmap::Bitmap;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, MmapRegion};
use vmm_sys_util::eventfd::EventFd;

const TX: u32 = 1;
const TABLE: u64 = 0x1000;
const AVAIL: u64 = 0x2000;
const USED: u64 = 0x3000;
const FRAME: u64 = 0x4000;
const FRAME_BYTES: u32 = 12 + 60;

/// A network card whose guest has one frame to send.
struct Card {
    mem: Arc<GuestMemory>,
    device: VirtioMmio<Net>,
    gate: Arc<OutputGate>,
    wire: OwnedFd,
}

impl Card {
    fn new() -> Self {
        let mem = GuestMemory::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap();
        let mem = Arc::new(mem);
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let (tap, wire) = socketpair(AddressFamily::UNIX, SocketType::DGRAM, flags, None).unwrap();
        let gate = OutputGate::new(1 << 20).unwrap();
        let net = Net::new(
            0,
            tap,
            [2, 0, 0, 0, 0, 1],
            Arc::clone(&gate),
            InboundLog::new().unwrap(),
        )
        .unwrap();
        let device = VirtioMmio::new(Arc::clone(&mem), net).unwrap();
        Self {
            mem,
            device,
            gate,
            wire,
        }
    }

    fn set(&mut self, register: u64, value: u32) {
        self.device.write(register, &value.to_le_bytes());
    }

    /// Brings the card up with a frame in its queue and no notification yet.
    fn with_frame(mut self) -> Self {
        for (register, value) in [
            (0x70, 3),
            (0x24, 1),
            (0x20, 1),
            (0x70, 11),
            (0x30, TX),
            (0x38, 8),
            (0x80, TABLE as u32),
            (0x90, AVAIL as u32),
            (0xa0, USED as u32),
            (0x44, 1),
            (0x70, 15),
        ] {
            self.set(register, value);
        }
        self.mem.write_obj(FRAME, GuestAddress(TABLE)).unwrap();
        let length = GuestAddress(TABLE + 8);
        self.mem.write_obj(FRAME_BYTES, length).unwrap();
        self.mem.write_obj(1u16, GuestAddress(AVAIL + 2)).unwrap();
        self
    }

    fn notify(&mut self) {
        self.set(0x50, TX);
    }

    fn sent(&self) -> bool {
        rustix::io::read(&self.wire, &mut [0; 128]).is_ok()
    }
}

/// I1: does output pass a gate that was told to hold?
fn output_escapes() -> bool {
    let mut card = Card::new().with_frame();
    card.gate.hold();
    card.notify();
    card.sent()
}

/// I6: is a used ring that the device wrote in the dirty bitmap?
fn used_ring_is_dirty() -> bool {
    let mut card = Card::new().with_frame();
    card.notify();
    assert!(card.sent());
    let mapping: &MmapRegion<evertwin_devices::DirtyMarks> = card.mem.iter().next().unwrap();
    mapping.bitmap().dirty_at(USED as usize)
}

/// I7: does a restored card send what its guest had offered?
fn restored_card_sends() -> bool {
    let old = Card::new().with_frame();
    let mut new = Card::new();
    let mut bytes = vec![0; 0x1_0000];
    old.mem.read_slice(&mut bytes, GuestAddress(0)).unwrap();
    new.mem.write_slice(&bytes, GuestAddress(0)).unwrap();
    new.device.restore(old.device.save()).unwrap();
    new.device.resume();
    new.sent()
}

/// I10: does what a copy has brought count before it is durable?
fn received_too_early() -> bool {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk.img");
    File::create(&path).unwrap().set_len(4 << 20).unwrap();
    let open = || {
        let mut disk = Block::open(0, &path, false, DiskSerial::of_disk(0)).unwrap();
        disk.open_mirror("shop", EventFd::new(0).unwrap()).unwrap();
        disk
    };
    let mut lacks = BlockSet::default();
    lacks.insert(0..64);
    let base = CopyBase {
        point: Point(1),
        lacks: lacks.clone(),
    };
    let mut standby = open();
    standby.begin_copy(None, Some(base)).unwrap();
    standby.received(2 << 20);
    // It dies before anybody has heard of the flush.
    drop(standby);
    open().held().changed != lacks
}

#[test]
fn each_point_breaks_its_invariant() {
    type Check = fn() -> bool;
    let checks: [(&str, Check, bool); 4] = [
        ("gate::hold", output_escapes, false),
        ("device::mark", used_ring_is_dirty, true),
        ("device::resume", restored_card_sends, true),
        ("mirror::received_early", received_too_early, false),
    ];
    for (point, check, sound) in checks {
        assert_eq!(check(), sound, "{point} is off");
        fail::cfg(point, "return").unwrap();
        assert_eq!(check(), !sound, "{point} is on");
        fail::remove(point);
        assert_eq!(check(), sound, "{point} is off again");
    }
}
