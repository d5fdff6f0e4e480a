//! What changed in a block of bytes, as runs of its new bytes.
//!
//! A list of runs is their number (2 bytes), then each run's offset and length (2 bytes each) and its bytes. Runs are in
//! order and don't overlap; a block has at most 64 KiB less one byte.

use super::reader::Reader;

/// Bytes of a run besides those that it brings.
const RUN_HEAD: usize = 4;

/// So many bytes are compared at once while they are the same.
const LINE: usize = 64;

const WORD: usize = 8;

/// How a block differs from what it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Changed {
    /// Not at all: nothing was written.
    No,
    /// In what was written.
    Listed,
    /// In more than there was room for: nothing was written.
    TooMuch,
}

/// Lists behind `into` what makes `old` become `new`, in at most `limit` bytes. Both have the same length.
pub(crate) fn list_changes(old: &[u8], new: &[u8], limit: usize, into: &mut Vec<u8>) -> Changed {
    debug_assert!(old.len() == new.len() && new.len() <= usize::from(u16::MAX));
    let begin = into.len();
    let mut runs = Writer {
        into,
        count: 0,
        head: begin,
        end: 0,
    };
    for (line, (old, new_line)) in old.chunks(LINE).zip(new.chunks(LINE)).enumerate() {
        if old == new_line {
            continue;
        }
        for (word, (old, now)) in old.chunks(WORD).zip(new_line.chunks(WORD)).enumerate() {
            let differ = load(old) ^ load(now);
            if differ != 0 {
                let at = line * LINE + word * WORD;
                let first = at + differ.trailing_zeros() as usize / 8;
                let last = at + 7 - differ.leading_zeros() as usize / 8;
                runs.add(new, first, last + 1);
            }
        }
        if runs.into.len() - begin > limit {
            into.truncate(begin);
            return Changed::TooMuch;
        }
    }
    let count = runs.count;
    if count == 0 {
        return Changed::No;
    }
    into[begin..begin + 2].copy_from_slice(&count.to_le_bytes());
    Changed::Listed
}

/// A word, or what there is of the block's last one.
fn load(bytes: &[u8]) -> u64 {
    let mut word = [0; WORD];
    word[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(word)
}

struct Writer<'a> {
    into: &'a mut Vec<u8>,
    count: u16,
    /// Where the last run's head stands.
    head: usize,
    /// Where the last run ends in the block.
    end: usize,
}

impl Writer<'_> {
    /// Adds bytes to the runs: to the last one if the gap takes less than another head.
    fn add(&mut self, new: &[u8], first: usize, end: usize) {
        if self.count > 0 && first - self.end < RUN_HEAD {
            self.into.extend_from_slice(&new[self.end..end]);
            let at = self.head + 2;
            let field = [self.into[at], self.into[at + 1]];
            let len = u16::from_le_bytes(field) + (end - self.end) as u16;
            self.into[at..at + 2].copy_from_slice(&len.to_le_bytes());
        } else {
            if self.count == 0 {
                // Their number, when it is known.
                self.into.extend_from_slice(&[0; 2]);
            }
            self.head = self.into.len();
            self.into.extend_from_slice(&(first as u16).to_le_bytes());
            let len = (end - first) as u16;
            self.into.extend_from_slice(&len.to_le_bytes());
            self.into.extend_from_slice(&new[first..end]);
            self.count += 1;
        }
        self.end = end;
    }
}

/// A list of runs that was checked against the block's length.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Runs<'a> {
    left: u16,
    bytes: Reader<'a>,
}

impl<'a> Runs<'a> {
    /// Takes a list for a block of `len` bytes from the front of `reader`. None if it is not one.
    pub(crate) fn read(reader: &mut Reader<'a>, len: usize) -> Option<Self> {
        let left = reader.u16()?;
        let runs = Self {
            left,
            bytes: *reader,
        };
        let mut end = 0;
        for _ in 0..left {
            let (at, bytes) = run(reader)?;
            if bytes.is_empty() || at < end {
                return None;
            }
            end = at + bytes.len();
        }
        (left > 0 && end <= len).then_some(runs)
    }
}

impl<'a> Iterator for Runs<'a> {
    /// Where in the block, and what.
    type Item = (usize, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        run(&mut self.bytes)
    }
}

fn run<'a>(reader: &mut Reader<'a>) -> Option<(usize, &'a [u8])> {
    let at = usize::from(reader.u16()?);
    let len = usize::from(reader.u16()?);
    Some((at, reader.bytes(len)?))
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn apply(list: &[u8], block: &mut [u8]) -> Option<()> {
        let mut reader = Reader(list);
        for (at, bytes) in Runs::read(&mut reader, block.len())? {
            block[at..at + bytes.len()].copy_from_slice(bytes);
        }
        reader.end()
    }

    #[test]
    fn neighbours_are_one_run_and_equal_bytes_between_runs_do_not_travel() {
        let old = [7; 4096];
        let mut new = old;
        new[100..103].fill(1);
        new[105] = 2;
        new[4095] = 3;
        let mut list = Vec::new();
        assert_eq!(list_changes(&old, &new, 100, &mut list), Changed::Listed);
        let mut reader = Reader(&list);
        let runs = Runs::read(&mut reader, 4096).expect("a list");
        let expected: [(usize, &[u8]); 2] = [(100, &[1, 1, 1, 7, 7, 2]), (4095, &[3])];
        assert!(runs.eq(expected));
        assert_eq!(list.len(), 2 + 4 + 6 + 4 + 1);
    }

    #[test]
    fn what_is_the_same_or_differs_too_much_leaves_nothing() {
        let mut list = vec![9];
        let old = [0; 4096];
        assert_eq!(list_changes(&old, &old, 0, &mut list), Changed::No);
        assert_eq!(
            list_changes(&old, &[1; 4096], 4000, &mut list),
            Changed::TooMuch
        );
        assert_eq!(list, [9]);
    }

    #[test]
    fn lists_that_leave_the_block_or_their_order_are_refused() {
        let list = |runs: &[(u16, &[u8])]| {
            let mut list = (runs.len() as u16).to_le_bytes().to_vec();
            for (at, bytes) in runs {
                list.extend(at.to_le_bytes());
                list.extend((bytes.len() as u16).to_le_bytes());
                list.extend(*bytes);
            }
            list
        };
        let good = list(&[(0, b"a"), (1, b"b"), (14, b"cd")]);
        assert_eq!(apply(&good, &mut [0; 16]), Some(()));
        for bad in [
            list(&[]),
            list(&[(0, b"")]),
            list(&[(15, b"ab")]),
            list(&[(4, b"ab"), (5, b"c")]),
            list(&[(u16::MAX, b"a")]),
            good[..good.len() - 1].to_vec(),
        ] {
            assert_eq!(apply(&bad, &mut [0; 16]), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn the_list_makes_the_old_block_the_new_one(
            old in vec(any::<u8>(), 0..700),
            changes in vec((any::<prop::sample::Index>(), any::<u8>()), 0..40),
        ) {
            let mut new = old.clone();
            for (at, byte) in changes {
                if !new.is_empty() {
                    let at = at.index(new.len());
                    new[at] = byte;
                }
            }
            let mut list = Vec::new();
            let mut made = old.clone();
            match list_changes(&old, &new, usize::MAX, &mut list) {
                Changed::No => prop_assert!(list.is_empty()),
                Changed::Listed => prop_assert_eq!(apply(&list, &mut made), Some(())),
                Changed::TooMuch => prop_assert!(false, "there was room"),
            }
            prop_assert_eq!(made, new);
        }

        #[test]
        fn any_bytes_are_refused_or_stay_within_the_block(bytes in vec(any::<u8>(), 0..100)) {
            let _ = apply(&bytes, &mut [0; 64]);
        }
    }
}
