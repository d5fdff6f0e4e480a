//! Pairs of twins in one process: fake machines, real sockets, a real arbiter file.

mod hostile;
mod levels;
mod operator;
mod pair;
mod previous;
mod reconnect;
mod scrub;
mod secured;
mod support;
mod uplink;
