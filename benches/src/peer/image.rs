//! What QEMU needs to enter the guest as `evertwin` does. Stock firmware would run in ring 0 all the time, where a software KVM
//! emulates each instruction.

use std::fs;
use std::path::Path;

use evertwin::boot::{self, EntryPoint, Guest};
use evertwin::config::KernelSource;
use evertwin::{layout, memory};
use vm_memory::{Bytes, GuestAddress};

/// The files, by their names in the directory that QEMU is started in.
pub(super) const FIRMWARE: &str = "firmware.bin";
/// Boot parameters, command line, page tables and GDT: all that is below the kernel.
pub(super) const LOW_RAM: &str = "low-ram.bin";
/// The guest, an ELF.
pub(super) const KERNEL: &str = "pico.elf";

/// The smallest that QEMU takes. It ends at 4 GiB and, a second time, at 1 MiB.
const FIRMWARE_BYTES: usize = 64 << 10;
const SEGMENT: u16 = 0xF000;
const CODE: u16 = 0xFF00;
const GDT_POINTER: u16 = 0xFF80;
/// Where a processor begins.
const RESET: u16 = 0xFFF0;

/// Writes them for a guest of `ram` bytes.
pub(super) fn write(directory: &Path, ram: u64, cmdline: &str) {
    let memory = memory::allocate(ram).unwrap_or_else(|error| panic!("{error}"));
    let guest = Guest {
        kernel: &KernelSource::Pico,
        initrd: None,
        cmdline,
        cmdline_with_devices: cmdline,
        acpi: 0,
    };
    let entry = boot::load(&memory, guest).unwrap_or_else(|error| panic!("{error}"));
    let mut low_ram = vec![0; layout::LOW_RAM_END as usize];
    let read = memory.read_slice(&mut low_ram, GuestAddress(0));
    read.unwrap_or_else(|error| panic!("{error}"));
    let files: [(&str, &[u8]); 3] = [
        (FIRMWARE, &firmware(entry)),
        (LOW_RAM, &low_ram),
        (KERNEL, evertwin_guest_images::PICO),
    ];
    for (name, bytes) in files {
        fs::write(directory.join(name), bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

/// Firmware that does nothing but enter the kernel, with the registers that `evertwin` gives a processor.
fn firmware(entry: EntryPoint) -> Vec<u8> {
    let regs = entry.regs();
    let mut sregs = Default::default();
    entry.set_long_mode(&mut sregs);

    // hlt, everywhere.
    let mut image = vec![0xF4; FIRMWARE_BYTES];
    let mut put = |at: u16, bytes: &[u8]| {
        image[usize::from(at)..usize::from(at) + bytes.len()].copy_from_slice(bytes);
    };
    let code = code(
        [sregs.cr3, sregs.cr4, sregs.efer, sregs.cr0].map(low),
        low(regs.rsi),
        (sregs.cs.selector, low(regs.rip)),
    );
    assert!(code.len() <= usize::from(GDT_POINTER - CODE));
    put(CODE, &code);
    let limit = sregs.gdt.limit.to_le_bytes();
    let base = low(sregs.gdt.base).to_le_bytes();
    put(GDT_POINTER, &[&limit[..], &base].concat());
    // ljmp SEGMENT:CODE: below 1 MiB, which the page tables map.
    let [to, segment] = [CODE, SEGMENT].map(u16::to_le_bytes);
    put(RESET, &[&[0xEA][..], &to, &segment].concat());
    image
}

/// 16-bit code from real mode straight into long mode (AMD64 APM vol. 2, 14.6): paging and protection are turned on at once.
fn code(
    [cr3, cr4, efer, cr0]: [u32; 4],
    boot_parameters: u32,
    (selector, entry): (u16, u32),
) -> Vec<u8> {
    const EFER: u32 = 0xC000_0080;
    // The processor sets this bit itself, when paging comes on.
    const EFER_LMA: u32 = 1 << 10;
    let eax = |value: u32| [&[0x66, 0xB8][..], &value.to_le_bytes()].concat();
    let mut code = vec![0xFA]; // cli
    code.extend([0x66, 0x2E, 0x0F, 0x01, 0x16]); // lgdtl %cs:GDT_POINTER
    code.extend(GDT_POINTER.to_le_bytes());
    code.extend(eax(cr4));
    code.extend([0x0F, 0x22, 0xE0]); // mov %eax, %cr4
    code.extend(eax(cr3));
    code.extend([0x0F, 0x22, 0xD8]); // mov %eax, %cr3
    code.extend([0x66, 0xB9]); // mov $EFER, %ecx
    code.extend(EFER.to_le_bytes());
    code.extend(eax(efer & !EFER_LMA));
    code.extend([0x66, 0x31, 0xD2, 0x0F, 0x30]); // xor %edx, %edx; wrmsr
    code.extend([0x66, 0xBE]); // mov $boot_parameters, %esi
    code.extend(boot_parameters.to_le_bytes());
    code.extend(eax(cr0));
    code.extend([0x0F, 0x22, 0xC0]); // mov %eax, %cr0
    code.extend([0x66, 0xEA]); // ljmpl $selector, $entry
    code.extend(entry.to_le_bytes());
    code.extend(selector.to_le_bytes());
    code
}

/// All that real mode can load; boot data lie far below 4 GiB.
fn low(value: u64) -> u32 {
    u32::try_from(value).expect("a value of 32 bits")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_comes_from_its_reset_to_the_kernel() {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path(), memory::MIN_RAM, "workload=idle");
        let read = |name| fs::read(directory.path().join(name)).unwrap();
        let firmware = read(FIRMWARE);
        let at = |at: u16, length| &firmware[usize::from(at)..][..length];
        assert_eq!(firmware.len(), FIRMWARE_BYTES);
        assert_eq!(at(RESET, 5), [0xEA, 0x00, 0xFF, 0x00, 0xF0]);
        let code = at(CODE, usize::from(GDT_POINTER - CODE));
        let code = code.strip_suffix(&[0xF4]).unwrap();
        let end = code.iter().rposition(|byte| *byte != 0xF4).unwrap() + 1;
        assert_eq!(code[end - 6..end], [0x00, 0x00, 0x20, 0x00, 0x10, 0x00]);
        let cmdline = &read(LOW_RAM)[layout::CMDLINE as usize..];
        assert!(cmdline.starts_with(b"workload=idle\0"));
    }
}
