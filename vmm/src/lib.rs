//! Evertwin's virtual machine monitor: machine, boot, vCPUs, checkpoints and the command line.
//!
//! The `evertwin` command is a thin shell over this library; programs that embed the
//! monitor start at [`machine::Machine`] for a plain microVM and at [`run`] for a
//! protected one.

mod acpi;
pub mod bench;
pub mod boot;
pub mod checkpoint;
pub mod cli;
pub mod config;
mod console_input;
pub mod control;
pub mod demo;
mod die_together;
pub mod event_loop;
pub mod keys;
pub mod kvm;
pub mod lab;
pub mod layout;
pub mod machine;
pub mod memory;
mod narrate;
pub mod operate;
pub mod page_set;
mod reset_vector;
pub mod run;
pub mod terminal;
pub mod twin;
mod uplink;
