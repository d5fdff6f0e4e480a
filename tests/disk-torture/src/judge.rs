//! What the guest has said, against what is on the disks.
//!
//! # How the disks are compared
//!
//! The standby's disk is behind the primary's by what is not committed yet, so the two are equal only while nothing is
//! on its way. The guest makes such moments: it writes for a while, flushes, says the number of its last round and that
//! it pauses, and pauses. That line leaves only when its epoch has committed (I1), and the guest writes nothing after
//! it: the standby has it all, and applies it at once. So, once the pair is protected, the next such line (or the last,
//! if its pause has hardly begun, whichever twin printed it) starts the comparison: both files are read in full, block
//! by block, through the host's page cache, which all processes share. What differs may come to be equal until near the
//! end of the pause; what does not is a mismatch. If the primary's disk has blocks of a newer round than the line's, the
//! line came late and the pause is over: then the next pause counts.
//!
//! A burst writes a part of the guest's blocks only, so most of what a copy has missed is still there to be seen.
//!
//! # How acknowledged writes are checked
//!
//! A round that was announced is on the disk of whoever goes on: each of its blocks must be whole, and from this round
//! or a newer one; what never changes must be as it was, and where nothing was written there must be zeroes. The
//! survivor's disk is looked at before its peer returns, that of a guest that is booted anew before this guest writes,
//! and the primary's with each comparison. The guest itself verifies each block before it writes it again, and all of
//! them at a burst's end, against its memory, which goes where it goes.

use std::path::Path;
use std::time::{Duration, Instant};

use evertwin::lab::topology::Node;

use crate::cycle::TICK;
use crate::error::TortureError;
use crate::guest::Said;
use crate::images::{self, Look};
use crate::pattern;
use crate::site::{PAUSE, Site};

/// How long the guest may take to come to a pause.
const TO_PAUSE: Duration = Duration::from_secs(10);

/// Pauses that may be over before they were seen.
const LATE_PAUSES: u32 = 5;

/// A pause that has lasted longer is left alone.
const EARLY: Duration = Duration::from_millis(750);

/// Left of a pause when its comparison must be over.
const MARGIN: Duration = Duration::from_millis(300);

/// Takes what the twins have said, and complains if it is wrong. A guest that was booted anew is in its first pause:
/// its disk is looked at.
pub(crate) fn hear(site: &mut Site) -> Result<(), TortureError> {
    site.listen();
    if let Some(what) = site.copies.complaints.pop() {
        return Err(TortureError::Copy(what));
    }
    let (errors, complaint) = (site.guest.errors, site.guest.complaints.pop());
    if errors > 0 || complaint.is_some() {
        return Err(TortureError::Guest {
            errors,
            example: complaint.unwrap_or_else(|| "no line about it".to_owned()),
        });
    }
    match site.guest.booted.take() {
        Some(node) => acknowledged(site, node),
        None => Ok(()),
    }
}

/// Looks for what was announced on the disk of a twin that runs the guest.
pub(crate) fn acknowledged(site: &Site, node: Node) -> Result<(), TortureError> {
    let seen = look(site, &site.image(node), None)?;
    nothing_lost(node, &seen)
}

/// Compares both disks in full in one of the guest's pauses. False if the primary is none any more.
pub(crate) fn compare(site: &mut Site, primary: Node) -> Result<bool, TortureError> {
    let mut late: Option<Instant> = None;
    for _ in 0..LATE_PAUSES {
        let pause = wait_for_pause(site, late)?;
        if compare_in(site, primary, pause)? {
            return Ok(true);
        }
        late = Some(pause.at);
        if !is_primary(site, primary) {
            return Ok(false);
        }
    }
    Err(TortureError::Unsteady)
}

/// The same in this pause. False if it is over too soon.
fn compare_in(site: &mut Site, primary: Node, pause: Said) -> Result<bool, TortureError> {
    let images = [primary, primary.peer()].map(|node| site.image(node));
    let mut before: Option<Vec<u64>> = None;
    loop {
        let late = pause.at.elapsed() + MARGIN > PAUSE;
        let seen = look(site, &images[0], Some(&images[1]))?;
        if !seen.lost.is_empty() && !is_primary(site, primary) {
            // A cut link was noticed late: what was announced meanwhile is on the other's disk.
            return Ok(false);
        }
        nothing_lost(primary, &seen)?;
        if seen.newest > pause.round {
            return Ok(false);
        }
        if seen.differing.is_empty() {
            return Ok(true);
        }
        if let (true, Some(mut before)) = (late, before) {
            // What differed before this look, in which the pause still went on, has differed all the time.
            before.retain(|at| seen.differing.contains(at));
            if is_primary(site, primary) && !before.is_empty() {
                return Err(mismatch(site, primary, &before)?);
            }
            return Ok(false);
        }
        before = Some(seen.differing);
        std::thread::sleep(TICK);
    }
}

/// Whether the pair is still protected, with this primary.
fn is_primary(site: &mut Site, primary: Node) -> bool {
    let roles = site.roles();
    site.protected_by(&roles) == Some(primary)
}

/// That these blocks differ.
fn mismatch(site: &Site, primary: Node, blocks: &[u64]) -> Result<TortureError, TortureError> {
    let example = blocks.first().map(|at| describe(site, primary, *at));
    Ok(TortureError::Mismatch {
        count: blocks.len() as u64,
        example: example.transpose()?.unwrap_or_default(),
    })
}

/// A block of both disks in words.
fn describe(site: &Site, primary: Node, at: u64) -> Result<String, TortureError> {
    let mut text = format!("block {at} ({:?})", pattern::place(at));
    for node in [primary, primary.peer()] {
        let bytes = images::read(&site.image(node), at)
            .map_err(TortureError::io(format!("reading {}'s disk", node.name())))?;
        text += &format!(", {}: {}", node.name(), images::contents(at, &bytes));
    }
    Ok(text)
}

/// Waits until the guest pauses; it may do so since a short while.
fn wait_for_pause(site: &mut Site, after: Option<Instant>) -> Result<Said, TortureError> {
    let until = Instant::now() + TO_PAUSE;
    let early = |said: &Said| said.quiet && said.at.elapsed() < EARLY;
    loop {
        hear(site)?;
        match site.guest.last {
            Some(said) if early(&said) && after.is_none_or(|after| said.at > after) => {
                return Ok(said);
            }
            _ if Instant::now() > until => {
                return Err(TortureError::Silent {
                    what: "paused",
                    after: TO_PAUSE,
                });
            }
            _ => std::thread::sleep(TICK),
        }
    }
}

fn look(site: &Site, primary: &Path, other: Option<&Path>) -> Result<Look, TortureError> {
    images::look(primary, other, &site.guest.floor)
        .map_err(TortureError::io(format!("reading {}", primary.display())))
}

fn nothing_lost(node: Node, seen: &Look) -> Result<(), TortureError> {
    match seen.lost.first() {
        None => Ok(()),
        Some((at, what)) => Err(TortureError::Lost {
            node,
            count: seen.lost.len() as u64,
            example: format!("block {at} ({:?}): {what}", pattern::place(*at)),
        }),
    }
}
