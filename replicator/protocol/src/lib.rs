//! The replication protocol: a state machine without I/O or clock.
