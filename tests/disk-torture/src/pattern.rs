//! What the guest writes, as pico's `pattern` and its workload `bursts` have it, and what lies behind it on the disk.

/// Bytes of a block.
pub(crate) const BLOCK: usize = 4096;

/// Bytes of the disk.
pub(crate) const DISK: u64 = 64 << 20;

/// Blocks of the disk.
pub(crate) const ROOM: u64 = DISK / BLOCK as u64;

/// Blocks that the guest verifies, spread over the disk.
pub(crate) const BLOCKS: u64 = 2048;

/// Blocks of one round.
pub(crate) const WRITES: u64 = 64;

/// From one of the guest's blocks to the next.
const STRIDE: u64 = ROOM / BLOCKS;

/// In place of a round: written before the guest's first start, and never by it.
const STATIC: u64 = u64::MAX;

/// What belongs in a place of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// The guest's block of this number.
    Guest(u64),
    /// What the guest writes or zeroes beside one of its blocks.
    Beside,
    /// Contents that never change.
    Static,
    /// Nothing: zeroes.
    Hole,
}

/// What belongs in a block of the disk.
pub(crate) fn place(at: u64) -> Place {
    match at % STRIDE {
        0 => Place::Guest(at / STRIDE),
        1 => Place::Beside,
        _ if mix(at).is_multiple_of(3) => Place::Static,
        _ => Place::Hole,
    }
}

/// The blocks that a round writes.
pub(crate) fn blocks_of_round(round: u64) -> impl Iterator<Item = u64> {
    let first = mix(round) % BLOCKS;
    (0..WRITES).map(move |i| (first + i) % BLOCKS)
}

/// What a block of the guest holds after a round.
pub(crate) fn guest_block(block: u64, round: u64) -> Vec<u8> {
    let seed = mix(block ^ mix(round));
    let words = (0..(BLOCK / 8) as u64).flat_map(|i| mix(seed ^ i).to_le_bytes());
    words.collect()
}

/// What a block of the disk that never changes holds.
pub(crate) fn static_block(at: u64) -> Vec<u8> {
    guest_block(at, STATIC)
}

/// The round that wrote this block of the guest, if one did, and all of it.
pub(crate) fn round_of(bytes: &[u8], block: u64) -> Option<u64> {
    let word = bytes.first_chunk().copied().map(u64::from_le_bytes)?;
    let seed = unmix(word);
    let round = unmix(unmix(seed) ^ block);
    (bytes == guest_block(block, round)).then_some(round)
}

/// Splitmix64's step.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// Undoes [`mix`]: the factors are the inverses of its own.
fn unmix(value: u64) -> u64 {
    let value = (value ^ (value >> 31) ^ (value >> 62)).wrapping_mul(0x3196_42b2_d24d_8ec3);
    let value = (value ^ (value >> 27) ^ (value >> 54)).wrapping_mul(0x96de_1b17_3f11_9089);
    let value = value ^ (value >> 30) ^ (value >> 60);
    value.wrapping_sub(0x9e37_79b9_7f4a_7c15)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_tells_its_round_and_that_it_is_whole() {
        for (block, round) in [(0, 0), (1, 1), (2047, 123_456_789), (5, STATIC)] {
            let mut bytes = guest_block(block, round);
            assert_eq!(bytes.len(), BLOCK);
            assert_eq!(round_of(&bytes, block), Some(round));
            assert_ne!(round_of(&bytes, block + 1), Some(round));
            bytes[BLOCK - 1] ^= 1;
            assert_eq!(round_of(&bytes, block), None);
        }
        assert_eq!(round_of(&[0; BLOCK], 3), None);
    }

    #[test]
    fn places_of_all_kinds_are_many() {
        let count = |wanted: fn(Place) -> bool| (0..ROOM).filter(|at| wanted(place(*at))).count();
        assert_eq!(
            count(|place| matches!(place, Place::Guest(_))),
            BLOCKS as usize
        );
        assert_eq!(count(|place| place == Place::Beside), BLOCKS as usize);
        assert!(count(|place| place == Place::Static) > 3000);
        assert!(count(|place| place == Place::Hole) > 6000);
    }
}
