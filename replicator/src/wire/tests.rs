//! Round trips, and hostile bytes: nothing harmed is ever taken for whole (I3, I9).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use evertwin_protocol::Status;
use proptest::collection::vec;
use proptest::prelude::*;

use super::header::HEADER_LEN;
use super::*;
use crate::machine::{
    Capture, CpuLeaf, DiskData, DiskWrite, Identity, InboundFrame, MemoryRegion, PAGE_SIZE,
};

const MEMORY: [MemoryRegion; 2] = [
    MemoryRegion {
        start: 0,
        len: 400 * PAGE_SIZE as u64,
    },
    MemoryRegion {
        start: 0x1000 * PAGE_SIZE as u64,
        len: 10 * PAGE_SIZE as u64,
    },
];

/// An epoch of that many pages, with state and disk writes.
fn epoch(pages: u64, state: usize, writes: &[usize]) -> Arc<Capture> {
    let mut capture = Capture::default();
    for page in 0..pages {
        capture.pages.push((page * 7) % 400);
        let byte = page as u8;
        capture.bytes.extend(std::iter::repeat_n(byte, PAGE_SIZE));
    }
    capture.state = (0..state).map(|at| (at / 1000) as u8).collect();
    for (index, len) in writes.iter().enumerate() {
        capture.disk_writes.push(DiskWrite {
            disk: index as u32,
            offset: index as u64 * 512,
            data: DiskData::Bytes(vec![index as u8; *len].into()),
        });
        // Zeroes in the midst of it stay in their place.
        capture.disk_writes.push(DiskWrite {
            disk: 9,
            offset: index as u64,
            data: DiskData::Zeroes {
                len: 1 << (40 + index),
                unmap: index % 2 == 1,
            },
        });
    }
    Arc::new(capture)
}

fn frames(capture: &Arc<Capture>) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    ship(capture, Delta::whole(capture), 3, 9, 410, |frame| {
        frames.push([frame.head.as_slice(), frame.body.bytes()].concat());
    })
    .expect("it is not too large");
    frames
}

/// Feeds bytes in pieces; gives the epoch if it was taken for whole.
fn receive(bytes: &[u8], piece: usize) -> Result<Option<Capture>, WireError> {
    let mut reader = FrameReader::new();
    let mut assembly = Assembly::default();
    let mut whole = None;
    for mut piece in bytes.chunks(piece) {
        while !piece.is_empty() {
            let room = reader.room();
            let len = room.len().min(piece.len());
            assert!(len > 0, "the reader has room once its frames were taken");
            room[..len].copy_from_slice(&piece[..len]);
            reader.filled(len);
            piece = &piece[len..];
            while let Some((header, payload)) = reader.next()? {
                if let Some(capture) = assembly.take(&header, payload, &MEMORY)? {
                    whole = Some(capture.clone());
                }
            }
        }
    }
    Ok(whole)
}

/// The same epoch, whatever the pieces its disk writes travelled in.
fn same(sent: &Capture, received: &Capture) -> bool {
    let mut disks: Vec<DiskWrite> = Vec::new();
    for write in &received.disk_writes {
        if let DiskData::Bytes(bytes) = &write.data
            && let Some(last) = disks.last_mut()
            && let DiskData::Bytes(before) = &last.data
            && last.disk == write.disk
            && last.offset + last.data.span() == write.offset
        {
            last.data = DiskData::Bytes([&before[..], bytes].concat().into());
        } else {
            disks.push(write.clone());
        }
    }
    let wanted = sent.disk_writes.iter();
    let wanted = wanted.filter(|write| write.data.span() > 0);
    sent.state == received.state
        && sent.pages == received.pages
        && sent.bytes == received.bytes
        && wanted.eq(&disks)
}

#[test]
fn an_epoch_of_any_size_arrives_as_it_was() {
    for (pages, state, writes) in [
        (0, 0, &[][..]),
        (1, 1, &[1]),
        (64, 300_000, &[512, 300_000]),
        (65, 262_144, &[0, 262_144, 262_145]),
        (400, 5000, &[]),
    ] {
        let sent = epoch(pages, state, writes);
        let bytes = frames(&sent).concat();
        for piece in [1000, 65_536, bytes.len()] {
            let received = receive(&bytes, piece).expect("nothing was harmed");
            assert!(
                same(&sent, &received.expect("it is whole")),
                "{pages} pages"
            );
        }
    }
}

#[test]
fn frames_lost_doubled_or_swapped_make_no_epoch() {
    let sent = epoch(200, 600_000, &[512, 512]);
    let frames = frames(&sent);
    let last = frames.len() - 1;
    for index in 0..=last {
        let mut lost = frames.clone();
        lost.remove(index);
        assert!(
            !matches!(receive(&lost.concat(), 4096), Ok(Some(_))),
            "{index} lost"
        );
        if index < last {
            let mut doubled = frames.clone();
            doubled.insert(index, frames[index].clone());
            assert!(receive(&doubled.concat(), 4096).is_err(), "{index} doubled");
            let mut swapped = frames.clone();
            swapped.swap(index, index + 1);
            assert!(receive(&swapped.concat(), 4096).is_err(), "{index} swapped");
        }
    }
}

#[test]
fn an_epoch_too_large_is_refused_on_both_sides() {
    let sent = epoch(20, 10, &[]);
    assert_eq!(ship(&sent, Delta::whole(&sent), 1, 1, 19, |_| ()), None);
    let begin = |pages: u64, state: u64, disk: u64| {
        let sizes = [pages, state, disk].map(u64::to_le_bytes).concat();
        receive(&Frame::new(Kind::EpochBegin, 1, 5, &sizes).head, 4096)
    };
    assert_eq!(begin(410, 1 << 20, 1 << 20), Ok(None));
    for (pages, state, disk) in [(411, 0, 0), (0, u64::MAX, 0), (0, 0, u64::MAX)] {
        assert_eq!(begin(pages, state, disk), Err(WireError::EpochTooLarge(5)));
    }
}

#[test]
fn pages_outside_of_memory_are_refused() {
    for page in [400, 0xFFF, 0x100A, u64::MAX >> 1, 1 << 62] {
        let mut capture = Capture::clone(&epoch(3, 0, &[]));
        capture.pages[1] = page;
        let error = receive(&frames(&Arc::new(capture)).concat(), 4096);
        assert_eq!(error, Err(WireError::Page(page)));
    }
}

#[test]
fn zero_pages_of_a_sync_travel_without_bytes() {
    let pages: Vec<u64> = (0..64).collect();
    let mut bytes = vec![0; 64 * PAGE_SIZE];
    bytes[5 * PAGE_SIZE + 17] = 1;
    let frame = sync_frame(1, &pages, &bytes);
    assert!(frame.len() < 2 * PAGE_SIZE);
    let mut list = PageList::default();
    let payload = &frame.head[HEADER_LEN..];
    let full = list.decode(Kind::SyncPages, payload, &MEMORY);
    assert_eq!(full, Ok(&bytes[5 * PAGE_SIZE..6 * PAGE_SIZE]));
    assert_eq!(list.full, [5]);
    assert_eq!(list.zero.len(), 63);
}

fn hello(status: Status) -> Hello {
    Hello {
        status,
        node: "a".parse().expect("a valid name"),
        peer: "b".parse().expect("a valid name"),
        identity: Identity {
            lease: None,
            vm: "demo".to_owned(),
            memory: MEMORY.to_vec(),
            vcpus: 4,
            devices: vec!["disk 0".into(), String::new()],
            cpu: vec![CpuLeaf {
                function: 7,
                index: 1,
                registers: [1, 2, 3, u32::MAX],
            }],
            msrs: vec![0x10, 0xc000_0080],
        },
        version: VERSION,
    }
}

#[test]
fn a_hello_arrives_as_it_was_and_no_part_of_it_does() {
    for status in [Status::Cold, Status::Primary, Status::Synced { epoch: 4 }] {
        let bytes = hello(status).encode();
        assert_eq!(Hello::decode(&bytes), Ok(hello(status)));
        for len in 0..bytes.len() {
            let part = Hello::decode(&bytes[..len]);
            assert_eq!(part, Err(WireError::Malformed(Kind::Hello)));
        }
    }
}

#[test]
fn a_hello_tells_of_a_lease_in_a_way_that_others_refuse() {
    let lease = Some(Duration::from_millis(1500));
    let mut leased = hello(Status::Cold);
    leased.identity.lease = lease;
    leased.identity.memory.clear();
    let bytes = leased.encode();
    let arrived = Hello::decode(&bytes).expect("a sound hello");
    assert_eq!(arrived, leased);
    let theirs = &arrived.identity;
    let difference = Difference::between(theirs, &hello(Status::Cold).identity, true);
    assert!(matches!(difference, Some(Difference::Protection { .. })));
    // A lease that is no number.
    let at = bytes.windows(4).position(|four| four == b"1500");
    let mut bytes = bytes;
    bytes[at.expect("the lease, as text")] = b'-';
    assert_eq!(
        Hello::decode(&bytes),
        Err(WireError::Malformed(Kind::Hello))
    );
}

#[test]
fn a_reason_is_one_short_line() {
    let reason = reject_reason(&[b"no\n\x1b[31m".as_slice(), &[b'x'; 9000]].concat());
    assert!(reason.starts_with("no  [31m") && reason.len() == 512);
}

#[test]
fn a_refusal_says_whether_it_may_pass() {
    for (frame, passes) in [(reject("no"), false), (put_off("not now"), true)] {
        let mut reader = FrameReader::new();
        reader.put(&frame.parts().concat()).expect("room for it");
        let (header, payload) = reader.next().expect("sound").expect("whole");
        assert_eq!(header.kind, Kind::Reject);
        assert_eq!(for_now(&header), passes);
        assert!(reject_reason(payload).starts_with("no"));
    }
}

#[test]
fn a_range_of_zeroes_is_checked() {
    let payload = |offset: u64, len: u64, unmap: u8| {
        let mut payload = 3u32.to_le_bytes().to_vec();
        payload.extend(offset.to_le_bytes());
        payload.extend(len.to_le_bytes());
        payload.push(unmap);
        payload
    };
    for kind in [Kind::DiskZeroes, Kind::SyncZeroes] {
        let good = payload(512, 1 << 40, 1);
        let write = disk_write(kind, &good).expect("a sound range");
        let (len, unmap) = (1 << 40, true);
        assert_eq!((write.disk, write.offset), (3, 512));
        assert_eq!(write.data, DiskData::Zeroes { len, unmap });
        let sent = sync_disk_frames(1, &write);
        assert_eq!(sent.len(), 1);
        assert_eq!(sent[0].head[HEADER_LEN..], good);

        assert_eq!(disk_write(kind, &payload(512, 0, 1)), None);
        assert_eq!(disk_write(kind, &payload(512, 1, 2)), None);
        assert_eq!(disk_write(kind, &payload(1, u64::MAX, 0)), None);
        assert_eq!(disk_write(kind, &[&good[..], &[0]].concat()), None);
        for len in 0..good.len() {
            assert_eq!(disk_write(kind, &good[..len]), None);
        }
    }
}

#[test]
fn ranges_of_zeroes_are_bounded_by_number() {
    let sizes = [0, 0, 63].map(u64::to_le_bytes).concat();
    let begin = Frame::new(Kind::EpochBegin, 1, 5, &sizes).head;
    let range = [&[0; 12][..], &1u64.to_le_bytes(), &[1]].concat();
    let range = Frame::new(Kind::DiskZeroes, 1, 5, &range).head;
    let error = receive(&[begin, range].concat(), 4096);
    assert_eq!(error, Err(WireError::EpochTooLarge(5)));
}

proptest! {
    #[test]
    fn a_changed_byte_makes_no_epoch(at in any::<prop::sample::Index>(), flip in 1..=255u8) {
        let mut bytes = frames(&epoch(70, 100, &[512])).concat();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        prop_assert!(!matches!(receive(&bytes, 65_536), Ok(Some(_))));
    }

    #[test]
    fn a_torn_stream_makes_no_epoch(at in any::<prop::sample::Index>()) {
        let bytes = frames(&epoch(70, 100, &[512])).concat();
        let at = at.index(bytes.len());
        prop_assert_eq!(receive(&bytes[..at], 4096), Ok(None));
    }

    #[test]
    fn rubbish_is_refused(bytes in vec(any::<u8>(), 0..2000), piece in 1..2000usize) {
        prop_assert!(!matches!(receive(&bytes, piece), Ok(Some(_))));
    }

    /// Frames with sound checksums and rubbish within: their parsers are on their own.
    #[test]
    fn rubbish_in_sound_frames_is_refused(
        parts in vec((1..38u16, 0..3u64, vec(any::<u8>(), 0..600)), 1..8),
    ) {
        let mut stream = Vec::new();
        for (kind, epoch, payload) in &parts {
            let kind = Kind::try_from(*kind).expect("a kind that exists");
            stream.extend(Frame::new(kind, 1, *epoch, payload).head);
            let _ = Hello::decode(payload);
            let _ = disk_write(kind, payload);
            let _ = inbound(*epoch, payload);
            let _ = beacon(payload);
            let _ = PageList::default().decode(kind, payload, &MEMORY);
        }
        prop_assert!(!matches!(receive(&stream, 4096), Ok(Some(_))));
    }

    /// Page lists that are almost right.
    #[test]
    fn page_lists_are_checked(
        pages in vec(prop_oneof![0..420u64, any::<u64>()], 0..70),
        bytes in 0..5usize,
    ) {
        let mut payload = (pages.len() as u32).to_le_bytes().to_vec();
        payload.extend(pages.iter().flat_map(|page| page.to_le_bytes()));
        payload.resize(payload.len() + bytes * PAGE_SIZE, 1);
        let mut list = PageList::default();
        if let Ok(full) = list.decode(Kind::SyncPages, &payload, &MEMORY) {
            prop_assert_eq!(full.len(), list.full.len() * PAGE_SIZE);
            let inside = |page: &u64| *page < 400 || (0x1000..0x100A).contains(page);
            prop_assert!(list.full.iter().chain(&list.zero).all(inside));
        }
    }
}

#[test]
fn beacons_come_back_as_they_were() {
    for address in ["192.168.50.1:7", "[fd00::1]:65535", "127.0.0.1:1"] {
        let address: SocketAddr = address.parse().expect("an address");
        let bytes = beacon_frame(address).head;
        let payload = &bytes[HEADER_LEN..];
        assert_eq!(beacon(payload), Some(address));
        assert_eq!(beacon(&payload[1..]), None);
    }
    for nowhere in ["0.0.0.0:7", "224.0.0.1:7", "192.168.50.1:0"] {
        let nowhere: SocketAddr = nowhere.parse().expect("an address");
        assert_eq!(beacon(&beacon_frame(nowhere).head[HEADER_LEN..]), None);
    }
}

#[test]
fn inbound_frames_come_back_as_they_were() {
    for len in [1, 60, 1514, 65_562] {
        let sent = InboundFrame {
            card: 3,
            epoch: 9,
            bytes: vec![7; len],
        };
        let mut reader = FrameReader::new();
        let bytes = inbound_frame(5, &sent).head;
        reader.room()[..bytes.len()].copy_from_slice(&bytes);
        reader.filled(bytes.len());
        let (header, payload) = reader.next().expect("unharmed").expect("whole");
        assert_eq!((header.kind, header.generation), (Kind::Inbound, 5));
        assert_eq!(inbound(header.epoch, payload), Some(sent));
    }
    for len in [0, 4, 4 + 65_563] {
        assert_eq!(inbound(9, &vec![0; len]), None);
    }
}
