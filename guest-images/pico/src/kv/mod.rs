//! A small key-value server that speaks the Redis protocol, without its connections and
//! its disk.

pub mod commands;
pub mod log_format;
pub mod resp;
pub mod store;
