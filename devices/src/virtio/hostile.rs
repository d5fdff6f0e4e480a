//! Guests that write rubbish to registers, rings and buffers (I9): whatever they do, no
//! device panics, hangs, writes outside the buffers it was given, or reaches a state that
//! can't be captured and restored.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use proptest::prelude::*;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress};

use super::block::Block;
use super::feature::TRANSPORT;
use super::net::Net;
use super::rng::Rng;
use super::testing::{self, DATA, Driver, INDIRECT, MEMORY_BYTES, WRITE, reg};
use super::vsock::{SocketPath, Vsock};
use super::{Backend, Device};
use crate::bus::BusDevice;
use crate::gate::OutputGate;
use crate::inbound::InboundLog;

const QUEUE_SIZE: u16 = 16;
const INDIRECT_TABLE: u64 = 0x9_0000;
/// Where the guests of the second test have their buffers.
const BUFFERS: std::ops::Range<u64> = DATA..DATA + 0x4_0000;

/// A device with what its back-end needs around it.
struct Victim<B: Backend> {
    driver: Driver<B>,
    wire: Option<OwnedFd>,
    gate: Option<Arc<OutputGate>>,
    _dir: Option<TempDir>,
}

fn block() -> Victim<Block> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.img");
    std::fs::File::create(&path)
        .unwrap()
        .set_len(1 << 20)
        .unwrap();
    let block = Block::open(0, &path, false, super::block::DiskSerial::of_disk(0)).unwrap();
    Victim {
        driver: Driver::up(testing::memory(), block, TRANSPORT, QUEUE_SIZE),
        wire: None,
        gate: None,
        _dir: Some(dir),
    }
}

/// A card whose guest takes no offloads, or all of them.
fn net(offloads: bool) -> Victim<Net> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let (tap, wire) = socketpair(AddressFamily::UNIX, SocketType::DGRAM, flags, None).unwrap();
    let gate = OutputGate::new(1 << 18).unwrap();
    let net = Net::new(
        0,
        tap,
        [2, 0, 0, 0, 0, 1],
        Arc::clone(&gate),
        InboundLog::new().unwrap(),
    )
    .unwrap();
    let features = TRANSPORT | if offloads { net.features() } else { 0 };
    Victim {
        driver: Driver::up(testing::memory(), net, features, QUEUE_SIZE),
        wire: Some(wire),
        gate: Some(gate),
        _dir: None,
    }
}

fn rng() -> Victim<Rng> {
    Victim {
        driver: Driver::up(testing::memory(), Rng::new(), TRANSPORT, QUEUE_SIZE),
        wire: None,
        gate: None,
        _dir: None,
    }
}

fn vsock() -> Victim<Vsock> {
    let dir = tempfile::tempdir().unwrap();
    let gate = OutputGate::new(1 << 18).unwrap();
    let path = SocketPath::new(&dir.path().join("vm.vsock")).unwrap();
    let vsock = Vsock::new(3, path, Arc::clone(&gate)).unwrap();
    Victim {
        driver: Driver::up(testing::memory(), vsock, TRANSPORT, QUEUE_SIZE),
        wire: None,
        gate: Some(gate),
        _dir: Some(dir),
    }
}

/// One thing a guest, or the world around it, does.
#[derive(Debug, Clone)]
enum Deed {
    Register { offset: u64, value: u32 },
    Access { offset: u64, data: Vec<u8> },
    Scribble { at: u64, data: Vec<u8> },
    Descriptor(Descriptor),
    Request(Request),
    Offer { queue: usize, head: u16 },
    AvailIndex { queue: usize, index: u16 },
    Header { at: u64, kind: u32, sector: u64 },
    Kick { queue: usize },
    Frame { length: usize },
    Gate { hold: bool },
    Restore,
    Restart,
}

#[derive(Debug, Clone)]
struct Descriptor {
    queue: usize,
    indirect: bool,
    index: u16,
    addr: u64,
    len: u32,
    flags: u16,
    next: u16,
}

/// A request as a good driver makes it: header, data in two pieces, a byte for the status.
#[derive(Debug, Clone)]
struct Request {
    queue: usize,
    write: bool,
    sector: u64,
    /// Where the data is; the pieces are apart.
    addr: u64,
    len: u32,
    first: u32,
}

fn request() -> impl Strategy<Value = Request> {
    let sector = prop_oneof![8 => 0u64..2040, 1 => any::<u64>()];
    let len = (1u32..8).prop_map(|sectors| sectors * 512);
    (0usize..3, any::<bool>(), sector, BUFFERS, len, 1u32..512).prop_map(
        |(queue, write, sector, addr, len, first)| Request {
            queue,
            write,
            sector,
            addr,
            len,
            first,
        },
    )
}

fn register() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(reg::STATUS),
        Just(reg::QUEUE_SEL),
        Just(reg::QUEUE_NUM),
        Just(reg::QUEUE_READY),
        Just(reg::QUEUE_NOTIFY),
        Just(reg::QUEUE_DRIVER),
        Just(reg::INTERRUPT_ACK),
        (0u64..0x200).prop_map(|offset| offset & !3),
    ]
}

fn value() -> impl Strategy<Value = u32> {
    prop_oneof![
        0u32..4,
        0u32..256,
        Just(15),
        (0u32..0x4_0000).prop_map(|address| address & !15),
        any::<u32>(),
    ]
}

fn descriptor(wild: bool) -> impl Strategy<Value = Descriptor> {
    let addr = if wild {
        prop_oneof![
            BUFFERS,
            Just(INDIRECT_TABLE),
            0..MEMORY_BYTES as u64 + 64,
            any::<u64>()
        ]
        .boxed()
    } else {
        BUFFERS.boxed()
    };
    let len = prop_oneof![
        Just(1u32),
        Just(12),
        Just(16),
        Just(64),
        Just(512),
        0u32..0x2000,
    ];
    let len = if wild {
        prop_oneof![len, any::<u32>()].boxed()
    } else {
        len.boxed()
    };
    let place = (0usize..3, any::<bool>(), 0..QUEUE_SIZE);
    let next = prop_oneof![0..QUEUE_SIZE, any::<u16>()];
    (place, addr, len, 0u16..8, next).prop_map(
        |((queue, indirect, index), addr, len, flags, next)| Descriptor {
            queue,
            indirect,
            index,
            addr,
            len,
            flags,
            next,
        },
    )
}

/// Deeds that leave the rings' addresses alone.
fn ring_deed(wild: bool) -> BoxedStrategy<Deed> {
    let kind = prop_oneof![0u32..2, 0u32..16, Just(11), Just(13), any::<u32>()];
    let sector = prop_oneof![0u64..2100, any::<u64>()];
    prop_oneof![
        8 => descriptor(wild).prop_map(Deed::Descriptor),
        8 => request().prop_map(Deed::Request),
        6 => (0usize..3, 0..QUEUE_SIZE + 1).prop_map(|(queue, head)| Deed::Offer { queue, head }),
        4 => (0usize..3).prop_map(|queue| Deed::Kick { queue }),
        4 => (BUFFERS, kind, sector)
            .prop_map(|(at, kind, sector)| Deed::Header { at, kind, sector }),
        2 => (1usize..4000).prop_map(|length| Deed::Frame { length }),
        1 => any::<bool>().prop_map(|hold| Deed::Gate { hold }),
        1 => Just(Deed::Restore),
        1 => Just(Deed::Restart),
    ]
    .boxed()
}

fn wild_deed() -> impl Strategy<Value = Deed> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..64);
    prop_oneof![
        8 => (register(), value()).prop_map(|(offset, value)| Deed::Register { offset, value }),
        2 => (0u64..0x1000, bytes()).prop_map(|(offset, data)| Deed::Access { offset, data }),
        4 => (0x1_0000u64..0x4_0000, bytes()).prop_map(|(at, data)| Deed::Scribble { at, data }),
        2 => (0usize..3, any::<u16>())
            .prop_map(|(queue, index)| Deed::AvailIndex { queue, index }),
        16 => ring_deed(true),
    ]
}

impl<B: Backend> Victim<B> {
    fn queues(&self) -> usize {
        self.driver.device().queue_events().len()
    }

    /// Does a deed. Gives where the device may write because of it.
    fn suffer(&mut self, deed: &Deed) -> Vec<std::ops::Range<u64>> {
        let queues = self.queues();
        match deed {
            Deed::Register { offset, value } => self.driver.set(*offset, *value),
            Deed::Access { offset, data } => {
                let mut device = self.driver.device();
                device.write(*offset, data);
                device.read(*offset, &mut data.clone());
            }
            Deed::Scribble { at, data } => self.driver.fill(*at, data),
            Deed::Descriptor(descriptor) => {
                let Descriptor {
                    queue,
                    indirect,
                    index,
                    addr,
                    len,
                    flags,
                    next,
                } = *descriptor;
                let base = match indirect {
                    true => INDIRECT_TABLE,
                    false => testing::table(queue % queues),
                };
                let (addr, len) = match flags & INDIRECT != 0 {
                    true => (INDIRECT_TABLE, 16 * (len % 17)),
                    false => (addr, len),
                };
                let at = base + 16 * u64::from(index);
                self.driver.descriptor(at, addr, len, flags, next);
                if flags & WRITE != 0 {
                    return std::iter::once(addr..addr.saturating_add(len.into())).collect();
                }
            }
            Deed::Request(request) => return self.request(request),
            Deed::Offer { queue, head } => self.driver.publish(queue % queues, *head),
            Deed::AvailIndex { queue, index } => self
                .driver
                .fill(testing::avail(queue % queues) + 2, &index.to_le_bytes()),
            Deed::Header { at, kind, sector } => {
                self.driver.fill(*at, &kind.to_le_bytes());
                self.driver.fill(*at + 8, &sector.to_le_bytes());
            }
            Deed::Kick { queue } => {
                self.driver.kick(queue % queues);
                self.driver.turn();
            }
            Deed::Frame { length } => {
                if let Some(wire) = &self.wire {
                    // A header that says nothing, or nonsense.
                    let mut frame = vec![0x5a; *length];
                    if length % 4 != 0 {
                        frame[..12.min(*length)].fill(0);
                    }
                    let _ = rustix::io::write(wire, &frame);
                    let _ = rustix::io::read(wire, &mut [0; 128]);
                }
            }
            Deed::Gate { hold } => match &self.gate {
                Some(gate) if *hold => gate.hold(),
                Some(gate) => gate.open(),
                None => {}
            },
            Deed::Restore => {
                let mut device = self.driver.device();
                let state = device.save();
                device.restore(state.clone()).unwrap();
                assert_eq!(device.save(), state);
                device.resume();
                device.announce();
            }
            Deed::Restart => {
                self.driver.set(reg::STATUS, 0);
                self.driver.start(TRANSPORT, QUEUE_SIZE);
            }
        }
        Vec::new()
    }

    fn request(&mut self, request: &Request) -> Vec<std::ops::Range<u64>> {
        let Request {
            queue,
            write,
            sector,
            addr,
            len,
            first,
        } = *request;
        let header = BUFFERS.end + 0x1_0000;
        self.driver.fill(header, &u32::from(write).to_le_bytes());
        self.driver.fill(header + 8, &sector.to_le_bytes());
        let pieces = [
            (addr, first),
            (addr + 0x2000, len - first),
            (header + 16, 1),
        ];
        let [one, two, status] = pieces.map(|(addr, len)| testing::writable(addr, len));
        let mut buffers = [testing::readable(header, 16), one, two, status];
        buffers[1].writable = !write;
        buffers[2].writable = !write;
        self.driver.offer(queue % self.queues(), &buffers);
        buffers
            .iter()
            .filter(|buffer| buffer.writable)
            .map(|buffer| buffer.addr..buffer.addr + u64::from(buffer.len))
            .collect()
    }

    /// After anything at all, a reset gives a working device.
    fn still_works(&mut self) {
        self.suffer(&Deed::Restart);
        self.driver.turn();
        assert_eq!(self.driver.get(reg::STATUS), 15);
    }
}

fn anything_goes<B: Backend>(mut victim: Victim<B>, deeds: &[Deed]) {
    for deed in deeds {
        victim.suffer(deed);
    }
    victim.driver.turn();
    victim.still_works();
}

/// Rings where they should be, everything in them rubbish: the device writes to the buffers
/// it was given and to the used rings alone.
fn writes_stay_inside<B: Backend>(mut victim: Victim<B>, deeds: &[Deed], settle: fn(&B) -> bool) {
    let mut allowed: Vec<_> = (0..victim.queues())
        .map(|queue| testing::used(queue)..testing::used(queue) + 6 + 8 * u64::from(QUEUE_SIZE))
        .collect();
    let mem = Arc::clone(&victim.driver.mem);
    let mut expected = vec![0; MEMORY_BYTES];
    let mut actual = vec![0; MEMORY_BYTES];
    mem.read_slice(&mut expected, GuestAddress(0)).unwrap();
    for deed in deeds {
        let device_only = matches!(deed, Deed::Kick { .. } | Deed::Restore | Deed::Frame { .. });
        allowed.extend(victim.suffer(deed));
        if !device_only {
            // What the guest itself wrote is no news.
            mem.read_slice(&mut expected, GuestAddress(0)).unwrap();
            continue;
        }
        while !settle(victim.driver.device().backend()) {
            victim.driver.turn();
        }
        mem.read_slice(&mut actual, GuestAddress(0)).unwrap();
        for range in &allowed {
            let range = range.start as usize..range.end as usize;
            actual[range.clone()].copy_from_slice(&expected[range]);
        }
        assert!(actual == expected, "written outside the buffers");
        mem.read_slice(&mut expected, GuestAddress(0)).unwrap();
    }
    victim.still_works();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn block_survives_anything(deeds in prop::collection::vec(wild_deed(), 1..200)) {
        anything_goes(block(), &deeds);
    }

    #[test]
    fn rng_survives_anything(deeds in prop::collection::vec(wild_deed(), 1..200)) {
        anything_goes(rng(), &deeds);
    }

    #[test]
    fn vsock_survives_anything(deeds in prop::collection::vec(wild_deed(), 1..200)) {
        anything_goes(vsock(), &deeds);
    }

    #[test]
    fn net_survives_anything(
        offloads in any::<bool>(),
        deeds in prop::collection::vec(wild_deed(), 1..200),
    ) {
        anything_goes(net(offloads), &deeds);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn block_writes_stay_inside(deeds in prop::collection::vec(ring_deed(false), 1..60)) {
        writes_stay_inside(block(), &deeds, Block::is_idle);
    }

    #[test]
    fn rng_writes_stay_inside(deeds in prop::collection::vec(ring_deed(false), 1..60)) {
        writes_stay_inside(rng(), &deeds, |_| true);
    }

    #[test]
    fn vsock_writes_stay_inside(deeds in prop::collection::vec(ring_deed(false), 1..60)) {
        writes_stay_inside(vsock(), &deeds, |_| true);
    }

    #[test]
    fn net_writes_stay_inside(
        offloads in any::<bool>(),
        deeds in prop::collection::vec(ring_deed(false), 1..60),
    ) {
        writes_stay_inside(net(offloads), &deeds, |_| true);
    }
}
