//! The benchmark harness.
//!
//! Each figure comes with its floor, measured in the same run, and with the ratio of the
//! two. No figure makes the harness fail: what is demanded is reported as reached or not.

pub mod arms;
pub mod blackout;
pub mod boot;
pub mod cpu;
pub mod delay;
pub mod disk;
pub mod disk_ha;
pub mod floor;
pub mod host;
pub mod idle;
pub mod link;
pub mod logging;
pub mod memory;
pub mod page;
pub mod pairs;
pub mod pause;
pub mod peer;
pub mod pin;
pub mod plaintext;
pub mod plot;
pub mod redis;
pub mod report;
pub mod resync;
pub mod slow_link;
pub mod stock_boot;
pub mod switchover;
pub mod wire;
