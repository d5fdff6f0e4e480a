//! Guest time in nanoseconds, from kvmclock, or from a calibrated TSC without it.

use core::arch::x86_64::{__cpuid, _mm_lfence, _rdtsc};
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering, compiler_fence};

use pico::pvclock::{PvclockTime, TscScale};

use super::console::say;
use super::{boot, interrupts};

/// A step back below this is rounding between two of KVM's updates: it is hidden.
const ROUNDING_NS: u64 = 10_000;
/// A step back of this much or more means that time was restored wrongly.
const BROKEN_NS: u64 = 500_000;
/// The same where KVM does not promise that time only goes forward: what its guesses at the TSC's rate come to is
/// hidden, as every kernel does there.
const BROKEN_UNSTABLE_NS: u64 = 1_000_000_000;

/// The page part that KVM writes: one `pvclock_vcpu_time_info`.
#[repr(C, align(64))]
pub(crate) struct SharedTime(UnsafeCell<[u8; 32]>);

// SAFETY: only KVM writes it, and `read` follows its version protocol with volatile
// accesses.
unsafe impl Sync for SharedTime {}

/// Its address is given to KVM by the ring-0 stub.
pub(crate) static KVMCLOCK: SharedTime = SharedTime(UnsafeCell::new([0; 32]));

static LAST_NS: AtomicU64 = AtomicU64::new(0);
static TSC_MUL: AtomicU32 = AtomicU32::new(0);
static TSC_BASE: AtomicU64 = AtomicU64::new(0);

fn tsc() -> u64 {
    // SAFETY: RDTSC and LFENCE exist on every x86-64 and touch no memory.
    unsafe {
        _mm_lfence();
        _rdtsc()
    }
}

/// Whether the hypervisor gave us its clock.
pub(crate) fn is_kvmclock() -> bool {
    // SAFETY: written once by the ring-0 stub, before ring 3 runs.
    unsafe { (&raw const boot::kvmclock_enabled).read_volatile() == 1 }
}

/// Without kvmclock: measures the TSC against the local APIC's timer, whose rate KVM
/// fixes at one tick per nanosecond.
pub(crate) fn init() {
    if is_kvmclock() {
        return;
    }
    let (ticks, cycles) = interrupts::count_apic_ticks(10_000_000, tsc);
    TSC_BASE.store(tsc(), Ordering::Relaxed);
    TSC_MUL.store(
        TscScale::from_rate(cycles, u64::from(ticks * interrupts::DIVIDER)).mul,
        Ordering::Relaxed,
    );
    // Leaf 0x4000_0000 only names the hypervisor in the message.
    let hypervisor = __cpuid(0x4000_0000).ebx;
    say!("no kvmclock (hypervisor {hypervisor:#x}): time comes from the TSC");
}

fn read_kvmclock() -> (u64, bool) {
    let shared = KVMCLOCK.0.get().cast::<u8>();
    loop {
        // SAFETY: the structure is 32 bytes, 64-byte aligned, and always mapped.
        let version = unsafe { shared.cast::<u32>().read_volatile() };
        compiler_fence(Ordering::SeqCst);
        // SAFETY: as above; a torn read is thrown away by the version check below.
        let bytes = unsafe { shared.cast::<[u8; 32]>().read_volatile() };
        let now = tsc();
        compiler_fence(Ordering::SeqCst);
        // SAFETY: as above.
        let after = unsafe { shared.cast::<u32>().read_volatile() };
        if version & 1 == 0 && version == after {
            let time = PvclockTime::from_bytes(&bytes);
            return (time.nanoseconds_at(now), time.stable);
        }
    }
}

/// Nanoseconds since some moment before boot. Never steps back: a wrong step of the
/// hypervisor's clock is a panic, so that tests see it.
pub(crate) fn now() -> u64 {
    let (now, stable) = if is_kvmclock() {
        read_kvmclock()
    } else {
        let scale = TscScale {
            mul: TSC_MUL.load(Ordering::Relaxed),
        };
        let cycles = tsc().wrapping_sub(TSC_BASE.load(Ordering::Relaxed));
        (scale.nanoseconds(cycles), true)
    };
    let last = LAST_NS.load(Ordering::Relaxed);
    if now >= last {
        LAST_NS.store(now, Ordering::Relaxed);
        return now;
    }
    let step = last - now;
    let broken = if stable {
        BROKEN_NS
    } else {
        BROKEN_UNSTABLE_NS
    };
    if step >= broken {
        // Let the panic's own path read the clock.
        LAST_NS.store(now, Ordering::Relaxed);
        panic!("guest time stepped back by {step} ns");
    }
    if stable && step >= ROUNDING_NS {
        say!("WARNING clock: guest time stepped back by {step} ns");
    }
    last
}
