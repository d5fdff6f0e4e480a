//! Reproducible numbers: for memory patterns, disk patterns and busy work.

/// One step of the splitmix64 generator's output function: mixes all bits of `value`.
pub fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// Busy work of `steps` dependent steps; the result depends only on `steps`.
pub fn churn(steps: u64) -> u64 {
    (0..steps).fold(0, |state: u64, step| mix(state ^ step))
}

/// A small generator of reproducible numbers (splitmix64).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A generator that gives the same numbers for the same seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `limit`, which is above 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        let value = mix(self.0);
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        ((u128::from(value) * u128::from(limit)) >> 64) as u64
    }
}

/// What a dirtied page carries: its index, how often it was written, and a check of both.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    index: u64,
    count: u64,
    check: u64,
}

impl Stamp {
    /// The stamp of page `index` after `count` writes.
    pub fn new(index: u64, count: u64) -> Self {
        Self {
            index,
            count,
            check: mix(index ^ mix(count)),
        }
    }
}

/// Fills a block with what block number `block` holds after write number `round`.
pub fn fill_block(bytes: &mut [u8], block: u64, round: u64) {
    let seed = mix(block ^ mix(round));
    for (chunk, i) in bytes.chunks_mut(8).zip(0u64..) {
        chunk.copy_from_slice(&mix(seed ^ i).to_le_bytes()[..chunk.len()]);
    }
}

/// Whether a block holds what [`fill_block`] wrote.
pub fn block_matches(bytes: &[u8], block: u64, round: u64) -> bool {
    let seed = mix(block ^ mix(round));
    bytes
        .chunks(8)
        .zip(0u64..)
        .all(|(chunk, i)| chunk == &mix(seed ^ i).to_le_bytes()[..chunk.len()])
}

/// The `writes` blocks that a round of the workload `bursts` writes, of `blocks`.
pub fn blocks_of_round(round: u64, writes: u64, blocks: u64) -> impl Iterator<Item = u64> {
    let first = mix(round) % blocks;
    (0..writes).map(move |i| (first + i) % blocks)
}

/// Where the requests of the workload `io` go: to one of so many places, each as long as a request.
#[derive(Clone, Debug)]
pub struct Places {
    count: u64,
    next: u64,
    /// None: one place behind the other.
    random: Option<Random>,
}

impl Places {
    /// Any of `count` places, which is above 0.
    pub fn random(count: u64) -> Self {
        Self {
            random: Some(Random::new(1)),
            ..Self::sequential(count)
        }
    }

    /// All of `count` places in turn, again and again.
    pub fn sequential(count: u64) -> Self {
        Self {
            count,
            next: 0,
            random: None,
        }
    }

    /// The next request's place.
    pub fn take(&mut self) -> u64 {
        match &mut self.random {
            Some(random) => random.below(self.count),
            None => {
                let place = self.next;
                self.next = (place + 1) % self.count;
                place
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_go_to_all_places() {
        let mut places = Places::sequential(3);
        let in_turn: Vec<u64> = (0..7).map(|_| places.take()).collect();
        assert_eq!(in_turn, [0, 1, 2, 0, 1, 2, 0]);
        let mut places = Places::random(3);
        let mut seen = [0; 3];
        (0..300).for_each(|_| seen[places.take() as usize] += 1);
        assert!(seen.iter().all(|count| *count > 50), "{seen:?}");
    }

    #[test]
    fn a_round_goes_round_the_end() {
        for round in 0..100 {
            let written: Vec<u64> = blocks_of_round(round, 3, 5).collect();
            assert_eq!(written[0], mix(round) % 5);
            assert_eq!(
                [written[1], written[2]],
                [(written[0] + 1) % 5, (written[0] + 2) % 5]
            );
        }
    }

    #[test]
    fn blocks_of_other_numbers_or_rounds_do_not_match() {
        let mut block = [0; 515];
        fill_block(&mut block, 7, 3);
        assert!(block_matches(&block, 7, 3));
        assert!(!block_matches(&block, 7, 2));
        assert!(!block_matches(&block, 8, 3));
        block[514] ^= 1;
        assert!(!block_matches(&block, 7, 3));
    }

    #[test]
    fn random_stays_below_its_limit() {
        let mut random = Random::new(1);
        let mut seen = [false; 10];
        for _ in 0..1000 {
            seen[random.below(10) as usize] = true;
        }
        assert_eq!(seen, [true; 10]);
    }
}
