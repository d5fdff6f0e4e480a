//! Everything that talks to `/dev/kvm`.

mod cpuid;
mod dirty_log;
mod log_switch;
mod msrs;
mod topology;
mod tsc;
mod turns;
mod vcpu;
mod vcpu_state;
mod vm;
mod vm_state;

pub use cpuid::of_first_vcpu as cpuid_of_first_vcpu;
pub use dirty_log::DirtyLog;
pub use tsc::{TscChange, host as host_tsc};
pub(crate) use turns::turn_in;
pub use vcpu::{Buses, Pausing, Vcpu, VcpuEnd};
pub use vcpu_state::VcpuState;
pub use vm::{Vm, open};
pub use vm_state::VmChipState;

/// A failed KVM call, or a host whose KVM lacks what is needed.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// `/dev/kvm` is absent.
    #[error(
        "/dev/kvm does not exist: turn on virtualisation in the firmware and load the kvm_intel or kvm_amd module"
    )]
    Missing,
    /// `/dev/kvm` can't be opened by this user.
    #[error(
        "no rights to open /dev/kvm: run as root or join the kvm group (`usermod -aG kvm $USER`, then log in again)"
    )]
    Denied,
    /// A capability is missing.
    #[error(
        "this host's KVM lacks {0}, which evertwin needs: use a newer kernel (6.1 or later is known to work)"
    )]
    Capability(&'static str),
    /// The VM wants more vCPUs than KVM gives.
    #[error(
        "{vcpus} vCPUs are more than this host's KVM gives a VM ({most}): set `vcpus` to at most that"
    )]
    TooManyVcpus {
        /// As configured.
        vcpus: u8,
        /// KVM's limit.
        most: usize,
    },
    /// A KVM call failed.
    #[error("KVM refused {call}: {source}")]
    Call {
        /// The ioctl or operation.
        call: &'static str,
        /// Its error.
        source: std::io::Error,
    },
    /// A vCPU's thread is gone.
    #[error("vCPU {0} is no longer running: the guest has ended")]
    VcpuGone(u8),
    /// A restored state does not fit this VM.
    #[error("saved state does not fit this VM: {0}")]
    Mismatch(String),
}

impl KvmError {
    /// Names the call that failed, for `map_err`.
    pub(crate) fn call<E: Into<std::io::Error>>(call: &'static str) -> impl Fn(E) -> Self {
        move |e| Self::Call {
            call,
            source: e.into(),
        }
    }
}
