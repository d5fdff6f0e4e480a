//! The arbiter's record, and what is asked of the arbiter.

use crate::node::NodeId;

/// What the arbiter holds: who may release output, and who may take over.
///
/// Every change is a compare-and-swap of the whole record (I2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Number of the current right to release output; grows by one whenever a twin goes
    /// solo or promotes.
    pub generation: u64,
    /// The twin that has the right.
    pub releaser: NodeId,
    /// The twin that may promote: it holds a full sync and all output is gated on it (I4).
    pub standby: Option<NodeId>,
}

impl Record {
    /// The record of a twin that releases output alone.
    pub fn solo(generation: u64, releaser: NodeId) -> Self {
        Self {
            generation,
            releaser,
            standby: None,
        }
    }

    /// The record of a twin whose output is gated on `standby`.
    pub fn protected(generation: u64, releaser: NodeId, standby: NodeId) -> Self {
        Self {
            generation,
            releaser,
            standby: Some(standby),
        }
    }
}

/// A question to the arbiter. There is one at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// What is the record?
    Read,
    /// Replace the record with `new` if it is exactly `expected`.
    Swap {
        /// The record as this twin knows it, or none when there must not be one.
        expected: Option<Record>,
        /// The record to write.
        new: Record,
    },
}

/// The arbiter's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// To [`Request::Read`].
    Record(Option<Record>),
    /// The swap was made and is durable.
    Won,
    /// The record was this one instead, and was left alone.
    Lost(Option<Record>),
    /// No answer was had. A swap may or may not have been made.
    Failed,
}
