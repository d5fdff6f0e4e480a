//! A standby's copy is one committed epoch, bit for bit (I3, I5, I10).

use super::{Invariant, Verdict, demand};
use crate::disk::Disk;
use crate::machine::{Machine, Standing};
use crate::story::Story;

/// Compares all that a promotion would run with what the guest's history says.
pub(crate) fn check_copy(
    story: &Story,
    standing: Standing,
    machine: &Machine,
    disk: &Disk,
) -> Verdict {
    let Standing { moment, clock } = standing;
    if machine.ha {
        return check_disk(story, standing, disk);
    }
    let wanted = story.memory(moment);
    for (page, (has, wanted)) in machine.memory.iter().zip(wanted).enumerate() {
        // A page of the past was forgotten; one of the future or of elsewhere was mixed in.
        let invariant = if story.continues(*has, wanted) {
            Invariant::NoDirtyBitLost
        } else {
            Invariant::WholeEpochs
        };
        demand(*has == wanted, invariant, || {
            format!("page {page} is of moment {has} instead of {wanted} in the epoch of {moment}")
        })?;
    }
    demand(clock >= story.clock(moment), Invariant::GuestTime, || {
        format!("the epoch's clock says {clock} us, before its moment {moment}")
    })?;
    check_disk(story, standing, disk)
}

/// The disk's part of it.
fn check_disk(story: &Story, standing: Standing, disk: &Disk) -> Verdict {
    let moment = standing.moment;
    let (has, wanted) = (disk.contents(), story.disk(moment));
    demand(has == wanted, Invariant::Disks, || {
        format!("the disk holds {has:?} instead of {wanted:?} in the epoch of {moment}")
    })
}
