//! The arithmetic of KVM's paravirtual clock (Linux's "pvclock" ABI).

/// One snapshot of `pvclock_vcpu_time_info`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PvclockTime {
    tsc_timestamp: u64,
    system_time: u64,
    tsc_to_system_mul: u32,
    tsc_shift: i8,
    /// Whether the hypervisor promises that time never steps back from one snapshot to the next
    /// (`PVCLOCK_TSC_STABLE_BIT`; KVM's documentation of `MSR_KVM_SYSTEM_TIME_NEW`). It does not on a
    /// host whose own kernel has found the TSC wanting.
    pub stable: bool,
}

impl PvclockTime {
    /// Takes the fields out of the structure's 32 bytes.
    pub fn from_bytes(bytes: &[u8; 32]) -> Self {
        let quad = |at: usize| u64::from_le_bytes(core::array::from_fn(|i| bytes[at + i]));
        Self {
            tsc_timestamp: quad(8),
            system_time: quad(16),
            tsc_to_system_mul: u32::from_le_bytes(core::array::from_fn(|i| bytes[24 + i])),
            tsc_shift: bytes[28] as i8,
            stable: bytes[29] & 1 != 0,
        }
    }

    /// Guest time in nanoseconds at this reading of the TSC.
    pub fn nanoseconds_at(&self, tsc: u64) -> u64 {
        let delta = tsc.wrapping_sub(self.tsc_timestamp);
        // A TSC slightly before the snapshot (another core took it) counts as equal.
        let delta = if delta > 1 << 63 {
            0
        } else {
            u128::from(delta)
        };
        let shifted = match self.tsc_shift {
            shift @ 0.. => delta << (shift as u32 & 63),
            shift => delta >> (u32::from(shift.unsigned_abs()) & 63),
        };
        let scaled = (shifted.wrapping_mul(u128::from(self.tsc_to_system_mul)) >> 32) as u64;
        self.system_time.wrapping_add(scaled)
    }
}

/// Turns TSC cycles into nanoseconds, for hosts without kvmclock.
#[derive(Clone, Copy, Debug)]
pub struct TscScale {
    /// Nanoseconds in 2^24 cycles.
    pub mul: u32,
}

impl TscScale {
    /// The scale of a TSC that counted `cycles` in `nanoseconds`.
    pub fn from_rate(cycles: u64, nanoseconds: u64) -> Self {
        let mul = (u128::from(nanoseconds) << 24) / u128::from(cycles.max(1));
        Self {
            mul: u32::try_from(mul).unwrap_or(u32::MAX),
        }
    }

    /// Nanoseconds in this many cycles.
    pub fn nanoseconds(self, cycles: u64) -> u64 {
        ((u128::from(cycles) * u128::from(self.mul)) >> 24) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(mul: u32, shift: i8) -> PvclockTime {
        let mut bytes = [0; 32];
        bytes[8..16].copy_from_slice(&1000u64.to_le_bytes());
        bytes[16..24].copy_from_slice(&5_000u64.to_le_bytes());
        bytes[24..28].copy_from_slice(&mul.to_le_bytes());
        bytes[28] = shift as u8;
        PvclockTime::from_bytes(&bytes)
    }

    #[test]
    fn scales_by_multiplier_and_shift() {
        // A 1 GHz TSC: shift 1 and one half as the multiplier.
        assert_eq!(
            time(0x8000_0000, 1).nanoseconds_at(1000 + 12_345),
            5_000 + 12_345
        );
        // A 4 GHz TSC.
        assert_eq!(
            time(0x8000_0000, -1).nanoseconds_at(1000 + 4_000),
            5_000 + 1_000
        );
    }

    #[test]
    fn the_promise_is_the_lowest_flag() {
        let mut bytes = [0; 32];
        bytes[29] = 0xfe;
        assert!(!PvclockTime::from_bytes(&bytes).stable);
        bytes[29] = 0x01;
        assert!(PvclockTime::from_bytes(&bytes).stable);
    }

    #[test]
    fn a_tsc_before_the_snapshot_counts_as_equal() {
        assert_eq!(time(0x8000_0000, 1).nanoseconds_at(990), 5_000);
    }

    #[test]
    fn tsc_scale_is_exact_enough() {
        let scale = TscScale::from_rate(25_000_000, 10_000_000);
        let hour = 3600 * 2_500_000_000u64;
        let error = scale.nanoseconds(hour).abs_diff(3600 * 1_000_000_000);
        assert!(error < 1_000_000, "{error} ns in an hour");
    }
}
