//! ACPI tables: how a stock kernel learns what it runs on (ACPI 6.5).
//!
//! The machine is *hardware-reduced* (4.1): no PM timer, no fixed registers, no SCI. What is left
//! is a sleep and a reset register, and a power button behind a Generic Event Device.

use acpi_tables::aml::{
    Arg, Device, EISAName, Equal, IO, If, Interrupt, Memory32Fixed, Method, Name, Notify, Package,
    Path, ResourceTemplate, Scope,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};
use evertwin_devices::GuestMemory;
use evertwin_devices::legacy::PVPANIC_PORT;
use evertwin_devices::power::{
    POWER_PORT, RESET_REGISTER, RESET_VALUE, SLEEP_CONTROL_REGISTER, SLEEP_STATUS_REGISTER,
    SOFT_OFF,
};
use evertwin_devices::serial::{COM1_PORT, PORTS};
use vm_memory::{Bytes, GuestAddress};

use crate::boot::BootError;
use crate::layout;

const OEM: [u8; 6] = *b"EVTWIN";
const OEM_TABLE: [u8; 8] = *b"EVERTWIN";
const REVISION: u32 = 1;

/// FADT `IAPC_BOOT_ARCH` (5.2.9.3): no VGA, no MSI, no CMOS clock; and no i8042, whose bit is unset.
const NO_VGA_NO_MSI_NO_CMOS_RTC: u16 = (1 << 2) | (1 << 3) | (1 << 5);

/// Describes a machine with `vcpus` vCPUs and `devices` virtio devices in guest memory, and
/// returns the address of the root pointer (RSDP).
///
/// # Errors
/// [`BootError::NoRoom`] if the tables pass the end of their place.
pub(crate) fn write(memory: &GuestMemory, vcpus: u8, devices: usize) -> Result<u64, BootError> {
    // The RSDP comes first, where kernels that are not told its address look for it.
    let mut place = Place {
        memory,
        next: layout::ACPI + Rsdp::len() as u64,
    };
    let dsdt = place.put(&dsdt(devices))?;
    let fadt = place.put(&fadt(dsdt))?;
    let madt = place.put(&madt(vcpus))?;
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = place.put(&xsdt)?;
    place.next = layout::ACPI;
    place.put(&Rsdp::new(OEM, xsdt))
}

/// Puts tables one behind the other.
struct Place<'a> {
    memory: &'a GuestMemory,
    next: u64,
}

impl Place<'_> {
    fn put(&mut self, table: &dyn Aml) -> Result<u64, BootError> {
        const ALIGNMENT: u64 = 16;
        let mut bytes = Vec::new();
        table.to_aml_bytes(&mut bytes);
        let at = self.next.next_multiple_of(ALIGNMENT);
        let end = at + bytes.len() as u64;
        let no_room = BootError::NoRoom {
            what: "ACPI tables",
            ram: layout::ACPI_END,
        };
        if end > layout::ACPI_END || self.memory.write_slice(&bytes, GuestAddress(at)).is_err() {
            return Err(no_room);
        }
        self.next = end;
        Ok(at)
    }
}

fn register(offset: u64) -> GAS {
    GAS::new(
        AddressSpace::SystemIo,
        8,
        0,
        AccessSize::ByteAccess,
        POWER_PORT + offset,
    )
}

fn fadt(dsdt: u64) -> impl Aml {
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        // Neither button is a fixed one; the power button is in the DSDT.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    fadt.iapc_boot_arch = NO_VGA_NO_MSI_NO_CMOS_RTC.into();
    fadt.reset_reg = register(RESET_REGISTER);
    fadt.reset_value = RESET_VALUE;
    fadt.sleep_control_reg = register(SLEEP_CONTROL_REGISTER);
    fadt.sleep_status_reg = register(SLEEP_STATUS_REGISTER);
    fadt.hypervisor_vendor_identity = u64::from_le_bytes(OEM_TABLE).into();
    fadt.finalize()
}

fn madt(vcpus: u8) -> impl Aml {
    let lapic = LocalInterruptController::Address(layout::LAPIC);
    let mut madt = MADT::new(OEM, OEM_TABLE, REVISION, lapic);
    for id in 0..vcpus {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, layout::IOAPIC, 0));
    madt
}

/// Bytes of AML, already encoded.
struct Encoded(Vec<u8>);

impl Aml for Encoded {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

fn dsdt(devices: usize) -> Sdt {
    let virtio: Vec<Encoded> = (0..devices).map(virtio_device).collect();
    let fixed = [serial(), panic_port(), power_button(), event_device()];
    let mut children: Vec<&dyn Aml> = Vec::new();
    children.extend(fixed.iter().map(|device| device as &dyn Aml));
    children.extend(virtio.iter().map(|device| device as &dyn Aml));
    let mut aml = Vec::new();
    Scope::new("_SB_".into(), children).to_aml_bytes(&mut aml);
    // 7.4.2: what to write into SLP_TYP for soft off.
    Name::new("_S5_".into(), &Package::new(vec![&SOFT_OFF])).to_aml_bytes(&mut aml);
    const HEADER: u32 = 36;
    const DSDT_REVISION: u8 = 2;
    let mut table = Sdt::new(*b"DSDT", HEADER, DSDT_REVISION, OEM, OEM_TABLE, REVISION);
    table.append_slice(&aml);
    table
}

fn device(name: &str, children: Vec<&dyn Aml>) -> Encoded {
    let mut aml = Vec::new();
    Device::new(name.into(), children).to_aml_bytes(&mut aml);
    Encoded(aml)
}

/// An edge-triggered line that is not shared, as irqfd raises it.
fn interrupt(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}

/// Virtio over MMIO (`LNRO0005` is how Linux knows it).
fn virtio_device(index: usize) -> Encoded {
    let number = index as u32;
    let window = Memory32Fixed::new(
        true,
        layout::virtio_window(index) as u32,
        layout::MMIO_STEP as u32,
    );
    device(
        &format!("VR{number:02}"),
        vec![
            &Name::new("_HID".into(), &"LNRO0005"),
            &Name::new("_UID".into(), &number),
            // DMA sees what the caches hold.
            &Name::new("_CCA".into(), &1u8),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![&window, &interrupt(layout::FIRST_GSI + number)]),
            ),
        ],
    )
}

fn serial() -> Encoded {
    let ports = IO::new(COM1_PORT as u16, COM1_PORT as u16, 1, PORTS as u8);
    device(
        "COM1",
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0501")),
            &Name::new("_UID".into(), &0u8),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![&ports, &interrupt(layout::SERIAL_GSI)]),
            ),
        ],
    )
}

/// pvpanic (`QEMU0001`): a panicking kernel says so.
fn panic_port() -> Encoded {
    let port = IO::new(PVPANIC_PORT as u16, PVPANIC_PORT as u16, 1, 1);
    device(
        "PEVT",
        vec![
            &Name::new("_HID".into(), &"QEMU0001"),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&port])),
        ],
    )
}

fn power_button() -> Encoded {
    let hid = EISAName::new("PNP0C0C");
    device("PWRB", vec![&Name::new("_HID".into(), &hid)])
}

/// Generic Event Device (5.6.9): its interrupt is a press of the power button.
fn event_device() -> Encoded {
    /// 5.6.6, notification of a control method power button: pressed.
    const PRESSED: u8 = 0x80;
    let button = Path::new("\\_SB_.PWRB");
    let gsi = layout::POWER_BUTTON_GSI;
    let notify = Notify::new(&button, &PRESSED);
    let ours = Equal::new(&Arg(0), &gsi);
    device(
        "GED_",
        vec![
            &Name::new("_HID".into(), &"ACPI0013"),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&interrupt(gsi)])),
            &Method::new("_EVT".into(), 1, true, vec![&If::new(&ours, vec![&notify])]),
        ],
    )
}

#[cfg(test)]
mod tests {
    use vm_memory::GuestMemoryBackend;

    use super::*;
    use crate::memory;

    fn table(memory: &GuestMemory, at: u64) -> Vec<u8> {
        let len: u32 = memory.read_obj(GuestAddress(at + 4)).unwrap();
        let mut bytes = vec![0; len as usize];
        memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    fn sums_to_zero(bytes: &[u8]) -> bool {
        bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)) == 0
    }

    #[test]
    fn every_table_is_found_from_the_root_and_has_a_right_checksum() {
        let memory = memory::allocate(memory::MIN_RAM).unwrap();
        let root = write(&memory, 8, crate::machine::MAX_DEVICES).unwrap();
        assert_eq!(root, layout::ACPI);
        let mut rsdp = [0; 36];
        memory.read_slice(&mut rsdp, GuestAddress(root)).unwrap();
        assert!(rsdp.starts_with(b"RSD PTR ") && sums_to_zero(&rsdp));
        let xsdt = table(
            &memory,
            u64::from_le_bytes(rsdp[24..32].try_into().unwrap()),
        );
        assert!(xsdt.starts_with(b"XSDT") && sums_to_zero(&xsdt));
        let mut found = Vec::new();
        for entry in xsdt[36..].chunks_exact(8) {
            let table = table(&memory, u64::from_le_bytes(entry.try_into().unwrap()));
            assert!(sums_to_zero(&table));
            found.push(String::from_utf8(table[..4].to_vec()).unwrap());
            if table.starts_with(b"FACP") {
                let dsdt = u64::from_le_bytes(table[140..148].try_into().unwrap());
                let dsdt = self::table(&memory, dsdt);
                assert!(dsdt.starts_with(b"DSDT") && sums_to_zero(&dsdt));
            }
        }
        assert_eq!(found, ["FACP", "APIC"]);
        assert!(memory.check_range(GuestAddress(layout::ACPI_END), 1));
    }

    #[test]
    fn tables_that_do_not_fit_are_refused() {
        let memory = memory::allocate(memory::MIN_RAM).unwrap();
        let mut place = Place {
            memory: &memory,
            next: layout::ACPI_END - 8,
        };
        assert!(place.put(&Rsdp::new(OEM, 0)).is_err());
    }
}
