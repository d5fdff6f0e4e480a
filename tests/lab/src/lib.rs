//! A lab of emulated hosts.
//!
//! Each host is a machine of its own, with its own kernel, disk and network cards, that can be powered off, frozen
//! and cut off. The lab's process is the switch between them: it sees every frame and knows which host sent it.

pub mod agent;
mod error;
mod host;
mod image;
mod lab;
mod lone_host;
mod network;
mod one_speaker;
mod runner;
mod scenarios;
mod switch;
mod twins;
pub mod wire;

pub use error::LabError;
pub use host::{Ended, Host, RemoteProcess};
pub use image::{Artifacts, GuestFiles};
pub use lab::{HostName, Lab, LabOptions};
pub use lone_host::StockBoot;
pub use network::Card;
pub use one_speaker::{Releaser, Violation, check_one_speaker};
pub use runner::{Run, Selection};
pub use scenarios::{SCENARIOS, Scenario};
pub use twins::{Judge, Kernel, Twins, VmFile};
