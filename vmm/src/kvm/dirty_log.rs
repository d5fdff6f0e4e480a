//! KVM's dirty page log, read and re-armed without stopping the guest
//! (KVM API, 4.8 `KVM_GET_DIRTY_LOG`, 4.117 `KVM_CLEAR_DIRTY_LOG`, 7.18).

use std::os::fd::RawFd;
use std::sync::Arc;

use kvm_bindings::{
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_DIRTY_LOG_INITIALLY_SET,
    KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE, KVMIO, kvm_clear_dirty_log,
    kvm_clear_dirty_log__bindgen_ty_1, kvm_dirty_log, kvm_dirty_log__bindgen_ty_1, kvm_enable_cap,
};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::{ioctl_iow_nr, ioctl_iowr_nr};

use super::log_switch::LogSwitch;
use super::{KvmError, Vm};
use crate::memory::PAGE_SIZE;

ioctl_iow_nr!(KVM_GET_DIRTY_LOG, KVMIO, 0x42, kvm_dirty_log);
ioctl_iowr_nr!(KVM_CLEAR_DIRTY_LOG, KVMIO, 0xC0, kvm_clear_dirty_log);

/// The log of one VM: a bitmap per memory slot, in the order of the slots.
#[derive(Debug)]
pub struct DirtyLog {
    slots: Vec<Slot>,
    switch: LogSwitch,
    /// Reading leaves pages writable until they are cleared here; else reading clears.
    manual: bool,
}

#[derive(Debug)]
struct Slot {
    first_page: u64,
    pages: u64,
    bitmap: Vec<u64>,
}

impl DirtyLog {
    /// Prepares the log; it records nothing until [`start`](Self::start).
    ///
    /// # Errors
    /// When this process can have no further thread or descriptor.
    pub fn new(vm: &Arc<Vm>) -> Result<Self, KvmError> {
        let manual = vm
            .fd
            .enable_cap(&kvm_enable_cap {
                cap: KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
                args: [
                    u64::from(KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET),
                    0,
                    0,
                    0,
                ],
                ..Default::default()
            })
            .is_ok();
        let slots = vm.memory.iter().map(|region| {
            let pages = region.len() / PAGE_SIZE;
            Slot {
                first_page: region.start_addr().0 / PAGE_SIZE,
                pages,
                bitmap: vec![0; pages.div_ceil(64) as usize],
            }
        });
        Ok(Self {
            slots: slots.collect(),
            switch: LogSwitch::new(vm.clone())?,
            manual,
        })
    }

    /// Begins to turn the log on. [`started`](Self::started) must follow.
    pub fn start(&mut self) {
        self.switch.begin(true);
    }

    /// Begins to turn the log off; writes cost nothing again soon after.
    pub fn stop(&mut self) {
        self.switch.begin(false);
    }

    /// A descriptor that becomes readable when all that was begun is done.
    pub fn switched(&self) -> RawFd {
        self.switch.switched()
    }

    /// Makes [`switched`](Self::switched) readable for another reason.
    ///
    /// # Errors
    /// This process can have no further descriptor.
    pub fn signal(&self) -> Result<EventFd, KvmError> {
        self.switch.signal()
    }

    /// Waits until the log is on, with every page clean. Whoever calls this reads all pages
    /// afterwards.
    ///
    /// # Errors
    /// The KVM call that failed.
    pub fn started(&mut self, vm: &Vm) -> Result<(), KvmError> {
        self.switch.finish()?;
        self.read(vm, |_, _| {})
    }

    /// Reads and re-arms the log, giving each slot's first page number and its bitmap
    /// of pages written since the last read.
    ///
    /// # Errors
    /// The KVM call that failed; pages of slots already read have been given out.
    pub fn read(&mut self, vm: &Vm, mut found: impl FnMut(u64, &[u64])) -> Result<(), KvmError> {
        for (number, slot) in (0u32..).zip(&mut self.slots) {
            let pointer = slot.bitmap.as_mut_ptr().cast();
            let get = kvm_dirty_log {
                slot: number,
                padding1: 0,
                __bindgen_anon_1: kvm_dirty_log__bindgen_ty_1 {
                    dirty_bitmap: pointer,
                },
            };
            // SAFETY: the bitmap holds one bit per page of the slot, as the call needs.
            #[allow(unsafe_code)]
            check("KVM_GET_DIRTY_LOG", unsafe {
                ioctl_with_ref(&vm.fd, KVM_GET_DIRTY_LOG(), &get)
            })?;
            // Re-arm before anyone copies a page: a write after this is logged again (I5).
            if self.manual && slot.bitmap.iter().any(|word| *word != 0) {
                let clear = kvm_clear_dirty_log {
                    slot: number,
                    num_pages: u32::try_from(slot.pages).unwrap_or(!63),
                    first_page: 0,
                    __bindgen_anon_1: kvm_clear_dirty_log__bindgen_ty_1 {
                        dirty_bitmap: pointer,
                    },
                };
                // SAFETY: as above; KVM only reads the bitmap.
                #[allow(unsafe_code)]
                check("KVM_CLEAR_DIRTY_LOG", unsafe {
                    ioctl_with_ref(&vm.fd, KVM_CLEAR_DIRTY_LOG(), &clear)
                })?;
            }
            found(slot.first_page, &slot.bitmap);
        }
        Ok(())
    }
}

fn check(call: &'static str, result: i32) -> Result<(), KvmError> {
    if result < 0 {
        return Err(KvmError::call(call)(std::io::Error::last_os_error()));
    }
    Ok(())
}
