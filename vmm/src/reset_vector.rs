//! What stands where a PC's firmware begins. There is no firmware, but a guest without a better idea jumps there in
//! real mode to have the machine reset: Linux does so on a hardware-reduced ACPI machine without EFI.

use evertwin_devices::GuestMemory;
use evertwin_devices::power::{POWER_PORT, RESET_REGISTER, RESET_VALUE};
use vm_memory::{Bytes, GuestAddress};

use crate::boot::BootError;
use crate::layout;

/// `mov dx, port; mov al, value; out dx, al; cli; hlt; jmp back to cli`.
fn code() -> [u8; 10] {
    let [low, high] = ((POWER_PORT + RESET_REGISTER) as u16).to_le_bytes();
    [
        0xBA,
        low,
        high,
        0xB0,
        RESET_VALUE,
        0xEE,
        0xFA,
        0xF4,
        0xEB,
        0xFC,
    ]
}

/// Writes code that asks for a reset to the reset vector's address below 1 MiB.
///
/// # Errors
/// The guest has no memory there.
pub(crate) fn write(memory: &GuestMemory) -> Result<(), BootError> {
    memory
        .write_slice(&code(), GuestAddress(layout::RESET_VECTOR))
        .map_err(|_| BootError::NoRoom {
            what: "the reset vector",
            ram: layout::HIGH_RAM,
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory;

    #[test]
    fn the_code_ends_below_high_memory_and_after_the_tables() {
        let memory = memory::allocate(memory::MIN_RAM).unwrap();
        write(&memory).unwrap();
        let mut found = [0; 10];
        memory
            .read_slice(&mut found, GuestAddress(layout::RESET_VECTOR))
            .unwrap();
        assert_eq!(found, code());
        assert!(layout::RESET_VECTOR + found.len() as u64 <= layout::HIGH_RAM);
        const { assert!(layout::ACPI_END <= layout::RESET_VECTOR) };
    }
}
