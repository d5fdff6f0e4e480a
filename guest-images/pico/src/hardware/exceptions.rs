//! Reports an exception that nothing handles, then the guest is done for.

use core::cell::UnsafeCell;

/// What the ring-0 stub saved about a fault.
#[repr(C)]
#[derive(Clone, Copy)]
struct Fault {
    vector: u64,
    error: u64,
    rip: u64,
    cs: u64,
    rsp: u64,
    cr2: u64,
}

/// Written by the ring-0 stub only.
#[repr(transparent)]
pub(crate) struct FaultCell(UnsafeCell<Fault>);

// SAFETY: there is one vCPU, and the cell is written in ring 0 just before `report`
// starts, which never returns to the code that was interrupted.
unsafe impl Sync for FaultCell {}

/// The last fault. The stub knows the order of its fields.
pub(crate) static FAULT: FaultCell = FaultCell(UnsafeCell::new(Fault {
    vector: 0,
    error: 0,
    rip: 0,
    cs: 0,
    rsp: 0,
    cr2: 0,
}));

/// Where the ring-0 stub goes on in ring 3, on a stack of its own.
pub(crate) extern "C" fn report() -> ! {
    // SAFETY: the stub has written the cell, and nothing else runs any more.
    let fault = unsafe { FAULT.0.get().read_volatile() };
    panic!(
        "exception {} error {:#x} rip {:#x} cs {:#x} rsp {:#x} cr2 {:#x}",
        fault.vector, fault.error, fault.rip, fault.cs, fault.rsp, fault.cr2
    );
}
