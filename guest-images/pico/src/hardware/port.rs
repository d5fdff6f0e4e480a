//! Port I/O. Ring 3 may do it by the TSS's permission bitmap.

use core::arch::asm;

/// Writes one byte to an I/O port.
pub(crate) fn write(port: u16, value: u8) {
    // SAFETY: port I/O touches no memory of ours; the ports used here belong to
    // devices that do no DMA.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack)) }
}

/// Reads one byte from an I/O port.
pub(crate) fn read(port: u16) -> u8 {
    let value;
    // SAFETY: as in `write`.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack)) }
    value
}
