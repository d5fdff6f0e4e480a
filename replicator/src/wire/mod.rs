//! The bytes on the wire: frames of a fixed header and a bounded payload.
//!
//! Everything here takes hostile bytes (I9): lengths are checked before they are used, and
//! memory grows with what arrives, not with what is announced.

mod assembly;
mod beacon;
mod changes;
pub(crate) mod copying;
mod delta;
mod difference;
mod epoch;
mod frame;
pub(crate) mod growth;
mod header;
mod hello;
mod inbound;
pub(crate) mod mirror;
mod packed;
mod pages;
mod reader;
pub(crate) mod scrub;
#[cfg(test)]
mod tests;
mod uplink;

pub(crate) use assembly::Assembly;
pub(crate) use beacon::{beacon, beacon_frame};
pub(crate) use delta::{Change, Delta};
pub use difference::Difference;
pub(crate) use epoch::{disk_write, ship, sync_disk_frames};
pub(crate) use frame::{Frame, FrameReader, MAX_FRAME};
pub use header::Kind;
pub(crate) use header::{
    BEACON, CHANGES, DISK_FAILED, GO_ON, GROW, HAND_OVER, Header, MAGIC, MAX_PAYLOAD, MIRROR,
    PACKED, SCRUB, UPLINK, VERSION,
};
pub(crate) use hello::{Hello, for_now, put_off, reject, reject_reason};
pub(crate) use inbound::{inbound, inbound_frame};
pub(crate) use packed::Packer;
pub(crate) use pages::{PAGES_PER_FRAME, PageList, sync_frame};
pub(crate) use uplink::{uplinks, uplinks_frame};

/// Bytes from the peer that are not what they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Not our protocol at all.
    #[error(
        "the peer does not speak Evertwin's protocol: check the address and what listens there"
    )]
    Magic,
    /// The peer's link is secured, ours is not.
    #[error(
        "the peer speaks TLS, this twin does not: give both twins keys (made by `evertwin keys`), or both plaintext = true"
    )]
    Tls,
    /// Another version of the protocol.
    #[error(
        "the peer speaks protocol version {theirs}, this twin speaks {ours}: run releases on both hosts that are one apart at most"
    )]
    Version {
        /// The peer's version.
        theirs: u16,
        /// Our version.
        ours: u16,
    },
    /// A frame of a kind that does not exist.
    #[error("frame of unknown kind {0}")]
    Kind(u16),
    /// A frame that is longer than any may be.
    #[error("frame of {0} bytes, at most {MAX_PAYLOAD} are allowed")]
    TooLong(u32),
    /// A frame was changed on its way.
    #[error("corrupt frame: its checksum does not match its bytes")]
    Checksum,
    /// A frame's payload does not have the form of its kind.
    #[error("malformed {0:?} frame")]
    Malformed(Kind),
    /// A frame that has no place here.
    #[error("{0:?} frame out of place")]
    OutOfPlace(Kind),
    /// A page outside of the guest's memory.
    #[error("page {0:#x} lies outside of the guest's memory")]
    Page(u64),
    /// An epoch that announces more than it may.
    #[error("epoch {0} announces more than an epoch may hold")]
    EpochTooLarge(u64),
    /// An epoch whose parts do not add up: it is discarded (I3).
    #[error("epoch {0} is not whole: its parts do not match its checksum")]
    EpochNotWhole(u64),
}
