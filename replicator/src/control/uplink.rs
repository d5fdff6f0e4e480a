//! What an operator is told of the hosts' uplinks.

use serde::{Deserialize, Serialize};

/// An uplink of this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UplinkStatus {
    /// Name of the interface.
    pub name: String,
    /// Whether it has carrier now.
    pub carrier: bool,
    /// Whether it counts as good: it is not lost, or was back for long enough since.
    pub good: bool,
}

/// The uplinks of the peer's host, as it has told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerUplinks {
    /// Whether all those count as good for which a guest is handed over.
    pub good: bool,
    /// Names of those, of all that it watches, that don't count as good.
    pub lost: String,
}
