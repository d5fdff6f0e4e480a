//! Whether a twin may run on the disks that this host has.

use evertwin_replicator::arbiter::{Arbiter, Notes};
use evertwin_replicator::{NodeId, claims_at_once};

use super::RunError;
use crate::machine::Machine;

/// Refuses to start a twin that would take the right to boot the guest, and could not use it: a disk here is an
/// unfinished copy. One that waits for its peer may start, since the peer finishes the copy (I10).
pub(super) fn check(
    machine: &Machine,
    (node, peer): (NodeId, NodeId),
    arbiter: Option<&mut (dyn Arbiter + 'static)>,
    notes: Option<&mut Notes>,
) -> Result<(), RunError> {
    let Err(error) = machine.check_disks() else {
        return Ok(());
    };
    let record = match (arbiter, notes) {
        (Some(arbiter), _) => arbiter.read().ok(),
        (None, Some(notes)) => notes.read().ok(),
        (None, None) => Some(None),
    };
    match record {
        Some(record) if claims_at_once(record, node, peer) => Err(error.into()),
        _ => {
            tracing::warn!(
                "a disk is an unfinished copy: it is made whole when the peer runs the guest"
            );
            Ok(())
        }
    }
}
