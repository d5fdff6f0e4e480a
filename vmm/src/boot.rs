//! Puts a kernel into guest RAM and a vCPU at its entry, by the 64-bit boot protocol
//! (Linux, Documentation/arch/x86/boot.rst, "64-bit Boot Protocol").

use std::fs::File;
use std::io::{self, Cursor, Read, Seek};
use std::path::{Path, PathBuf};

use evertwin_devices::GuestMemory;
use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use linux_loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::configurator::{BootConfigurator, BootParams, linux::LinuxBootConfigurator};
use linux_loader::loader::{self, BzImage, Cmdline, Elf, KernelLoader, KernelLoaderResult};
use vm_memory::{
    Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, ReadVolatile,
};

use crate::config::KernelSource;
use crate::{layout, reset_vector};

/// Why a guest can't be booted.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A file that can't be opened or read.
    #[error("can't read the {what} {path}: {source}; check the path")]
    Unreadable {
        /// "kernel" or "initrd".
        what: &'static str,
        /// As configured.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Neither an x86-64 ELF nor a bzImage.
    #[error(
        "{path} is not a kernel evertwin can boot ({reason}): give an x86-64 ELF vmlinux or a bzImage"
    )]
    NotAKernel {
        /// As configured.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Kernel, initrd or boot data don't fit.
    #[error("the {what} does not fit into the guest's memory: give it more than {ram} bytes")]
    NoRoom {
        /// What does not fit.
        what: &'static str,
        /// The guest's RAM.
        ram: u64,
    },
    /// The kernel command line can't be used.
    #[error("the kernel command line can't be used: {0}")]
    Cmdline(String),
}

/// Where the first vCPU starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryPoint(u64);

/// What to boot.
#[derive(Debug, Clone, Copy)]
pub struct Guest<'a> {
    /// The kernel.
    pub kernel: &'a KernelSource,
    /// Initial RAM disk.
    pub initrd: Option<&'a Path>,
    /// Kernel command line.
    pub cmdline: &'a str,
    /// The same with the devices on it, for kernels that may know no ACPI.
    pub cmdline_with_devices: &'a str,
    /// Address of the ACPI root pointer.
    pub acpi: u64,
}

/// Loads kernel, initrd, command line and boot parameters into `memory`.
///
/// # Errors
/// Files that are missing, no kernel, or too large for the guest.
pub fn load(memory: &GuestMemory, guest: Guest<'_>) -> Result<EntryPoint, BootError> {
    let ram = memory.iter().map(|r| r.len()).sum();
    let loaded = match guest.kernel {
        KernelSource::Pico => load_kernel(
            memory,
            &mut Cursor::new(evertwin_guest_images::PICO),
            Path::new("pico"),
            ram,
        )?,
        KernelSource::File(path) => load_kernel(memory, &mut open("kernel", path)?, path, ram)?,
    };
    // Distributions' kernels come as bzImages and read ACPI; a bare ELF may be of any kind.
    let (mut header, cmdline) = match loaded.setup_header {
        Some(header) => (header, guest.cmdline),
        None => (elf_header(), guest.cmdline_with_devices),
    };
    if let Some(path) = guest.initrd {
        let (address, size) = load_initrd(memory, path, loaded.kernel_end, ram)?;
        header.ramdisk_image = address;
        header.ramdisk_size = size;
    }
    load_cmdline(memory, cmdline)?;
    header.cmd_line_ptr = layout::CMDLINE as u32;
    header.cmdline_size = cmdline.len() as u32;
    header.type_of_loader = 0xFF;
    write_zero_page(memory, header, ram, guest.acpi)?;
    reset_vector::write(memory)?;
    write_gdt_and_page_tables(memory).map_err(|_| BootError::NoRoom {
        what: "boot data",
        ram,
    })?;
    // A bzImage's 64-bit entry lies 0x200 after its load address.
    let offset = if loaded.setup_header.is_some() {
        0x200
    } else {
        0
    };
    Ok(EntryPoint(loaded.kernel_load.raw_value() + offset))
}

/// Checks, before anything else is set up, that the files can be read.
///
/// # Errors
/// The file that can't, by name.
pub fn check(kernel: &KernelSource, initrd: Option<&Path>) -> Result<(), BootError> {
    if let KernelSource::File(path) = kernel {
        open("kernel", path)?;
    }
    if let Some(path) = initrd {
        open("initrd", path)?;
    }
    Ok(())
}

fn open(what: &'static str, path: &Path) -> Result<File, BootError> {
    let unreadable = |source| BootError::Unreadable {
        what,
        path: path.into(),
        source,
    };
    // Looked at before it is opened: to open a pipe can take for ever.
    let kind = std::fs::metadata(path).map_err(unreadable)?;
    if kind.is_dir() {
        return Err(unreadable(io::ErrorKind::IsADirectory.into()));
    }
    if !kind.is_file() {
        return Err(unreadable(io::Error::other("it is not a regular file")));
    }
    File::open(path).map_err(unreadable)
}

/// Offset and value of `EI_CLASS` for 64-bit files, and of `e_machine`'s low byte for x86-64 (ELF header).
const ELF_CLASS: usize = 4;
const ELF_CLASS_64: u8 = 2;
const ELF_MACHINE: usize = 18;
const ELF_MACHINE_X86_64: u8 = 62;

fn load_kernel<F: Read + ReadVolatile + Seek>(
    memory: &GuestMemory,
    image: &mut F,
    path: &Path,
    ram: u64,
) -> Result<KernelLoaderResult, BootError> {
    let high = Some(GuestAddress(layout::HIGH_RAM));
    let wrong = |reason: String| BootError::NotAKernel {
        path: path.into(),
        reason,
    };
    let explain = |error: loader::Error| match error {
        loader::Error::Elf(loader::elf::Error::ReadKernelImage)
        | loader::Error::Bzimage(loader::bzimage::Error::ReadBzImageCompressedKernel) => {
            BootError::NoRoom {
                what: "kernel",
                ram,
            }
        }
        other => wrong(other.to_string()),
    };
    let mut start = [0; 20];
    image
        .read_exact(&mut start)
        .map_err(|_| wrong("the file is too short".into()))?;
    if start.starts_with(b"\x7fELF") {
        // The loader looks at neither; code of another kind would only fail as a guest.
        if start[ELF_CLASS] != ELF_CLASS_64 || start[ELF_MACHINE] != ELF_MACHINE_X86_64 {
            return Err(wrong("an ELF file, but not of 64-bit x86 code".into()));
        }
        Elf::load(memory, None, image, high).map_err(explain)
    } else {
        BzImage::load(memory, None, image, high).map_err(explain)
    }
}

/// The setup header for an ELF kernel, which brings none of its own.
fn elf_header() -> setup_header {
    setup_header {
        boot_flag: 0xAA55,
        header: u32::from_le_bytes(*b"HdrS"),
        version: 0x020F,
        // LOADED_HIGH.
        loadflags: 1,
        kernel_alignment: 0x0100_0000,
        ..Default::default()
    }
}

/// Puts the initrd at the top of low RAM, page aligned.
fn load_initrd(
    memory: &GuestMemory,
    path: &Path,
    kernel_end: u64,
    ram: u64,
) -> Result<(u32, u32), BootError> {
    let file = open("initrd", path)?;
    let unreadable = |source| BootError::Unreadable {
        what: "initrd",
        path: path.into(),
        source,
    };
    let size = file.metadata().map_err(unreadable)?.len();
    let no_room = BootError::NoRoom {
        what: "initrd",
        ram,
    };
    let top = ram.min(layout::HOLE_START);
    let address = match top.checked_sub(size) {
        Some(address) if address & !0xFFF >= kernel_end => address & !0xFFF,
        _ => return Err(no_room),
    };
    let mut bytes = Vec::new();
    file.take(size)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    let (Ok(at), Ok(len)) = (u32::try_from(address), u32::try_from(bytes.len())) else {
        return Err(no_room);
    };
    memory
        .write_slice(&bytes, GuestAddress(address))
        .map_err(|_| no_room)?;
    Ok((at, len))
}

fn load_cmdline(memory: &GuestMemory, text: &str) -> Result<(), BootError> {
    let wrong = |e: &dyn std::fmt::Display| BootError::Cmdline(e.to_string());
    let cmdline = Cmdline::try_from(text, layout::CMDLINE_MAX).map_err(|e| wrong(&e))?;
    loader::load_cmdline(memory, GuestAddress(layout::CMDLINE), &cmdline).map_err(|e| wrong(&e))
}

fn write_zero_page(
    memory: &GuestMemory,
    hdr: setup_header,
    ram: u64,
    acpi: u64,
) -> Result<(), BootError> {
    // ACPI 6.5, 15: address range types.
    const RAM: u32 = 1;
    const RESERVED: u32 = 2;
    let mut params = boot_params {
        hdr,
        acpi_rsdp_addr: acpi,
        ..Default::default()
    };
    let low_end = ram.min(layout::HOLE_START);
    let mut map = vec![
        (0, layout::LOW_RAM_END, RAM),
        (layout::ACPI, layout::HIGH_RAM - layout::ACPI, RESERVED),
        (layout::HIGH_RAM, low_end - layout::HIGH_RAM, RAM),
    ];
    if ram > low_end {
        map.push((layout::HOLE_END, ram - low_end, RAM));
    }
    for (entry, (addr, size, kind)) in params.e820_table.iter_mut().zip(&map) {
        *entry = boot_e820_entry {
            addr: *addr,
            size: *size,
            r#type: *kind,
        };
    }
    params.e820_entries = map.len() as u8;
    LinuxBootConfigurator::write_bootparams(
        &BootParams::new(&params, GuestAddress(layout::ZERO_PAGE)),
        memory,
    )
    .map_err(|_| BootError::NoRoom {
        what: "boot parameters",
        ram,
    })
}

/// Boot GDT by selector / 8; the protocol wants code at 0x10 and data at 0x18.
const BOOT_GDT: [u64; 4] = [0, 0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF];

/// Identity-maps the first GiB with 2 MiB pages.
fn write_gdt_and_page_tables(memory: &GuestMemory) -> Result<(), vm_memory::GuestMemoryError> {
    const PRESENT_WRITABLE: u64 = 0x3;
    const LARGE: u64 = 0x80;
    memory.write_obj(BOOT_GDT, GuestAddress(layout::GDT))?;
    memory.write_obj(layout::PDPT | PRESENT_WRITABLE, GuestAddress(layout::PML4))?;
    memory.write_obj(layout::PD | PRESENT_WRITABLE, GuestAddress(layout::PDPT))?;
    for i in 0..512 {
        memory.write_obj(
            (i << 21) | PRESENT_WRITABLE | LARGE,
            GuestAddress(layout::PD + i * 8),
        )?;
    }
    Ok(())
}

impl EntryPoint {
    /// General registers at entry: RSI points at the boot parameters.
    pub fn regs(self) -> kvm_regs {
        kvm_regs {
            rip: self.0,
            rsi: layout::ZERO_PAGE,
            rsp: layout::BOOT_STACK,
            rflags: 0x2,
            ..Default::default()
        }
    }

    /// Makes `sregs` (as KVM gives them at reset) those of 64-bit mode with paging.
    pub fn set_long_mode(self, sregs: &mut kvm_sregs) {
        const CR0_PE: u64 = 1;
        const CR0_ET: u64 = 1 << 4;
        const CR0_NE: u64 = 1 << 5;
        const CR0_PG: u64 = 1 << 31;
        const CR4_PAE: u64 = 1 << 5;
        const EFER_LME: u64 = 1 << 8;
        const EFER_LMA: u64 = 1 << 10;
        let code = kvm_segment {
            limit: 0xFFFF_FFFF,
            selector: 0x10,
            type_: 0xB,
            present: 1,
            s: 1,
            l: 1,
            g: 1,
            ..Default::default()
        };
        let data = kvm_segment {
            selector: 0x18,
            type_: 0x3,
            l: 0,
            db: 1,
            ..code
        };
        sregs.cs = code;
        (sregs.ds, sregs.es, sregs.ss) = (data, data, data);
        (sregs.fs, sregs.gs) = (data, data);
        sregs.gdt.base = layout::GDT;
        sregs.gdt.limit = (size_of_val(&BOOT_GDT) - 1) as u16;
        sregs.cr3 = layout::PML4;
        sregs.cr4 = CR4_PAE;
        sregs.cr0 = CR0_PE | CR0_ET | CR0_NE | CR0_PG;
        sregs.efer = EFER_LME | EFER_LMA;
    }
}
