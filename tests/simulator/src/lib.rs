//! The simulator: both twins, an arbiter and clients under a seeded clock and network.
//!
//! The core is the production one (`evertwin-protocol`); everything around it is modelled after
//! the production driver, down to the order in which things are done. A run has a phase of
//! faults, then everything heals and the pair must be protected again. Checkers watch from
//! outside.

mod arbiter;
mod campaign;
mod check;
mod disk;
mod driver;
mod faults;
mod generate;
mod guest;
mod host;
mod kept;
mod machine;
mod network;
mod queue;
mod random;
mod run;
mod schedule;
mod shrink;
mod story;
mod world;

pub use campaign::{Campaign, Failure, Found, Limit, Progress};
pub use check::{Invariant, Violation};
pub use kept::{Kept, KeptError, keep, kept};
pub use run::{Outcome, run, run_traced};
pub use schedule::{Command, Fault, Schedule, Trouble, What};
pub use shrink::shrink;
pub use world::Tally;
