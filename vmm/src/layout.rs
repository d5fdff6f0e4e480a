//! The guest's physical address map and other fixed places.

/// End of low RAM and start of the hole for devices.
pub const HOLE_START: u64 = 0xC000_0000;
/// End of the hole; RAM that did not fit below goes on here.
pub const HOLE_END: u64 = 0x1_0000_0000;

/// Virtio-mmio windows, one after the other.
pub const MMIO_BASE: u64 = 0xD000_0000;
/// Bytes per virtio-mmio window.
pub const MMIO_STEP: u64 = 0x1000;
/// The first virtio device's interrupt line; the next ones follow.
pub const FIRST_GSI: u32 = 5;
/// The last line of the IOAPIC that a device may use.
pub const LAST_GSI: u32 = 23;

/// Start of the `index`th virtio device's window.
pub fn virtio_window(index: usize) -> u64 {
    MMIO_BASE + index as u64 * MMIO_STEP
}

/// The power button's interrupt line (COM2's on a PC).
pub const POWER_BUTTON_GSI: u32 = 3;
/// The serial port's interrupt line (COM1).
pub const SERIAL_GSI: u32 = 4;

/// Where KVM's IOAPIC and LAPICs answer (Intel SDM vol. 3, 11.4.1).
pub const IOAPIC: u32 = 0xFEC0_0000;
/// See [`IOAPIC`].
pub const LAPIC: u32 = 0xFEE0_0000;

/// KVM's private pages for real-mode emulation on VMX hosts.
pub const TSS_ADDRESS: usize = 0xFFFB_D000;
/// KVM's identity map page for VMX hosts.
pub const IDENTITY_MAP_ADDRESS: u64 = 0xFFFB_C000;

/// Boot-time GDT.
pub const GDT: u64 = 0x500;
/// Boot parameters ("zero page", Linux x86 boot protocol).
pub const ZERO_PAGE: u64 = 0x7000;
/// Boot-time page tables: PML4, then a PDPT, then page directories.
pub const PML4: u64 = 0x9000;
/// See [`PML4`].
pub const PDPT: u64 = 0xA000;
/// See [`PML4`].
pub const PD: u64 = 0xB000;
/// Boot stack's top; free for the kernel at once.
pub const BOOT_STACK: u64 = 0x8FF0;
/// Kernel command line.
pub const CMDLINE: u64 = 0x2_0000;
/// Longest command line, with its final zero byte.
pub const CMDLINE_MAX: usize = 0x1_0000;
/// End of conventional memory (start of the EBDA and legacy ROMs).
pub const LOW_RAM_END: u64 = 0x9_FC00;
/// ACPI tables, the root pointer first: the area where a PC's firmware keeps it (ACPI 6.5, 5.2.5.1).
pub const ACPI: u64 = 0xE_0000;
/// End of the room for ACPI tables.
pub const ACPI_END: u64 = RESET_VECTOR;
/// Where a processor begins in real mode, seen below 1 MiB (F000:FFF0).
pub const RESET_VECTOR: u64 = 0xF_FFF0;
/// Where kernels are loaded.
pub const HIGH_RAM: u64 = 0x10_0000;
