//! Drives the replication protocol over io_uring sockets.
//!
//! [`run`] is one twin: it joins the protocol's state machine (`evertwin-protocol`), the
//! connection to the peer, the [`arbiter`] and the [`machine`] that runs or will run the
//! guest. `PROTOCOL.md` describes the protocol.

pub mod arbiter;
mod attempt;
mod beacon;
mod config;
mod connection;
pub mod control;
pub mod crash;
mod driver;
mod give_back;
pub mod machine;
mod network;
mod ring;
mod sent;
#[cfg(feature = "measure")]
pub mod throughput;
pub mod tls;
mod uplink;
mod way;
mod wire;

pub use config::{Config, Ended, Error, MAX_PATHS};
pub use evertwin_protocol::{NodeId, NodeNameError, claims_at_once};
pub use uplink::Uplink;
pub use wire::{Difference, Kind, WireError};

use arbiter::Arbiter;
use driver::Driver;
use machine::Machine;

/// Runs one twin until its guest ends, it is fenced, or it is asked to stop.
///
/// # Errors
/// When an address can't be used, the peer is another VM or speaks another protocol, the
/// machine fails, or the ring can't be set up. A guest that ran here is fenced then.
pub fn run(
    config: Config,
    machine: &mut dyn Machine,
    arbiter: Option<Box<dyn Arbiter>>,
) -> Result<Ended, Error> {
    Driver::new(config, machine, arbiter)?.run()
}
