//! What an operator is told of a disk that was to grow.

/// Why a disk has not grown.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoGrowth {
    /// The standby is asked for nothing.
    #[error("this twin is not the primary: ask the other one")]
    NotPrimary,
    /// Who would be asked for room is not there, or not yet.
    #[error(
        "a standby is being filled, or the link is broken: try again once the guest is protected, or runs alone"
    )]
    NotNow,
    /// One of the twins speaks a version of the protocol without it.
    #[error("one of the two releases can't have disks grow yet: upgrade it first")]
    PeerTooOld,
    /// One at a time.
    #[error("a disk is growing already")]
    Running,
    /// Not on this host.
    #[error("{0}")]
    Here(String),
    /// Not on the standby's host.
    #[error("on the standby's host: {0}")]
    There(String),
    /// Who was asked for room is gone.
    #[error("the standby was lost meanwhile, and the disk is as large as it was: try again")]
    StandbyLost,
}
