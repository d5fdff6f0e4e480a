//! A standby's disk that changes by itself, and what a scrub makes of it.

use std::time::{Duration, Instant};

use evertwin::lab::topology::Node;
use evertwin_replicator::control::ScrubReport;
use fastrand::Rng;

use crate::cycle::TICK;
use crate::error::TortureError;
use crate::judge;
use crate::site::Site;
use crate::tamper::overwrite;

/// The longest that a pass may take.
const TO_PASS: Duration = Duration::from_secs(30);

/// Passes in which blocks may be left out since the guest writes to them.
const PASSES: u32 = 3;

/// What there was of it so far.
#[derive(Debug, Default)]
pub(crate) struct Rot {
    /// Blocks of 4 KiB that were overwritten.
    pub rotten: u64,
    /// Blocks of 64 KiB that scrubs have repaired. The guest overwrites some before.
    pub repaired: u64,
}

/// Overwrites blocks of the standby's disk while the pair is protected, and has both disks compared: they are equal then.
pub(crate) fn rot(
    site: &mut Site,
    primary: Node,
    random: &mut Rng,
) -> Result<String, TortureError> {
    let image = site.image(primary.peer());
    let rotten = overwrite(&image, random).map_err(TortureError::io("changing a disk in use"))?;
    let mut repaired = 0;
    for _ in 0..PASSES {
        let ScrubReport {
            counts, failure, ..
        } = pass(site, primary)?;
        if let Some(why) = failure {
            return Err(TortureError::Scrub(why));
        }
        repaired += counts.repaired;
        if counts.differences != counts.repaired || counts.unreadable > 0 {
            return Err(TortureError::Scrub(format!("{counts:?}")));
        }
        if counts.busy == 0 {
            break;
        }
    }
    site.rot.rotten += rotten;
    site.rot.repaired += repaired;
    match judge::compare(site, primary)? {
        true => Ok(format!("rot of {rotten} blocks, {repaired} repaired")),
        // What rots at a primary is the guest's loss.
        false => Err(TortureError::Unsteady),
    }
}

/// One pass over the disk.
fn pass(site: &mut Site, primary: Node) -> Result<ScrubReport, TortureError> {
    let number = site.scrub(primary)?;
    let until = Instant::now() + TO_PASS;
    while Instant::now() < until {
        judge::hear(site)?;
        if let Some(last) = site.scrubbed(primary)
            && last.number == number
        {
            return Ok(last);
        }
        std::thread::sleep(TICK);
    }
    Err(TortureError::Scrub(format!("it takes over {TO_PASS:?}")))
}
