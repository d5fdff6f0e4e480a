//! Whether what goes over a link is packed. That depends on how fast the link is: on a fast one, packing takes longer than it saves.

use std::time::{Duration, Instant};

use tracing::info;

use crate::wire::{Frame, Packer};

/// Links that carry less, in bytes per second, are slow: 1.6 Gbit/s. A processor packs two or three times as much, and has other work.
const SLOW: f64 = 200e6;

/// Sent bytes that may just fill the kernel's buffers say nothing of the link.
const BUFFERED: u64 = 8 << 20;

/// So many bytes behind them, sent without a rest, tell how fast it is.
const MEASURED: u64 = 8 << 20;

/// After so many frames in a row that could not be made smaller, only one of [`PROBE`] is tried until one can.
const IN_VAIN: u32 = 8;
const PROBE: u32 = 16;

/// Packs a connection's frames once it was found slow.
#[derive(Default)]
pub(super) struct Packing {
    allowed: bool,
    /// None: not known yet.
    rate: Option<f64>,
    stretch: Stretch,
    packer: Option<Packer>,
    in_vain: u32,
}

/// Bytes that were sent while more was waiting all the time.
#[derive(Default, Clone, Copy)]
struct Stretch {
    bytes: u64,
    /// When there were [`BUFFERED`] of them.
    filled: Option<(Instant, u64)>,
}

impl Packing {
    /// The peer can unpack, and it is wanted.
    pub(super) fn allow(&mut self) {
        self.allowed = true;
    }

    /// The frame as it goes over the link.
    pub(super) fn pack(&mut self, frame: Frame) -> Frame {
        let slow = self.rate.is_some_and(|rate| rate < SLOW);
        if !(self.allowed && slow && Packer::takes(&frame)) {
            return frame;
        }
        self.in_vain += 1;
        if self.in_vain > IN_VAIN && !self.in_vain.is_multiple_of(PROBE) {
            return frame;
        }
        let packer = self.packer.get_or_insert_with(Packer::new);
        match packer.pack(&frame) {
            Some(packed) => {
                self.in_vain = 0;
                packed
            }
            None => frame,
        }
    }

    /// The kernel took so many bytes. `rests`: nothing waits behind them.
    pub(super) fn sent(&mut self, bytes: usize, rests: bool, now: Instant) {
        if self.rate.is_some() {
            return;
        }
        if rests {
            self.stretch = Stretch::default();
            return;
        }
        let stretch = &mut self.stretch;
        stretch.bytes += bytes as u64;
        match stretch.filled {
            None if stretch.bytes >= BUFFERED => stretch.filled = Some((now, stretch.bytes)),
            Some((since, before)) if stretch.bytes - before >= MEASURED => {
                let time = now.duration_since(since).max(Duration::from_micros(1));
                let rate = (stretch.bytes - before) as f64 / time.as_secs_f64();
                self.rate = Some(rate);
                if self.allowed && rate < SLOW {
                    let mb_per_s = (rate / 1e6).round();
                    info!(mb_per_s, "the link is slow: what goes over it is packed");
                }
            }
            _ => {}
        }
    }

    /// Gives back the memory of what was packed.
    pub(super) fn give_back_memory(&mut self) {
        self.packer = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Kind;

    fn frame() -> Frame {
        Frame::new(Kind::Pages, 1, 1, &[7; 9000])
    }

    fn noise(seed: u64) -> Frame {
        let mut random = fastrand::Rng::with_seed(seed);
        let bytes: Vec<u8> = std::iter::repeat_with(|| random.u8(..))
            .take(9000)
            .collect();
        Frame::new(Kind::Pages, 1, 1, &bytes)
    }

    /// A link that takes a MiB in so many microseconds.
    fn measured(us: u64, allowed: bool) -> Packing {
        let mut packing = Packing::default();
        if allowed {
            packing.allow();
        }
        let mut now = Instant::now();
        for _ in 0..17 {
            packing.sent(1 << 20, false, now);
            now += Duration::from_micros(us);
        }
        packing
    }

    fn packs(packing: &mut Packing) -> bool {
        packing.pack(frame()).len() < frame().len()
    }

    #[test]
    fn frames_are_packed_for_slow_links_only_and_only_if_that_is_wanted() {
        assert!(packs(&mut measured(9_000, true)), "a gigabit");
        assert!(!packs(&mut measured(900, true)), "ten of them");
        assert!(!packs(&mut measured(9_000, false)));
    }

    #[test]
    fn what_fills_buffers_or_leaves_the_link_idle_tells_nothing() {
        let mut packing = measured(9_000, true);
        packing.rate = None;
        packing.stretch = Stretch::default();
        for at in 0..100 {
            packing.sent(1 << 20, at % 10 == 9, Instant::now());
        }
        assert!(packing.rate.is_none());
        assert!(!packs(&mut packing));
    }

    #[test]
    fn what_does_not_get_smaller_is_hardly_tried() {
        let mut packing = measured(9_000, true);
        for seed in 0..100 {
            let frame = noise(seed);
            assert_eq!(packing.pack(frame).len(), noise(seed).len());
        }
        let tried = (0..PROBE).position(|_| packs(&mut packing));
        assert!(tried.is_some_and(|at| at > 0), "{tried:?}");
        assert!(packs(&mut packing), "and from then on all are");
    }
}
