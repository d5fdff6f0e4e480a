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

/// Words of a bitmap that are looked at and re-armed together: 128 MiB of guest memory. Who writes to little of a large
/// memory has to pay for that only.
const PART: usize = 512;

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

    /// Reads and re-arms the log, giving bitmaps of pages written since the last read, each with the number of its first
    /// page. Parts of the memory without any are left out.
    ///
    /// # Errors
    /// The KVM call that failed; pages of slots already read have been given out.
    pub fn read(&mut self, vm: &Vm, found: impl FnMut(u64, &[u64])) -> Result<(), KvmError> {
        self.read_but(vm, |_, _| {}, found)
    }

    /// The same, but that pages whose bits `but` removes from the bitmap stay in the log, and writable, where the host's
    /// KVM can do that.
    ///
    /// # Errors
    /// As above.
    pub fn read_but(
        &mut self,
        vm: &Vm,
        but: impl Fn(u64, &mut [u64]),
        mut found: impl FnMut(u64, &[u64]),
    ) -> Result<(), KvmError> {
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
            if self.manual {
                but(slot.first_page, &mut slot.bitmap);
            }
            for (part, words) in (0u64..).zip(slot.bitmap.chunks_mut(PART)) {
                if words.iter().fold(0, |all, word| all | *word) == 0 {
                    continue;
                }
                let first_page = part * PART as u64 * 64;
                // Re-arm before anyone copies a page: a write after this is logged again (I5).
                if self.manual {
                    let pages = (slot.pages - first_page).min(PART as u64 * 64);
                    let clear = kvm_clear_dirty_log {
                        slot: number,
                        num_pages: pages as u32,
                        first_page,
                        __bindgen_anon_1: kvm_clear_dirty_log__bindgen_ty_1 {
                            dirty_bitmap: words.as_mut_ptr().cast(),
                        },
                    };
                    // SAFETY: these words hold one bit for each of the pages; KVM only reads them.
                    #[allow(unsafe_code)]
                    check("KVM_CLEAR_DIRTY_LOG", unsafe {
                        ioctl_with_ref(&vm.fd, KVM_CLEAR_DIRTY_LOG(), &clear)
                    })?;
                }
                found(slot.first_page + first_page, words);
            }
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
