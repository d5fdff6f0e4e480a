//! Pico's logic that needs no hardware: it is tested on the host.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

pub mod boot_params;
pub mod command_line;
pub mod frame;
pub mod kv;
pub mod pattern;
pub mod pvclock;
