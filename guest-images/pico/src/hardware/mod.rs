//! The machine: everything that needs `unsafe`, apart from the virtio rings.

pub(crate) mod boot;
pub(crate) mod clock;
pub(crate) mod console;
pub(crate) mod exceptions;
pub(crate) mod heap;
pub(crate) mod interrupts;
mod memory_functions;
pub(crate) mod paging;
pub(crate) mod port;
pub(crate) mod power;
