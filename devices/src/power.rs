//! Switching the machine off and on again: the registers and the power button that a
//! hardware-reduced ACPI machine has (ACPI 6.5, 4.8.3.7 and 4.8.3.6).

use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::bus::BusDevice;
use crate::legacy::{ExitSignal, GuestExit};

/// First of the ports that the registers have.
pub const POWER_PORT: u64 = 0x600;
/// How many ports they take.
pub const POWER_PORTS: u64 = 3;
/// Offset of the sleep control register.
pub const SLEEP_CONTROL_REGISTER: u64 = 0;
/// Offset of the sleep status register: always zero, since no sleep is woken from.
pub const SLEEP_STATUS_REGISTER: u64 = 1;
/// Offset of the reset register.
pub const RESET_REGISTER: u64 = 2;

/// Written to the reset register, it resets the machine.
pub const RESET_VALUE: u8 = 1;
/// The sleep type of S5, soft off.
pub const SOFT_OFF: u8 = 5;
/// Sleep control (4.8.3.7): enter the state in the sleep type field.
const SLEEP_ENABLE: u8 = 1 << 5;
const SLEEP_TYPE_SHIFT: u8 = 2;
const SLEEP_TYPE_MASK: u8 = 0b111;

/// The sleep and reset registers.
pub struct PowerRegisters(pub Arc<ExitSignal>);

impl BusDevice for PowerRegisters {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let value = data.first().copied().unwrap_or(0);
        match offset {
            SLEEP_CONTROL_REGISTER => {
                let sleep_type = (value >> SLEEP_TYPE_SHIFT) & SLEEP_TYPE_MASK;
                if value & SLEEP_ENABLE != 0 && sleep_type == SOFT_OFF {
                    self.0.raise(GuestExit::Shutdown);
                }
            }
            RESET_REGISTER if value == RESET_VALUE => self.0.raise(GuestExit::Reset),
            _ => {}
        }
    }
}

/// The power button: pressing it asks the guest's operating system to shut down.
#[derive(Debug)]
pub struct PowerButton(EventFd);

impl PowerButton {
    /// A button that is not pressed.
    ///
    /// # Errors
    /// No descriptors left.
    pub fn new() -> io::Result<Self> {
        EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map(Self)
    }

    /// Raised (edge) by each press.
    pub fn irq(&self) -> &EventFd {
        &self.0
    }

    /// Presses it. A guest without a driver for it takes no notice.
    pub fn press(&self) {
        if let Err(error) = self.0.write(1) {
            tracing::error!(%error, "the power button could not be pressed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit_after(offset: u64, data: &[u8]) -> Option<GuestExit> {
        let exit = ExitSignal::new().unwrap();
        PowerRegisters(exit.clone()).write(offset, data);
        exit.get()
    }

    #[test]
    fn soft_off_needs_its_type_and_the_enable_bit() {
        assert_eq!(exit_after(0, &[0x34]), Some(GuestExit::Shutdown));
        for other in [&[0x14][..], &[0x20], &[0x24], &[]] {
            assert_eq!(exit_after(0, other), None, "{other:x?}");
        }
    }

    #[test]
    fn a_reset_needs_its_value_at_its_register() {
        assert_eq!(exit_after(2, &[1]), Some(GuestExit::Reset));
        assert_eq!(exit_after(2, &[0x34]), None);
        assert_eq!(exit_after(1, &[1]), None);
    }

    #[test]
    fn a_press_raises_the_line_once() {
        let button = PowerButton::new().unwrap();
        assert!(button.irq().read().is_err());
        button.press();
        assert_eq!(button.irq().read().unwrap(), 1);
    }
}
