//! The entropy device (virtio 1.2, 5.4): random bytes of the host's kernel.

use std::io;

use rustix::rand::{GetRandomFlags, getrandom};
use vmm_sys_util::eventfd::EventFd;

use super::{
    Backend, BackendState, Broken, DeviceIdentity, RestoreError, Served, Source, Transport,
    TransportState,
};

/// Device type of an entropy device (virtio 1.2, 5.4.1).
const DEVICE_ID: u32 = 4;
/// The only queue (5.4.2).
const QUEUE: usize = 0;
const QUEUE_SIZES: &[u16] = &[64];

/// Most bytes given for one request. A guest that wants more asks again; it must expect
/// fewer than it asked for (5.4.6.1).
const MAX_BYTES: usize = 4096;
/// Requests served in one go before other devices get their turn.
const BUDGET: usize = 64;

/// An entropy device. It has no state: what the guest was given is in its memory, and what
/// it still waits for is in the queue.
#[derive(Debug, Default)]
pub struct Rng {
    given: u64,
}

impl Rng {
    /// An entropy device.
    pub fn new() -> Self {
        Self::default()
    }

    /// Random bytes given so far.
    pub fn given(&self) -> u64 {
        self.given
    }

    fn serve(&mut self, transport: &mut Transport) -> Result<(), Broken> {
        transport.serve(QUEUE, BUDGET, |transport, chain| {
            let mut bytes = [0; MAX_BYTES];
            let wanted = (chain.writable.len() as usize).min(MAX_BYTES);
            let length = fill(&mut bytes[..wanted]);
            if !chain
                .writable
                .write(transport.memory(), 0, &bytes[..length])
            {
                return Err(Broken::Memory);
            }
            self.given += length as u64;
            Ok(Served::Done(length as u32))
        })
    }
}

/// Fills the front of a buffer with random bytes; how many these are.
fn fill(bytes: &mut [u8]) -> usize {
    let mut length = 0;
    while length < bytes.len() {
        match getrandom(&mut bytes[length..], GetRandomFlags::empty()) {
            Ok(count) if count > 0 => length += count,
            Err(rustix::io::Errno::INTR) => {}
            // Not on any kernel that has KVM; a guest that gets nothing has other sources.
            Ok(_) | Err(_) => break,
        }
    }
    length
}

impl Backend for Rng {
    fn name(&self) -> &str {
        "rng"
    }

    fn identity(&self) -> DeviceIdentity {
        DeviceIdentity::Rng
    }

    fn device_id(&self) -> u32 {
        DEVICE_ID
    }

    fn queue_max_sizes(&self) -> &'static [u16] {
        QUEUE_SIZES
    }

    /// None are defined (5.4.3).
    fn features(&self) -> u64 {
        0
    }

    /// None is defined (5.4.4).
    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    fn sources(&self) -> Vec<Source> {
        Vec::new()
    }

    fn attach(&mut self, _queue_events: &[EventFd]) -> io::Result<()> {
        Ok(())
    }

    fn notified(&mut self, transport: &mut Transport, _queue: usize) -> Result<(), Broken> {
        self.serve(transport)
    }

    fn source_ready(&mut self, _transport: &mut Transport) -> Result<(), Broken> {
        Ok(())
    }

    fn reset(&mut self) {}

    fn save(&self) -> BackendState {
        // A count of this process only.
        let Self { given: _ } = self;
        BackendState::Rng
    }

    fn restore(
        &mut self,
        _transport: &TransportState,
        state: BackendState,
    ) -> Result<(), RestoreError> {
        match state {
            BackendState::Rng => Ok(()),
            _ => Err(RestoreError::Kind),
        }
    }

    fn resume(&mut self, _transport: &mut Transport) -> Result<(), Broken> {
        // Requests that wait are in the queue, which is kicked.
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use vm_memory::bitmap::Bitmap;
    use vm_memory::{GuestMemoryBackend, MmapRegion};

    use super::super::Device;
    use super::super::feature::{EVENT_IDX, TRANSPORT, VERSION_1};
    use super::super::testing::{self, DATA, Driver, readable, reg, writable};
    use super::*;

    fn driver(features: u64) -> Driver<Rng> {
        Driver::up(testing::memory(), Rng::new(), features, 64)
    }

    #[test]
    fn buffers_are_filled_with_random_bytes() {
        for features in [TRANSPORT, VERSION_1, VERSION_1 | EVENT_IDX] {
            let mut driver = driver(features);
            let mut seen = std::collections::BTreeSet::new();
            for _ in 0..100 {
                let pieces = [writable(DATA, 5), writable(DATA + 100, 27)];
                driver.offer(QUEUE, &pieces);
                driver.kick(QUEUE);
                assert_eq!(driver.wait(QUEUE, 1)[0].1, 32);
                let bytes = [driver.bytes(DATA, 5), driver.bytes(DATA + 100, 27)];
                assert!(seen.insert(bytes.concat()), "the same bytes twice");
                driver.set_used_event(QUEUE, seen.len() as u16);
                assert!(driver.interrupted());
            }
            assert_eq!(driver.device().backend().given(), 3200);
            // Nothing beside the buffers.
            assert_eq!(driver.bytes(DATA + 5, 95), [0; 95]);
            assert_eq!(driver.bytes(DATA + 127, 100), [0; 100]);
        }
    }

    #[test]
    fn the_host_is_not_emptied_by_one_request() {
        let mut driver = driver(TRANSPORT);
        driver.offer(QUEUE, &[writable(DATA, 1 << 20)]);
        // Nothing to write to, and a descriptor that is only there to be read.
        driver.offer(QUEUE, &[readable(DATA, 16)]);
        driver.offer(QUEUE, &[readable(DATA, 16), writable(DATA, 16)]);
        driver.kick(QUEUE);
        let returned = driver.wait(QUEUE, 3);
        assert_eq!(returned, [(0, MAX_BYTES as u32), (1, 0), (2, 16)]);
        assert_eq!(driver.bytes(DATA + MAX_BYTES as u64, 100), [0; 100]);
        assert_eq!(driver.get(reg::STATUS), 15);
    }

    #[test]
    fn what_it_writes_is_dirty() {
        let mut driver = driver(TRANSPORT);
        driver.offer(QUEUE, &[writable(DATA + 4000, 200)]);
        let mem = Arc::clone(&driver.mem);
        let mapping: &MmapRegion<crate::DirtyMarks> = mem.iter().next().unwrap();
        mapping.bitmap().reset();
        driver.kick(QUEUE);
        driver.wait(QUEUE, 1);
        let dirty = |address: u64| mapping.bitmap().dirty_at(address as usize);
        assert!(dirty(DATA + 4000) && dirty(DATA + 4199));
        assert!(dirty(testing::used(QUEUE)) && !dirty(testing::avail(QUEUE)));
    }

    #[test]
    fn a_request_that_waits_is_served_on_the_twin() {
        let mut old = driver(TRANSPORT);
        old.offer(QUEUE, &[writable(DATA, 64)]);
        let mut new = Driver::new(testing::copy(&old.mem), Rng::new());
        new.take_over(&old);
        new.device().restore(old.save()).unwrap();
        new.turn();
        assert!(new.returned(QUEUE).is_empty());
        new.device().resume();
        assert_eq!(new.wait(QUEUE, 1), [(0, 64)]);
        assert_ne!(new.bytes(DATA, 64), [0; 64]);

        let mut foreign = old.save();
        foreign.backend = super::super::block::empty_state();
        let refused = new.device().restore(foreign);
        assert_eq!(refused, Err(RestoreError::Kind));
    }

    #[test]
    fn the_registers_say_what_it_is() {
        let driver = driver(TRANSPORT);
        assert_eq!(driver.get(0x08), 4);
        assert_eq!(driver.device().identity().to_string(), "rng");
        assert_eq!(driver.config(0, 4), [0; 4]);
    }
}
