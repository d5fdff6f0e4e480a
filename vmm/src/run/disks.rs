//! Whether a twin may run on the disks that this host has.

use evertwin_replicator::NodeId;
use evertwin_replicator::arbiter::{Arbiter, Notes, Record};

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
        Some(record) if boots_at_once(record, node, peer) => Err(error.into()),
        _ => {
            tracing::warn!(
                "a disk is an unfinished copy: it is made whole when the peer runs the guest"
            );
            Ok(())
        }
    }
}

/// Whether R1 or R2 of PROTOCOL.md apply.
fn boots_at_once(record: Option<Record>, node: NodeId, peer: NodeId) -> bool {
    match record {
        None => node < peer,
        Some(record) => record.releaser == node && record.standby.is_none(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_need_not_wait_boots_at_once() {
        let [a, b]: [NodeId; 2] = ["a", "b"].map(|name| name.parse().unwrap());
        assert!(boots_at_once(None, a, b) && !boots_at_once(None, b, a));
        let alone = Some(Record::solo(3, b));
        assert!(boots_at_once(alone, b, a) && !boots_at_once(alone, a, b));
        let pair = Some(Record::protected(3, b, a));
        assert!(!boots_at_once(pair, b, a) && !boots_at_once(pair, a, b));
    }
}
