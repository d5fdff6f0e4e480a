//! Interrupt descriptors, local APIC, IOAPIC, the one-shot timer, and sleep.

use core::arch::asm;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::{boot, clock, port};

/// Bit of the local APIC timer in what [`take_wake`] returns.
pub(crate) const TIMER: u32 = 1 << 0;
/// The first vector of the wake handlers; vector - this is the bit's number.
const FIRST_VECTOR: u8 = 0x30;
const SPURIOUS_VECTOR: u8 = 0xff;

const LAPIC: usize = 0xfee0_0000;
const LAPIC_TASK_PRIORITY: usize = 0x80;
const LAPIC_SPURIOUS: usize = 0xf0;
const LAPIC_TIMER: usize = 0x320;
const LAPIC_LINT0: usize = 0x350;
const LAPIC_LINT1: usize = 0x360;
const LAPIC_TIMER_START: usize = 0x380;
const LAPIC_TIMER_NOW: usize = 0x390;
const LAPIC_TIMER_DIVIDE: usize = 0x3e0;
const LVT_MASKED: u32 = 1 << 16;
const DIVIDE_BY_16: u32 = 0x3;
/// What [`DIVIDE_BY_16`] divides the bus clock by.
pub(crate) const DIVIDER: u32 = 16;

const IOAPIC_SELECT: usize = 0xfec0_0000;
const IOAPIC_WINDOW: usize = 0xfec0_0010;
const IOAPIC_REDIRECTION: u32 = 0x10;

/// Ticks of the divided local APIC timer in 2^20 nanoseconds.
static TICKS_PER_2_20_NS: AtomicU32 = AtomicU32::new((1 << 20) / DIVIDER);
/// When the armed timer fires; 0: not armed.
static ARMED_NS: AtomicU64 = AtomicU64::new(0);

fn write_register(address: usize, value: u32) {
    // SAFETY: called with register addresses of the APICs, which the boot page tables
    // map uncached; the registers used are no memory to the compiler.
    unsafe { (address as *mut u32).write_volatile(value) }
}

fn read_register(address: usize) -> u32 {
    // SAFETY: as in `write_register`.
    unsafe { (address as *const u32).read_volatile() }
}

/// Silences the old interrupt controllers, and turns the local APIC on.
pub(crate) fn init() {
    port::write(0x21, 0xff);
    port::write(0xa1, 0xff);
    write_register(LAPIC + LAPIC_LINT0, LVT_MASKED);
    write_register(LAPIC + LAPIC_LINT1, LVT_MASKED);
    write_register(LAPIC + LAPIC_TASK_PRIORITY, 0);
    write_register(LAPIC + LAPIC_TIMER_DIVIDE, DIVIDE_BY_16);
    write_register(LAPIC + LAPIC_TIMER, LVT_MASKED);
    write_register(LAPIC + LAPIC_SPURIOUS, 0x100 | u32::from(SPURIOUS_VECTOR));
}

/// Measures the timer's rate against the clock, then lets it interrupt (one-shot).
pub(crate) fn init_timer() {
    if clock::is_kvmclock() {
        // Whoever stops this processor meanwhile makes the timer seem slow. Then it is armed for too short a time, which
        // costs a look for work; the best of three is close.
        let rates = [(); 3].map(|()| {
            let (ticks, nanoseconds) = count_apic_ticks(1_000_000, clock::now);
            (u64::from(ticks) << 20) / nanoseconds.max(1)
        });
        let rate = rates.into_iter().fold(0, u64::max);
        TICKS_PER_2_20_NS.store(rate.clamp(1, u64::from(u32::MAX)) as u32, Ordering::Relaxed);
    }
    write_register(LAPIC + LAPIC_TIMER, u32::from(FIRST_VECTOR));
}

/// Runs the (masked) timer for about `nanoseconds` of a 1 GHz bus, and returns how many
/// ticks of the divided timer passed, and by how much `reading` grew from before them until after them.
pub(crate) fn count_apic_ticks(nanoseconds: u32, reading: fn() -> u64) -> (u32, u64) {
    write_register(LAPIC + LAPIC_TIMER_START, u32::MAX);
    let before = reading();
    let first = u32::MAX - read_register(LAPIC + LAPIC_TIMER_NOW);
    let mut ticks = first;
    while ticks - first < nanoseconds / DIVIDER {
        ticks = u32::MAX - read_register(LAPIC + LAPIC_TIMER_NOW);
    }
    let after = reading();
    write_register(LAPIC + LAPIC_TIMER_START, 0);
    (ticks - first, after - before)
}

/// Routes an interrupt line (edge, active high) to a bit of [`take_wake`]; `bit` is
/// 1 to 15.
pub(crate) fn route(gsi: u32, bit: u8) {
    let vector = u32::from(FIRST_VECTOR) + u32::from(bit & 15);
    write_register(IOAPIC_SELECT, IOAPIC_REDIRECTION + 2 * gsi + 1);
    write_register(IOAPIC_WINDOW, 0);
    write_register(IOAPIC_SELECT, IOAPIC_REDIRECTION + 2 * gsi);
    write_register(IOAPIC_WINDOW, vector);
}

/// The interrupts since the last call, one bit per source. Call it before looking for
/// work: what comes later keeps [`sleep`] from sleeping.
pub(crate) fn take_wake() -> u32 {
    let wake = boot::WAKE.swap(0, Ordering::SeqCst);
    if wake & TIMER != 0 {
        ARMED_NS.store(0, Ordering::Relaxed);
    }
    wake
}

/// Sleeps until an interrupt; returns at once if one came since [`take_wake`].
pub(crate) fn sleep() {
    // SAFETY: `hlt` in ring 3 faults into the stub's handler, which goes on after it.
    unsafe { asm!("hlt", options(nostack)) };
}

/// Sleeps until an interrupt, or until guest time `deadline` in nanoseconds.
pub(crate) fn sleep_until(deadline: Option<u64>) {
    if let Some(deadline) = deadline {
        let now = clock::now();
        if deadline <= now {
            return;
        }
        arm(now, deadline);
    }
    sleep();
}

/// A timer that fires too early only costs one look for work, so it is kept.
fn arm(now: u64, deadline: u64) {
    let armed = ARMED_NS.load(Ordering::Relaxed);
    if armed != 0 && armed <= deadline {
        return;
    }
    let rate = u64::from(TICKS_PER_2_20_NS.load(Ordering::Relaxed));
    // Two seconds at most: the product stays in range, and a longer wait just re-arms.
    let wait = (deadline - now).min(2_000_000_000);
    let ticks = ((wait * rate) >> 20).clamp(1, u64::from(u32::MAX)) as u32;
    ARMED_NS.store(now + wait, Ordering::Relaxed);
    write_register(LAPIC + LAPIC_TIMER_START, ticks);
}
