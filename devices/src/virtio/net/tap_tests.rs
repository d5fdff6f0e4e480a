//! Offloads over real TAPs: cards on a bridge in a network namespace of the test's own.

use std::process::Command;
use std::time::{Duration, Instant};

use rustix::thread::UnshareFlags;

use super::super::Device;
use super::super::feature::{TRANSPORT, VERSION_1};
use super::super::testing::{self, DATA, Driver, readable, reg, writable};
use super::*;

const ETHERNET: usize = 14;
const IPV4: usize = 20;
const TCP: usize = 20;
const PAYLOAD_AT: usize = ETHERNET + IPV4 + TCP;
/// What a card's guest makes of a large segment.
const MSS: usize = 1448;

const MAC_A: [u8; 6] = [0x52, 0x54, 0, 0, 0, 0xa];
const MAC_B: [u8; 6] = [0x52, 0x54, 0, 0, 0, 0xb];

/// Where a card's receive buffers are, and their size.
const BUFFERS: u64 = DATA + 0x10_0000;
const BUFFER_BYTES: u32 = 2048;

const PLAIN: u64 = VERSION_1 | feature::MAC;
const ALL: u64 = TRANSPORT | feature::MAC | feature::OFFLOADS;

/// Runs a test on a thread with a network of its own: a bridge with these TAPs.
fn with_taps(names: &[&str], test: impl FnOnce() + Send) {
    let run = || {
        // SAFETY: only this thread's network namespace changes.
        #[allow(unsafe_code)]
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }
            .expect("a network namespace, as root");
        for path in ["default", "all"] {
            let file = format!("/proc/sys/net/ipv6/conf/{path}/disable_ipv6");
            let _ = std::fs::write(file, "1");
        }
        ip("link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0");
        ip("link set br0 up");
        for name in names {
            ip(&format!("tuntap add {name} mode tap"));
            ip(&format!("link set {name} master br0 up"));
        }
        test();
    };
    let outcome = std::thread::scope(|scope| scope.spawn(run).join());
    outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

fn ip(words: &str) {
    let status = Command::new("ip").args(words.split(' ')).status();
    assert!(status.expect("ip: run `make deps`").success(), "ip {words}");
}

/// Waits until the bridge has noticed that somebody has opened a TAP.
fn wait_for_bridge(tap: &str) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let shown = Command::new("ip")
            .args(["-d", "link", "show", tap])
            .output();
        let shown = shown.expect("ip: run `make deps`").stdout;
        if String::from_utf8_lossy(&shown).contains("state forwarding") {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "the bridge does not forward to {tap}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A card on a TAP.
struct Card {
    driver: Driver<Net>,
    /// Buffers offered so far.
    offered: u64,
}

impl Card {
    fn net(tap: &str, mac: [u8; 6]) -> Net {
        let gate = OutputGate::new(1 << 20).unwrap();
        let fd = open_tap(tap).unwrap();
        wait_for_bridge(tap);
        Net::new(0, fd, mac, gate, InboundLog::new().unwrap()).unwrap()
    }

    fn new(tap: &str, mac: [u8; 6], features: u64) -> Self {
        let driver = Driver::up(testing::memory(), Self::net(tap, mac), features, 64);
        Self { driver, offered: 0 }
    }

    /// Carries on as the guest of another card, which has moved to this TAP.
    fn twin(tap: &str, mac: [u8; 6], other: &Self) -> Self {
        let mut driver = Driver::new(testing::copy(&other.driver.mem), Self::net(tap, mac));
        driver.take_over(&other.driver);
        Self {
            driver,
            offered: other.offered,
        }
    }

    fn offer_buffers(&mut self, count: u64) {
        for _ in 0..count {
            let at = BUFFERS + self.offered * u64::from(BUFFER_BYTES);
            self.offered += 1;
            self.driver.offer(RX, &[writable(at, BUFFER_BYTES)]);
        }
        self.driver.kick(RX);
        self.driver.turn();
    }

    fn send(&mut self, header: [u8; HEADER_BYTES], frame: &[u8]) {
        self.driver.fill(DATA, &header);
        self.driver.fill(DATA + HEADER_BYTES as u64, frame);
        let total = (HEADER_BYTES + frame.len()) as u32;
        self.driver.offer(TX, &[readable(DATA, total)]);
        self.driver.kick(TX);
        self.driver.wait(TX, 1);
    }

    /// Frames that have come, put together from their buffers, with their headers.
    fn received(&mut self, count: usize) -> Vec<([u8; HEADER_BYTES], Vec<u8>)> {
        let mut frames = Vec::new();
        let mut used = Vec::new().into_iter();
        while frames.len() < count {
            let mut bytes = Vec::new();
            let mut left = 1;
            while left > 0 {
                let Some((head, length)) = used.next() else {
                    used = self.driver.wait(RX, 1).into_iter();
                    continue;
                };
                let at = BUFFERS + u64::from(head) * u64::from(BUFFER_BYTES);
                let part = self.driver.bytes(at, length as usize);
                if bytes.is_empty() {
                    let count = [part[10], part[11]];
                    left = u16::from_le_bytes(count).into();
                }
                bytes.extend(part);
                left -= 1;
            }
            let (header, frame) = bytes.split_at(HEADER_BYTES);
            frames.push((header.try_into().unwrap(), frame.to_vec()));
        }
        assert_eq!(used.next(), None, "more came than was expected");
        frames
    }

    fn counters(&self) -> NetCounters {
        self.driver.device().backend().counters()
    }
}

/// The internet's sum over 16-bit words (RFC 1071), folded but not complemented.
fn sum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u32;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn pseudo_header(frame: &[u8]) -> [u8; 12] {
    let mut pseudo = [0; 12];
    pseudo[..8].copy_from_slice(&frame[ETHERNET + 12..ETHERNET + 20]);
    pseudo[9] = 6;
    let length = (frame.len() - ETHERNET - IPV4) as u16;
    pseudo[10..].copy_from_slice(&length.to_be_bytes());
    pseudo
}

/// A TCP segment from A to B with that much payload, its checksum still to be made.
fn segment(payload: usize) -> Vec<u8> {
    let mut frame = vec![0; PAYLOAD_AT + payload];
    frame[..6].copy_from_slice(&MAC_B);
    frame[6..12].copy_from_slice(&MAC_A);
    frame[12..14].copy_from_slice(&[8, 0]);
    let ip_length = (IPV4 + TCP + payload) as u16;
    let ip = &mut frame[ETHERNET..];
    ip[0] = 0x45;
    ip[2..4].copy_from_slice(&ip_length.to_be_bytes());
    ip[6] = 0x40;
    ip[8..10].copy_from_slice(&[64, 6]);
    ip[12..20].copy_from_slice(&[10, 9, 0, 1, 10, 9, 0, 2]);
    let checksum = !sum(&[&ip[..IPV4]]);
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    let tcp = &mut ip[IPV4..];
    tcp[..4].copy_from_slice(&[0x30, 0x39, 0x30, 0x3a]);
    tcp[12..14].copy_from_slice(&[0x50, 0x10]);
    tcp[14] = 0x20;
    for (index, byte) in tcp[TCP..].iter_mut().enumerate() {
        *byte = (index % 251) as u8;
    }
    let partial = sum(&[&pseudo_header(&frame)]);
    frame[ETHERNET + IPV4 + 16..][..2].copy_from_slice(&partial.to_be_bytes());
    frame
}

/// The header of such a segment, to be cut if it is larger than one packet.
fn header(payload: usize) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[0] = 1;
    if payload > MSS {
        header[1] = 1;
        header[2..4].copy_from_slice(&(PAYLOAD_AT as u16).to_le_bytes());
        header[4..6].copy_from_slice(&(MSS as u16).to_le_bytes());
    }
    header[6..8].copy_from_slice(&((ETHERNET + IPV4) as u16).to_le_bytes());
    header[8] = 16;
    header
}

fn has_right_checksum(frame: &[u8]) -> bool {
    sum(&[&pseudo_header(frame), &frame[ETHERNET + IPV4..]]) == 0xffff
}

/// Everything of a frame but what a checksum in the making changes.
fn payload(frame: &[u8]) -> &[u8] {
    &frame[PAYLOAD_AT..]
}

#[test]
fn large_segments_cross_whole_and_are_spread_over_buffers() {
    const LARGE: usize = 60_000;
    with_taps(&["t-a", "t-b"], || {
        let mut a = Card::new("t-a", MAC_A, ALL);
        let mut b = Card::new("t-b", MAC_B, ALL);
        b.offer_buffers(64);
        a.send(header(LARGE), &segment(LARGE));
        let frames = b.received(1);
        let (head, frame) = &frames[0];
        assert_eq!(payload(frame), payload(&segment(LARGE)));
        let buffers = (HEADER_BYTES + frame.len()).div_ceil(BUFFER_BYTES as usize);
        assert_eq!(
            head[..2],
            [1, 1],
            "to be cut and summed by whoever needs it"
        );
        assert_eq!(head[4..6], (MSS as u16).to_le_bytes());
        assert_eq!(head[10..12], (buffers as u16).to_le_bytes());
        assert_eq!((a.counters().tx_dropped, b.counters().rx_dropped), (0, 0));
    });
}

#[test]
fn a_large_segment_waits_for_buffers() {
    const LARGE: usize = 60_000;
    for features in [ALL, VERSION_1 | feature::MAC | feature::OFFLOADS] {
        with_taps(&["t-a", "t-b"], || {
            let mut a = Card::new("t-a", MAC_A, ALL);
            let mut b = Card::new("t-b", MAC_B, features);
            b.offer_buffers(10);
            a.send(header(LARGE), &segment(LARGE));
            a.send(header(100), &segment(100));
            b.driver.turn();
            assert!(b.driver.returned(RX).is_empty());
            b.offer_buffers(10);
            assert!(b.driver.returned(RX).is_empty());
            b.offer_buffers(30);
            let frames = b.received(2);
            assert_eq!(payload(&frames[0].1), payload(&segment(LARGE)));
            assert_eq!(payload(&frames[1].1), payload(&segment(100)));
        });
    }
}

#[test]
fn a_guest_without_offloads_gets_finished_packets() {
    const LARGE: usize = 20_000;
    with_taps(&["t-a", "t-b"], || {
        let mut a = Card::new("t-a", MAC_A, ALL);
        let mut b = Card::new("t-b", MAC_B, PLAIN);
        b.offer_buffers(40);
        a.send(header(700), &segment(700));
        a.send(header(LARGE), &segment(LARGE));
        let frames = b.received(1 + LARGE.div_ceil(MSS));
        let mut bytes = Vec::new();
        for (header, frame) in &frames {
            assert_eq!(header[..10], [0; 10]);
            assert!(frame.len() <= 1514 && has_right_checksum(frame));
            bytes.extend_from_slice(payload(frame));
        }
        let sent = [segment(700), segment(LARGE)];
        assert_eq!(bytes, [payload(&sent[0]), payload(&sent[1])].concat());
    });
}

#[test]
fn a_reset_takes_the_offloads_back() {
    const LARGE: usize = 20_000;
    with_taps(&["t-a", "t-b"], || {
        let mut a = Card::new("t-a", MAC_A, ALL);
        let mut b = Card::new("t-b", MAC_B, ALL);
        b.driver.set(reg::STATUS, 0);
        b.driver.start(PLAIN, 64);
        b.offer_buffers(40);
        a.send(header(LARGE), &segment(LARGE));
        let frames = b.received(LARGE.div_ceil(MSS));
        assert!(frames.iter().all(|(_, frame)| has_right_checksum(frame)));
    });
}

#[test]
fn a_promoted_guest_has_its_offloads_again() {
    const LARGE: usize = 60_000;
    with_taps(&["t-a", "t-b", "t-c"], || {
        let mut a = Card::new("t-a", MAC_A, ALL);
        let mut b = Card::new("t-b", MAC_B, ALL);
        b.offer_buffers(50);
        let state = b.driver.save();
        let mut c = Card::twin("t-c", MAC_B, &b);
        drop(b);
        c.driver.device().restore(state).unwrap();
        // Heard by the standby's TAP, which leaves nothing undone yet.
        a.send(header(3000), &segment(3000));
        c.driver.turn();
        c.driver.device().resume();
        let frames = c.received(3);
        assert!(frames.iter().all(|(_, frame)| has_right_checksum(frame)));
        c.driver.device().announce();
        a.offer_buffers(4);
        a.send(header(LARGE), &segment(LARGE));
        let (head, frame) = &c.received(1)[0];
        assert_eq!(head[..2], [1, 1]);
        assert_eq!(payload(frame), payload(&segment(LARGE)));
        // The announcement has come, as an ordinary frame.
        let (head, frame) = &a.received(1)[0];
        assert_eq!(
            (head[1], &frame[6..14]),
            (0, &[0x52, 0x54, 0, 0, 0, 0xb, 0x80, 0x35][..])
        );
    });
}

#[test]
fn bad_headers_are_dropped_and_counted() {
    with_taps(&["t-a", "t-b"], || {
        let mut a = Card::new("t-a", MAC_A, ALL);
        let mut b = Card::new("t-b", MAC_B, ALL);
        b.offer_buffers(20);
        let good = header(3000);
        let change = |at: usize, value: u16| {
            let mut header = good;
            header[at..at + 2].copy_from_slice(&value.to_le_bytes());
            header
        };
        let mut checksum_only = header(100);
        checksum_only[6..8].copy_from_slice(&60_000u16.to_le_bytes());
        let bad = [
            // Kinds, sizes and places that make no sense, or were never offered.
            change(0, 0x0301),
            change(0, 0x8101),
            change(0, 0xff01),
            change(0, 0x0100),
            change(4, 0),
            change(2, 60_000),
            change(6, 60_000),
            change(6, u16::MAX),
            change(8, 60_000),
            change(8, u16::MAX),
            checksum_only,
        ];
        for header in bad {
            a.send(header, &segment(3000));
        }
        assert_eq!(a.counters().tx_dropped, bad.len() as u64);
        // Too short for what they say of themselves.
        for length in [14, 20, 40] {
            a.send(good, &segment(3000)[..length]);
        }
        assert_eq!(a.driver.get(reg::STATUS), 15);
        a.send(good, &segment(3000));
        let frames = b.received(1);
        assert_eq!(payload(&frames[0].1), payload(&segment(3000)));
    });
}

#[test]
fn what_never_fits_is_dropped() {
    const LARGE: usize = 60_000;
    with_taps(&["t-a", "t-b"], || {
        let mut a = Card::new("t-a", MAC_A, ALL);
        // Sixteen buffers are all that this guest's queue holds.
        let mut b = Card {
            driver: Driver::up(testing::memory(), Card::net("t-b", MAC_B), ALL, 16),
            offered: 0,
        };
        b.offer_buffers(16);
        a.send(header(LARGE), &segment(LARGE));
        a.send(header(100), &segment(100));
        let frames = b.received(1);
        assert_eq!(payload(&frames[0].1), payload(&segment(100)));
        assert_eq!(b.counters().rx_dropped, 1);
    });
}
