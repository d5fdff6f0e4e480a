//! The benchmark harness.
//!
//! Each figure comes with its floor, measured in the same run, and with the ratio of the
//! two. Nothing here passes or fails: a target is reported as reached or not.

pub mod blackout;
pub mod boot;
pub mod delay;
pub mod disk;
pub mod disk_ha;
pub mod link;
pub mod memory;
pub mod pause;
pub mod report;
pub mod resync;
pub mod stock_boot;
pub mod switchover;
