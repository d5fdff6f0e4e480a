//! Whatever an epoch's pages and state become on their way, the twin has what the guest had.

use std::sync::Arc;

use super::*;
use crate::sent::{Position, Sent};
use crate::wire::{Assembly, Frame, FrameReader, ship};

const PAGES: usize = 200;
const MEMORY: [MemoryRegion; 1] = [MemoryRegion {
    start: 0,
    len: (PAGES * PAGE_SIZE) as u64,
}];
const LINK: u64 = 3;
const GENERATION: u64 = 2;

/// Both ends of a link, and the standby's memory.
struct Link {
    sent: Sent,
    assembly: Assembly,
    memory: Vec<u8>,
    state: Vec<u8>,
    bytes: usize,
}

impl Link {
    fn new() -> Self {
        Self {
            // Room for a part of the guest.
            sent: Sent::new(PAGES / 2 * PAGE_SIZE),
            assembly: Assembly::default(),
            memory: vec![0; PAGES * PAGE_SIZE],
            state: Vec::new(),
            bytes: 0,
        }
    }

    fn frames(&mut self, epoch: u64, capture: &Arc<Capture>) -> Vec<u8> {
        let position = Position {
            link: LINK,
            generation: GENERATION,
            epoch,
        };
        self.sent.go_on(position);
        let delta = Delta::since(&mut self.sent, capture);
        let mut bytes = Vec::new();
        let queue = |frame: Frame| bytes.extend(frame.parts().concat());
        ship(capture, delta, GENERATION, epoch, PAGES as u64, queue).expect("it is not too large");
        self.bytes = bytes.len();
        bytes
    }

    fn carry(&mut self, epoch: u64, capture: &Arc<Capture>) -> Result<(), WireError> {
        let frames = self.frames(epoch, capture);
        self.take(&frames)
    }

    fn take(&mut self, mut frames: &[u8]) -> Result<(), WireError> {
        let mut reader = FrameReader::new();
        let mut whole = false;
        while !frames.is_empty() {
            let room = reader.room();
            let len = room.len().min(frames.len());
            room[..len].copy_from_slice(&frames[..len]);
            reader.filled(len);
            frames = &frames[len..];
            while let Some((header, payload)) = reader.next()? {
                whole = self.assembly.take(&header, payload, &MEMORY)?.is_some();
            }
        }
        assert!(whole, "all frames have come");
        let memory = &mut self.memory;
        let mut store = |page: u64, at: usize, bytes: &[u8]| {
            memory[page as usize * PAGE_SIZE + at..][..bytes.len()].copy_from_slice(bytes);
        };
        let (capture, changes) = self.assembly.epoch();
        for (page, bytes) in capture.pages.iter().zip(capture.bytes.chunks(PAGE_SIZE)) {
            store(*page, 0, bytes);
        }
        let done: Result<(), ()> = changes.try_for_each(|change| {
            match change {
                Change::Zero(page) => store(page, 0, &ZEROES),
                Change::Part { page, at, bytes } => store(page, at, bytes),
            }
            Ok(())
        });
        done.expect("nothing fails");
        self.state.clone_from(&capture.state);
        self.assembly.applied();
        Ok(())
    }
}

/// A guest that writes here and there, sometimes the same again, sometimes zeroes, sometimes all of a page.
fn write(random: &mut fastrand::Rng, memory: &mut [u8]) -> Capture {
    let mut capture = Capture::default();
    for page in 0..PAGES {
        if random.u8(..) < 100 {
            continue;
        }
        let bytes = &mut memory[page * PAGE_SIZE..][..PAGE_SIZE];
        match random.u8(..8) {
            0 => {}
            1 => bytes.fill(0),
            2 => random.fill(bytes),
            _ => {
                for _ in 0..random.usize(1..20) {
                    bytes[random.usize(..PAGE_SIZE)] = random.u8(..);
                }
            }
        }
        capture.pages.push(page as u64);
        capture.bytes.extend_from_slice(bytes);
    }
    capture
}

#[test]
fn many_epochs_leave_the_twin_with_the_guests_memory_and_state() {
    for seed in 0..20 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut memory = vec![0; PAGES * PAGE_SIZE];
        let mut state = vec![0; 10_000];
        let mut link = Link::new();
        for epoch in 1..40 {
            let mut capture = write(&mut random, &mut memory);
            match random.u8(..5) {
                0 => state = vec![random.u8(..); random.usize(1..20_000)],
                1 => {}
                _ => {
                    let at = random.usize(..state.len());
                    state[at] = random.u8(..);
                }
            }
            capture.state.clone_from(&state);
            let carried = link.carry(epoch, &Arc::new(capture));
            assert_eq!(carried, Ok(()), "seed {seed}, epoch {epoch}");
            assert!(link.memory == memory, "seed {seed}, epoch {epoch}");
            assert!(link.state == state, "seed {seed}, epoch {epoch}");
        }
    }
}

/// Some pages with a few bytes each, and some state.
fn small(byte: u8) -> Arc<Capture> {
    let mut capture = Capture {
        pages: (0..64).collect(),
        bytes: vec![7; 64 * PAGE_SIZE],
        state: vec![1; 5000],
        ..Capture::default()
    };
    capture.bytes[100] = byte;
    capture.state[4999] = byte;
    Arc::new(capture)
}

#[test]
fn what_did_not_change_does_not_travel() {
    let mut link = Link::new();
    link.carry(1, &small(1)).expect("whole pages");
    assert!(link.bytes > 64 * PAGE_SIZE);
    link.carry(2, &small(2)).expect("changes");
    assert!(link.bytes < 400, "{} bytes", link.bytes);
    assert_eq!((link.memory[100], link.state[4999]), (2, 2));
    link.carry(3, &small(2)).expect("nothing");
    assert!(link.bytes < 300, "{} bytes", link.bytes);
    assert_eq!((link.memory[100], link.state[4999]), (2, 2));
    link.sent.forget();
    link.carry(4, &small(2)).expect("whole pages");
    assert!(link.bytes > 64 * PAGE_SIZE);
}

#[test]
fn a_stream_through_the_memory_is_hardly_compared_and_leaves_nothing_stale() {
    let pages = PAGES as u64;
    let mut random = fastrand::Rng::with_seed(7);
    let mut link = Link::new();
    // Both have all of it; then all is new, and after that hardly anything is.
    let mut capture = Capture {
        pages: (0..pages).collect(),
        bytes: vec![1; PAGES * PAGE_SIZE],
        ..Capture::default()
    };
    link.sent = Sent::new(8 * PAGES * PAGE_SIZE);
    for epoch in 1..6 {
        link.carry(epoch, &Arc::new(capture.clone()))
            .expect("it follows");
    }
    random.fill(&mut capture.bytes);
    link.carry(6, &Arc::new(capture.clone()))
        .expect("it follows");
    assert!(link.memory == capture.bytes);
    // What was kept before the stream would fit these pages again.
    let again = 100..130;
    let bytes = again.start * PAGE_SIZE..again.end * PAGE_SIZE;
    capture.bytes[bytes.clone()].fill(1);
    let some = Capture {
        pages: again.map(|page| page as u64).collect(),
        bytes: capture.bytes[bytes].to_vec(),
        ..Capture::default()
    };
    link.carry(7, &Arc::new(some)).expect("it follows");
    assert!(link.memory == capture.bytes);
    for epoch in 8..12 {
        link.carry(epoch, &Arc::new(capture.clone()))
            .expect("it follows");
    }
    assert!(link.memory == capture.bytes);
    assert!(link.bytes < PAGE_SIZE, "{} bytes", link.bytes);
}

#[test]
fn changes_are_refused_by_a_twin_that_has_not_the_epoch_before() {
    let second = |link: &mut Link| {
        link.frames(1, &small(1));
        link.frames(2, &small(2))
    };
    let out_of_place = Err(WireError::OutOfPlace(Kind::PageChanges));
    let mut link = Link::new();
    let frames = second(&mut link);
    assert_eq!(link.take(&frames), out_of_place, "it has none");
    let mut link = Link::new();
    link.carry(1, &small(1)).expect("whole pages");
    link.assembly.discard();
    let frames = second(&mut link);
    assert_eq!(
        link.take(&frames),
        out_of_place,
        "it came over another link"
    );
    let mut link = Link::new();
    link.carry(1, &small(1)).expect("whole pages");
    link.frames(2, &small(2));
    let frames = link.frames(3, &small(3));
    assert_eq!(link.take(&frames), out_of_place, "one is missing");
}

#[test]
fn hostile_changes_are_refused() {
    let mut changes = PageChanges::default();
    let entry = |page: u64, list: &[u8]| [&page.to_le_bytes(), list].concat();
    let one_byte = [1, 0, 0xFF, 0x0F, 1, 0, 9];
    assert_eq!(changes.add(&entry(3, &one_byte), &MEMORY, true), Ok(()));
    assert_eq!(
        changes.add(&entry(4 | ZERO_PAGE, &[]), &MEMORY, true),
        Ok(())
    );
    assert_eq!(changes.pages(), 2);
    let outside = PAGES as u64;
    for page in [outside, outside | ZERO_PAGE] {
        let added = changes.add(&entry(page, &one_byte), &MEMORY, true);
        assert_eq!(added, Err(WireError::Page(outside)));
    }
    let malformed = Err(WireError::Malformed(Kind::PageChanges));
    let two_bytes_at_the_last = [1, 0, 0xFF, 0x0F, 2, 0, 9, 9];
    for list in [&[][..], &one_byte[..6], &two_bytes_at_the_last] {
        assert_eq!(changes.add(&entry(3, list), &MEMORY, true), malformed);
    }
    assert_eq!(changes.add(&[], &MEMORY, true), malformed);
    let malformed = Err(WireError::Malformed(Kind::StateChanges));
    let block = |index: u32, list: &[u8]| [&index.to_le_bytes(), list].concat();
    let mut state = vec![0; BLOCK + 10];
    assert_eq!(change_state(&mut state, &block(0, &one_byte)), Ok(()));
    assert_eq!(state[BLOCK - 1], 9);
    for payload in [block(1, &one_byte), block(2, &one_byte), vec![0]] {
        assert_eq!(change_state(&mut state, &payload), malformed);
    }
}
