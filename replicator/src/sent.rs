//! What the standby holds of what was sent to it, as far as there is room: of later epochs only what changed has to travel.

use fastrand::Rng;

use crate::machine::PAGE_SIZE;

/// Slots in which one page can be.
const WAYS: usize = 8;

/// Spreads neighbouring pages over all sets (2⁶⁴ over the golden ratio).
const SPREAD: u64 = 0x9E37_79B9_7F4A_7C15;

/// Contents and state as the standby has them once all that was sent has arrived.
#[derive(Debug)]
pub(crate) struct Sent {
    /// Which epoch that is. What came over an earlier link is unknown.
    last: Option<Position>,
    pub(crate) pages: SentPages,
    pub(crate) state: Vec<u8>,
}

/// An epoch on its way over a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Position {
    /// The connection's number.
    pub(crate) link: u64,
    pub(crate) generation: u64,
    pub(crate) epoch: u64,
}

impl Sent {
    /// Nothing yet; room for so many bytes of pages.
    pub(crate) fn new(bytes: usize) -> Self {
        Self {
            last: None,
            pages: SentPages::new(bytes / PAGE_SIZE),
            state: Vec::new(),
        }
    }

    /// Whatever was sent may never have arrived.
    pub(crate) fn forget(&mut self) {
        self.last = None;
        self.pages.forget();
        self.state = Vec::new();
    }

    /// An epoch is about to be sent. If it does not follow the last one over the same link, all before it is forgotten.
    pub(crate) fn go_on(&mut self, position: Position) {
        let follows = self.last.is_some_and(|last| {
            let epoch = last.epoch + 1;
            Position { epoch, ..last } == position
        });
        if !follows {
            self.forget();
        }
        self.last = Some(position);
    }
}

/// Pages by their numbers, in sets of a few slots: a page that has no place takes that of any other one of its set, so that a
/// guest that writes to more pages than there is room for, one after the other, still finds some of them.
#[derive(Debug)]
pub(crate) struct SentPages {
    sets: usize,
    /// Numbers of the pages in the slots, plus one; 0: none. Made when the first page comes.
    numbers: Vec<u64>,
    /// Memory that was never written to costs nothing.
    bytes: Vec<u8>,
    random: Rng,
}

/// Where a page's contents are kept.
#[derive(Debug)]
pub(crate) enum Slot<'a> {
    /// These were sent last.
    Sent(&'a mut [u8]),
    /// They are not known, and belong here.
    Unknown(&'a mut [u8]),
}

impl SentPages {
    fn new(pages: usize) -> Self {
        Self {
            sets: (pages / WAYS).max(1),
            numbers: Vec::new(),
            bytes: Vec::new(),
            random: Rng::with_seed(SPREAD),
        }
    }

    /// Forgets all, and gives the memory back.
    fn forget(&mut self) {
        self.numbers = Vec::new();
        self.bytes = Vec::new();
    }

    /// What the standby has of a page is not known from now on.
    pub(crate) fn forget_page(&mut self, page: u64) {
        let first = self.first_slot(page);
        let set = self.numbers.get_mut(first..first + WAYS);
        let known = set.and_then(|set| set.iter_mut().find(|number| **number == page + 1));
        if let Some(number) = known {
            *number = 0;
        }
    }

    /// Where a page's set begins.
    fn first_slot(&self, page: u64) -> usize {
        let spread = page.wrapping_mul(SPREAD) >> 32;
        (spread as usize % self.sets) * WAYS
    }

    /// The slot of a page.
    pub(crate) fn slot(&mut self, page: u64) -> Slot<'_> {
        if self.numbers.is_empty() {
            self.numbers = vec![0; self.sets * WAYS];
            self.bytes = vec![0; self.sets * WAYS * PAGE_SIZE];
        }
        let first = self.first_slot(page);
        let set = &mut self.numbers[first..first + WAYS];
        let number = page + 1;
        let known = set.iter().position(|other| *other == number);
        let way = known.or_else(|| set.iter().position(|other| *other == 0));
        let way = way.unwrap_or_else(|| self.random.usize(..WAYS));
        set[way] = number;
        let at = (first + way) * PAGE_SIZE;
        let bytes = &mut self.bytes[at..at + PAGE_SIZE];
        match known {
            Some(_) => Slot::Sent(bytes),
            None => Slot::Unknown(bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Position = Position {
        link: 1,
        generation: 2,
        epoch: 5,
    };

    fn known(sent: &mut Sent, page: u64) -> Option<u8> {
        match sent.pages.slot(page) {
            Slot::Sent(bytes) => Some(bytes[0]),
            Slot::Unknown(_) => None,
        }
    }

    fn with_page() -> Sent {
        let mut sent = Sent::new(1 << 20);
        sent.go_on(FIRST);
        assert_eq!(known(&mut sent, 7), None);
        if let Slot::Sent(bytes) = sent.pages.slot(7) {
            bytes[0] = 3;
        }
        sent.state.push(1);
        sent
    }

    #[test]
    fn only_the_next_epoch_over_the_same_link_goes_on() {
        let mut sent = with_page();
        sent.go_on(Position { epoch: 6, ..FIRST });
        assert_eq!(known(&mut sent, 7), Some(3));
        for position in [
            FIRST,
            Position { epoch: 7, ..FIRST },
            Position {
                link: 2,
                epoch: 6,
                ..FIRST
            },
            Position {
                generation: 3,
                epoch: 6,
                ..FIRST
            },
        ] {
            let mut sent = with_page();
            sent.go_on(position);
            assert_eq!(known(&mut sent, 7), None, "{position:?}");
            assert!(sent.state.is_empty());
        }
    }

    #[test]
    fn there_is_room_for_so_many_pages_and_no_more() {
        let mut sent = Sent::new(64 * PAGE_SIZE);
        for page in 0..1000 {
            let contents = match sent.pages.slot(page) {
                Slot::Sent(_) => panic!("page {page} was never sent"),
                Slot::Unknown(bytes) => bytes,
            };
            contents[..8].copy_from_slice(&page.to_le_bytes());
        }
        let mut found = 0;
        for page in 0..1000 {
            let set = sent
                .pages
                .numbers
                .iter()
                .position(|number| *number == page + 1);
            if let Some(at) = set {
                found += 1;
                assert_eq!(sent.pages.bytes[at * PAGE_SIZE..][..8], page.to_le_bytes());
            }
        }
        assert!((48..=64).contains(&found), "{found} pages");
    }
}
