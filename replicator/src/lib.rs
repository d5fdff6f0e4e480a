//! Drives the replication protocol over io_uring sockets.
