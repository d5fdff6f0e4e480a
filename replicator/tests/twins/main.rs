//! Pairs of twins in one process: fake machines, real sockets, a real arbiter file.

mod hostile;
mod pair;
mod support;
