//! The replication protocol: a state machine without I/O or clock.
//!
//! A [`Twin`] is told what happened and what time it is ([`Twin::handle`]), says what to
//! do ([`Twin::poll_action`]) and when it wants to be called again
//! ([`Twin::poll_timeout`]). Page bytes never enter it. The same code runs in production
//! and under a simulated clock, network and arbiter.
//!
//! Numbers like I2 cite the project's invariants; `replicator/PROTOCOL.md` says how each
//! holds.

mod bug;
mod config;
mod context;
mod event;
mod handover;
mod holding;
mod interrupted;
mod lapsing;
mod lease;
mod link;
mod node;
mod operator;
mod pace;
mod protected;
mod record;
mod rounds;
mod solo;
mod standby;
mod starting;
mod state;
mod syncing;
mod takeover;
mod time;
mod twin;

#[cfg(feature = "seeded-bugs")]
pub use bug::Bug;
pub use config::Config;
pub use event::{
    Action, CloseReason, Command, End, Envelope, Input, Message, Refusal, Report, Role, Status,
};
pub use lease::lease_wait;
pub use node::{NODE_NAME_MAX, NodeId, NodeNameError};
pub use record::{Answer, Record, Request};
pub use starting::claims_at_once;
pub use time::Time;
pub use twin::Twin;
