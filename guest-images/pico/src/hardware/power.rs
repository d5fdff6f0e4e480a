//! How the guest ends: through the pvpanic port.

use super::port;

const PVPANIC: u16 = 0x505;
const PANICKED: u8 = 1 << 0;
const SHUTDOWN: u8 = 1 << 2;

/// Asks the monitor to end the VM in good order.
pub(crate) fn shut_down() -> ! {
    port::write(PVPANIC, SHUTDOWN);
    stop()
}

/// Tells the monitor that the guest has panicked.
pub(crate) fn panicked() -> ! {
    port::write(PVPANIC, PANICKED);
    stop()
}

/// For monitors that leave the guest running.
fn stop() -> ! {
    loop {
        super::interrupts::take_wake();
        super::interrupts::sleep();
    }
}
