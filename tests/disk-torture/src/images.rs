//! The two images: what is on them at first, and looks at what they hold.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Duration;

use crate::pattern::{self, BLOCK, Place, ROOM};

/// Blocks read at once.
const AT_ONCE: u64 = 256;

/// How often a block is read before it counts as wrong.
const READS: u32 = 5;

/// Time between two of these.
const BETWEEN: Duration = Duration::from_millis(5);

/// What a look at the images has shown. Blocks are those of the disk.
#[derive(Debug, Default)]
pub(crate) struct Look {
    /// Blocks of the primary's image that do not hold what they must, and what they hold.
    pub lost: Vec<(u64, String)>,
    /// Blocks in which the two differ.
    pub differing: Vec<u64>,
    /// The newest round of which there is a block on the primary's.
    pub newest: u64,
}

/// Writes the contents that the guest starts from: its own blocks as of round 0, and those that never change.
pub(crate) fn write_first(path: &Path) -> io::Result<()> {
    let image = File::options().write(true).open(path)?;
    for at in 0..ROOM {
        let bytes = match pattern::place(at) {
            Place::Guest(block) => pattern::guest_block(block, 0),
            Place::Static => pattern::static_block(at),
            Place::Beside | Place::Hole => continue,
        };
        image.write_all_at(&bytes, at * BLOCK as u64)?;
    }
    Ok(())
}

/// Writes contents that are not the guest's all over an image: only a full copy makes something of it.
pub(crate) fn write_others(path: &Path) -> io::Result<()> {
    let image = File::options().write(true).open(path)?;
    for at in (0..ROOM).step_by(3) {
        image.write_all_at(&pattern::guest_block(at, 1), at * BLOCK as u64)?;
    }
    Ok(())
}

/// Reads all of the primary's image, and of the other one if it is given. `floor` has the round that each of the
/// guest's blocks must be from, or from a newer one.
pub(crate) fn look(primary: &Path, other: Option<&Path>, floor: &[u64]) -> io::Result<Look> {
    let primary = File::open(primary)?;
    let other = other.map(File::open).transpose()?;
    let mut look = Look::default();
    let mut ours = vec![0; BLOCK * AT_ONCE as usize];
    let mut theirs = ours.clone();
    for first in (0..ROOM).step_by(AT_ONCE as usize) {
        let offset = first * BLOCK as u64;
        primary.read_exact_at(&mut ours, offset)?;
        if let Some(other) = &other {
            other.read_exact_at(&mut theirs, offset)?;
        }
        let blocks = ours.chunks_exact(BLOCK).zip(theirs.chunks_exact(BLOCK));
        for (at, (our, their)) in (first..).zip(blocks) {
            if other.is_some() && our != their {
                look.differing.push(at);
            }
            match judge(at, our, floor) {
                Ok(round) => look.newest = look.newest.max(round),
                Err(what) => look.lost.push((at, what)),
            }
        }
    }
    // The guest may have been writing them.
    for _ in 1..READS {
        if look.lost.is_empty() {
            break;
        }
        std::thread::sleep(BETWEEN);
        look_again(&primary, &mut look, floor)?;
    }
    Ok(look)
}

/// A block of an image.
pub(crate) fn read(path: &Path, at: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; BLOCK];
    File::open(path)?.read_exact_at(&mut bytes, at * BLOCK as u64)?;
    Ok(bytes)
}

/// What a block holds, in words.
pub(crate) fn contents(at: u64, bytes: &[u8]) -> String {
    let round = match pattern::place(at) {
        Place::Guest(block) => pattern::round_of(bytes, block),
        _ => None,
    };
    match round {
        Some(round) => format!("round {round}"),
        None if bytes.iter().all(|byte| *byte == 0) => "zeroes".to_owned(),
        None => format!("{:02x?}...", bytes.get(..8).unwrap_or_default()),
    }
}

/// Reads what was wrong once more.
fn look_again(image: &File, look: &mut Look, floor: &[u64]) -> io::Result<()> {
    let mut bytes = vec![0; BLOCK];
    for (at, _) in std::mem::take(&mut look.lost) {
        image.read_exact_at(&mut bytes, at * BLOCK as u64)?;
        match judge(at, &bytes, floor) {
            Ok(round) => look.newest = look.newest.max(round),
            Err(what) => look.lost.push((at, what)),
        }
    }
    Ok(())
}

/// The round that a block is from (0 if it is none of the guest's), or what is wrong with it.
fn judge(at: u64, bytes: &[u8], floor: &[u64]) -> Result<u64, String> {
    let zeroes = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
    match pattern::place(at) {
        Place::Beside => Ok(0),
        Place::Hole if zeroes(bytes) => Ok(0),
        Place::Hole => Err("no zeroes, where nothing was ever written".to_owned()),
        Place::Static if bytes == pattern::static_block(at) => Ok(0),
        Place::Static if zeroes(bytes) => Err("zeroes in place of its contents".to_owned()),
        Place::Static => Err("not the contents that it had from the beginning".to_owned()),
        Place::Guest(block) => {
            let must = floor.get(block as usize).copied().unwrap_or(0);
            match pattern::round_of(bytes, block) {
                Some(round) if round >= must => Ok(round),
                Some(round) => Err(format!("round {round}, after {must} was announced")),
                None => Err(format!("no round, after {must} was announced")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pattern::{BLOCKS, DISK};

    #[test]
    fn what_is_wrong_is_seen() {
        let directory = tempfile::tempdir().unwrap();
        let [a, b] = ["a", "b"].map(|name| directory.path().join(name));
        for path in [&a, &b] {
            File::create(path).unwrap().set_len(DISK).unwrap();
            write_first(path).unwrap();
        }
        let mut floor = vec![0; BLOCKS as usize];
        let good = look(&a, Some(&b), &floor).unwrap();
        assert!(good.lost.is_empty() && good.differing.is_empty() && good.newest == 0);

        // A round that is on one disk only, then one that is announced and on none.
        let image = File::options().write(true).open(&a).unwrap();
        image.write_all_at(&pattern::guest_block(0, 9), 0).unwrap();
        let newer = look(&a, Some(&b), &floor).unwrap();
        assert!(newer.lost.is_empty() && newer.differing == [0] && newer.newest == 9);
        floor[0] = 10;
        assert_eq!(look(&a, None, &floor).unwrap().lost[0].0, 0);
        floor[0] = 9;

        for at in [Place::Static, Place::Hole] {
            let at = (0..ROOM)
                .find(|block| pattern::place(*block) == at)
                .unwrap();
            image.write_all_at(&[7], at * BLOCK as u64).unwrap();
            let bad = look(&a, Some(&b), &floor).unwrap();
            assert!(bad.lost.iter().any(|(lost, _)| *lost == at));
            assert!(bad.differing.contains(&at));
        }
        write_others(&b).unwrap();
        assert!(look(&b, None, &floor).unwrap().lost.len() > 4000);
    }
}
