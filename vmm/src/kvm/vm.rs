//! A KVM virtual machine: memory slots, interrupt controllers, event wiring.

use std::sync::Arc;

use evertwin_devices::GuestMemory;
use kvm_bindings::{
    CpuId, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_MEM_LOG_DIRTY_PAGES,
    KVM_PIT_SPEAKER_DUMMY, kvm_irqchip, kvm_pit_config, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, VcpuFd, VmFd};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use super::{KvmError, cpuid, topology};
use crate::layout;

/// Opens `/dev/kvm` and checks that it can do what evertwin needs.
///
/// # Errors
/// A missing or closed `/dev/kvm`, or a missing capability, each by name.
pub fn open() -> Result<Kvm, KvmError> {
    let kvm = Kvm::new().map_err(|e| match e.errno() {
        libc::ENOENT | libc::ENODEV | libc::ENXIO => KvmError::Missing,
        libc::EACCES | libc::EPERM => KvmError::Denied,
        _ => KvmError::call("open(/dev/kvm)")(e),
    })?;
    let needed = [
        (Cap::Irqchip, "an in-kernel interrupt controller"),
        (Cap::Irqfd, "irqfd"),
        (Cap::Ioeventfd, "ioeventfd"),
        (Cap::UserMemory, "user memory slots"),
        (Cap::Pit2, "an in-kernel timer (PIT2)"),
        (Cap::AdjustClock, "KVM_SET_CLOCK"),
        (Cap::ImmediateExit, "immediate_exit"),
        (Cap::VcpuEvents, "KVM_GET_VCPU_EVENTS"),
        (Cap::Xsave, "KVM_GET_XSAVE"),
    ];
    for (cap, name) in needed {
        if !kvm.check_extension(cap) {
            return Err(KvmError::Capability(name));
        }
    }
    Ok(kvm)
}

/// One KVM VM with its guest memory registered.
#[derive(Debug)]
pub struct Vm {
    pub(super) fd: VmFd,
    pub(super) memory: Arc<GuestMemory>,
    /// What every vCPU of this VM reports.
    pub(super) cpuid: CpuId,
    pub(super) msrs: Vec<u32>,
}

/// Masks all lines of both PICs, as firmware leaves them. A hardware-reduced ACPI guest never programs them, but its
/// first processor listens to them until it sets up its LAPIC: an early interrupt on line 7 would be vector 7, an exception.
fn mask_pics(fd: &VmFd) -> Result<(), KvmError> {
    for chip_id in [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE] {
        let mut chip = kvm_irqchip {
            chip_id,
            ..Default::default()
        };
        fd.get_irqchip(&mut chip)
            .map_err(KvmError::call("KVM_GET_IRQCHIP"))?;
        chip.chip.pic.imr = 0xff;
        fd.set_irqchip(&chip)
            .map_err(KvmError::call("KVM_SET_IRQCHIP"))?;
    }
    Ok(())
}

impl Vm {
    /// Creates a VM with in-kernel PIC, IOAPIC, LAPICs and PIT over `memory`, for `vcpus` vCPUs.
    ///
    /// # Errors
    /// More vCPUs than this host can give a VM, or the KVM call that failed.
    pub fn new(kvm: &Kvm, memory: Arc<GuestMemory>, vcpus: u8) -> Result<Self, KvmError> {
        let most = kvm.get_max_vcpus();
        if usize::from(vcpus) > most {
            return Err(KvmError::TooManyVcpus { vcpus, most });
        }
        let fd = kvm.create_vm().map_err(KvmError::call("KVM_CREATE_VM"))?;
        fd.set_identity_map_address(layout::IDENTITY_MAP_ADDRESS)
            .map_err(KvmError::call("KVM_SET_IDENTITY_MAP_ADDR"))?;
        fd.set_tss_address(layout::TSS_ADDRESS)
            .map_err(KvmError::call("KVM_SET_TSS_ADDR"))?;
        fd.create_irq_chip()
            .map_err(KvmError::call("KVM_CREATE_IRQCHIP"))?;
        mask_pics(&fd)?;
        fd.create_pit2(kvm_pit_config {
            flags: KVM_PIT_SPEAKER_DUMMY,
            ..Default::default()
        })
        .map_err(KvmError::call("KVM_CREATE_PIT2"))?;
        let vm = Self {
            cpuid: cpuid::for_guest(kvm, vcpus)?,
            msrs: super::msrs::saved(kvm)?,
            fd,
            memory,
        };
        vm.set_slots(0)?;
        Ok(vm)
    }

    /// (Re)registers all RAM with `flags`; turning the dirty log on or off is a flag change.
    pub(super) fn set_slots(&self, flags: u32) -> Result<(), KvmError> {
        for (slot, region) in (0u32..).zip(self.memory.iter()) {
            let slot = kvm_userspace_memory_region {
                slot,
                flags,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY: the mapping lives in `self.memory` for as long as the VM, and
            // regions do not overlap.
            #[allow(unsafe_code)]
            unsafe { self.fd.set_user_memory_region(slot) }
                .map_err(KvmError::call("KVM_SET_USER_MEMORY_REGION"))?;
        }
        Ok(())
    }

    /// Turns KVM's dirty page log on or off for all RAM.
    pub(super) fn log_dirty_pages(&self, on: bool) -> Result<(), KvmError> {
        self.set_slots(if on { KVM_MEM_LOG_DIRTY_PAGES } else { 0 })
    }

    /// Creates vCPU `id`.
    pub(super) fn create_vcpu(&self, id: u8) -> Result<VcpuFd, KvmError> {
        let vcpu = self
            .fd
            .create_vcpu(u64::from(id))
            .map_err(KvmError::call("KVM_CREATE_VCPU"))?;
        let mut cpuid = self.cpuid.clone();
        topology::personalise(&mut cpuid, u32::from(id));
        vcpu.set_cpuid2(&cpuid)
            .map_err(KvmError::call("KVM_SET_CPUID2"))?;
        Ok(vcpu)
    }

    /// The CPUID that guests see, for comparing twins.
    pub fn cpuid(&self) -> &CpuId {
        &self.cpuid
    }

    /// Raises interrupt line `gsi` (edge) whenever `event` is written.
    ///
    /// # Errors
    /// The KVM call that failed.
    pub fn wire_interrupt(&self, event: &EventFd, gsi: u32) -> Result<(), KvmError> {
        self.fd
            .register_irqfd(event, gsi)
            .map_err(KvmError::call("KVM_IRQFD"))
    }

    /// Signals `event` when the guest writes the 32-bit `value` to `address`.
    ///
    /// # Errors
    /// The KVM call that failed.
    pub fn wire_doorbell(&self, event: &EventFd, address: u64, value: u32) -> Result<(), KvmError> {
        self.fd
            .register_ioevent(event, &IoEventAddress::Mmio(address), value)
            .map_err(KvmError::call("KVM_IOEVENTFD"))
    }
}
