//! What `evertwin status` says of uplinks.

use evertwin_replicator::control::TwinStatus;

/// One line for each uplink here, and one for the peer's.
pub(super) fn print_status(twin: &TwinStatus) {
    for uplink in &twin.uplinks {
        let state = match (uplink.carrier, uplink.good) {
            (true, true) => "has carrier",
            (true, false) => "has carrier again, and counts as good once that lasts",
            (false, true) => "has no carrier since a moment ago",
            (false, false) => "has no carrier",
        };
        println!("  uplink {} {state}", uplink.name);
    }
    match &twin.peer_uplinks {
        Some(peer) if peer.lost.is_empty() => {
            println!("  uplink of {} has carrier", twin.peer);
        }
        Some(peer) => println!("  uplink of {} is lost: {}", twin.peer, peer.lost),
        // Nobody asks for it.
        None if twin.uplinks.is_empty() => {}
        None => println!(
            "  uplink of {} is unknown: the peer has not told",
            twin.peer
        ),
    }
}
