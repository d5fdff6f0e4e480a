use std::sync::atomic::{AtomicUsize, Ordering};

use super::super::testing::{self, Driver, reg};
use super::super::{BackendState, Source, TransportState};
use super::*;

/// A device that gives every chain back at once.
#[derive(Default)]
struct Mirror {
    resets: Arc<AtomicUsize>,
}

const OWN_FEATURE: u64 = 1 << 3;
const ALL: u64 = feature::TRANSPORT | OWN_FEATURE;

impl Backend for Mirror {
    fn name(&self) -> &str {
        "mirror0"
    }
    fn identity(&self) -> DeviceIdentity {
        DeviceIdentity::Net { mac: [0; 6] }
    }
    fn device_id(&self) -> u32 {
        42
    }
    fn queue_max_sizes(&self) -> &'static [u16] {
        &[16, 16]
    }
    fn features(&self) -> u64 {
        OWN_FEATURE
    }
    fn config(&self) -> Vec<u8> {
        vec![1, 2, 3, 4, 5, 6]
    }
    fn sources(&self) -> Vec<Source> {
        Vec::new()
    }
    fn attach(&mut self, _queue_events: &[EventFd]) -> io::Result<()> {
        Ok(())
    }
    fn notified(&mut self, transport: &mut Transport, queue: usize) -> Result<(), Broken> {
        while let Some(chain) = transport.pop(queue)? {
            transport.complete(queue, chain.head, chain.writable.len())?;
        }
        transport.interrupt_used(queue)
    }
    fn source_ready(&mut self, _transport: &mut Transport) -> Result<(), Broken> {
        Ok(())
    }
    fn reset(&mut self) {
        self.resets.fetch_add(1, Ordering::Relaxed);
    }
    fn save(&self) -> BackendState {
        super::super::block::empty_state()
    }
    fn restore(&mut self, _: &TransportState, _: BackendState) -> Result<(), RestoreError> {
        Ok(())
    }
    fn resume(&mut self, _transport: &mut Transport) -> Result<(), Broken> {
        Ok(())
    }
}

fn down() -> Driver<Mirror> {
    Driver::new(testing::memory(), Mirror::default())
}

fn up(features: u64) -> Driver<Mirror> {
    Driver::up(testing::memory(), Mirror::default(), features, 16)
}

#[test]
fn registers_name_the_device() {
    let mut driver = down();
    assert_eq!(driver.get(0x00).to_le_bytes(), *b"virt");
    assert_eq!(driver.get(0x04), 2);
    assert_eq!(driver.get(0x08), 42);
    driver.set(reg::DEVICE_FEATURES_SEL, 1);
    assert_eq!(driver.get(reg::DEVICE_FEATURES), (ALL >> 32) as u32);
    driver.set(reg::DEVICE_FEATURES_SEL, 0);
    assert_eq!(driver.get(reg::DEVICE_FEATURES), ALL as u32);
    driver.set(reg::DEVICE_FEATURES_SEL, 2);
    assert_eq!(driver.get(reg::DEVICE_FEATURES), 0);
    assert_eq!(driver.get(reg::QUEUE_NUM_MAX), 16);
    driver.set(reg::QUEUE_SEL, 2);
    assert_eq!(driver.get(reg::QUEUE_NUM_MAX), 0);
    // No shared memory.
    assert_eq!(driver.get(0xb0), u32::MAX);
}

#[test]
fn configuration_is_read_at_any_width() {
    let driver = down();
    assert_eq!(driver.config(0, 8), [1, 2, 3, 4, 5, 6, 0, 0]);
    assert_eq!(driver.config(5, 1), [6]);
    assert_eq!(driver.config(5, 2), [6, 0]);
    assert_eq!(driver.config(0xeff, 1), [0]);
    // Registers have 32 bits; other widths read as nothing.
    let mut byte = [0xff];
    driver.device().read(0, &mut byte);
    assert_eq!(byte, [0]);
}

#[test]
fn features_must_be_offered_and_modern() {
    for (word, features) in [(0, ALL as u32), (1, 3)] {
        let mut driver = down();
        driver.set(reg::STATUS, 3);
        driver.set(reg::DRIVER_FEATURES_SEL, word);
        driver.set(reg::DRIVER_FEATURES, features);
        driver.set(reg::STATUS, 11);
        assert_eq!(driver.get(reg::STATUS), 3, "word {word}");
        // And without them the driver can't come up.
        driver.set(reg::STATUS, 7);
        assert_eq!(driver.get(reg::STATUS), 3);
    }
    // Once accepted they are fixed.
    let mut driver = up(ALL);
    driver.set(reg::DRIVER_FEATURES_SEL, 0);
    driver.set(reg::DRIVER_FEATURES, 0);
    assert!(driver.device().transport.has(ALL));
}

#[test]
fn queues_outside_memory_break_the_device() {
    for (register, address) in [
        (reg::QUEUE_DESC, testing::MEMORY_BYTES as u64 - 16),
        (reg::QUEUE_DRIVER, u64::MAX - 1),
        (reg::QUEUE_DEVICE, 0x2001),
    ] {
        let mut driver = up(ALL);
        driver.set(reg::STATUS, 0);
        driver.set(reg::STATUS, 3);
        driver.set(reg::DRIVER_FEATURES_SEL, 1);
        driver.set(reg::DRIVER_FEATURES, 1);
        driver.set(reg::STATUS, 11);
        driver.set(reg::QUEUE_SEL, 0);
        driver.set(reg::QUEUE_DESC, 0x1000);
        driver.set(reg::QUEUE_DRIVER, 0x2000);
        driver.set(reg::QUEUE_DEVICE, 0x3000);
        driver.set(register, address as u32);
        driver.set(register + 4, (address >> 32) as u32);
        driver.set(reg::QUEUE_READY, 1);
        assert_eq!(driver.get(reg::QUEUE_READY), 0);
        assert_eq!(driver.get(reg::STATUS), 11 | 64);
    }
    for size in [0, 3, 32, 65536, u32::MAX] {
        let mut driver = down();
        driver.set(reg::STATUS, 3);
        driver.set(reg::DRIVER_FEATURES_SEL, 1);
        driver.set(reg::DRIVER_FEATURES, 1);
        driver.set(reg::STATUS, 11);
        driver.set(reg::QUEUE_NUM, size);
        driver.set(reg::QUEUE_DRIVER, 0x1000);
        driver.set(reg::QUEUE_READY, 1);
        assert_eq!(driver.get(reg::STATUS), 11 | 64, "size {size}");
    }
}

#[test]
fn chains_come_back_and_raise_the_interrupt() {
    let mut driver = up(feature::VERSION_1);
    let head = driver.offer(1, &[testing::readable(testing::DATA, 8)]);
    driver.kick(1);
    assert_eq!(driver.wait(1, 1), [(head.into(), 0)]);
    assert!(driver.interrupted());
    assert_eq!(driver.get(reg::INTERRUPT_STATUS), 1);
    driver.set(reg::INTERRUPT_ACK, 1);
    assert_eq!(driver.get(reg::INTERRUPT_STATUS), 0);
    // A notification by register write does the same; one without work does nothing.
    driver.offer(1, &[testing::writable(testing::DATA, 8)]);
    driver.set(reg::QUEUE_NOTIFY, 1);
    assert_eq!(driver.returned(1), [(1, 8)]);
    assert!(driver.interrupted());
    driver.set(reg::QUEUE_NOTIFY, 1);
    driver.set(reg::QUEUE_NOTIFY, 2);
    driver.set(reg::QUEUE_NOTIFY, u32::MAX);
    assert!(!driver.interrupted());
}

#[test]
fn interrupts_can_be_suppressed() {
    // By flag.
    let mut driver = up(feature::VERSION_1);
    driver.fill(testing::avail(0), &1u16.to_le_bytes());
    driver.offer(0, &[testing::readable(testing::DATA, 8)]);
    driver.set(reg::QUEUE_NOTIFY, 0);
    assert_eq!(driver.returned(0).len(), 1);
    assert!(!driver.interrupted());
    // By event index.
    let mut driver = up(ALL);
    driver.set_used_event(0, 1);
    driver.offer(0, &[testing::readable(testing::DATA, 8)]);
    driver.set(reg::QUEUE_NOTIFY, 0);
    assert!(!driver.interrupted());
    driver.offer(0, &[testing::readable(testing::DATA, 8)]);
    driver.set(reg::QUEUE_NOTIFY, 0);
    assert!(driver.interrupted());
}

#[test]
fn a_bad_ring_stops_the_device_until_reset() {
    let mut driver = up(ALL);
    driver.fill(testing::avail(0) + 2, &100u16.to_le_bytes());
    driver.kick(0);
    driver.turn();
    assert_eq!(driver.get(reg::STATUS), 15 | 64);
    assert!(driver.interrupted());
    assert_eq!(driver.get(reg::INTERRUPT_STATUS), 2);
    // Other queues stand still too.
    driver.offer(1, &[testing::readable(testing::DATA, 8)]);
    driver.kick(1);
    driver.turn();
    assert!(driver.returned(1).is_empty());
    driver.set(reg::STATUS, 0);
    assert_eq!(driver.get(reg::STATUS), 0);
    assert_eq!(driver.device().backend().resets.load(Ordering::Relaxed), 1);
    driver.start(ALL, 16);
    driver.offer(0, &[testing::readable(testing::DATA, 8)]);
    driver.kick(0);
    driver.wait(0, 1);
}

#[test]
fn live_queues_are_not_set_up_again() {
    let mut driver = up(ALL);
    let before = driver.save();
    driver.set(reg::QUEUE_SEL, 1);
    driver.set(reg::QUEUE_DESC, 0x7000);
    driver.set(reg::QUEUE_NUM, 2);
    driver.set(reg::QUEUE_READY, 0);
    assert_eq!(driver.save(), before);
}

#[test]
fn restored_device_moves_only_when_resumed() {
    let mut old = up(ALL);
    old.offer(0, &[testing::readable(testing::DATA, 8)]);
    old.kick(0);
    old.wait(0, 1);
    // The interrupt is pending and a notification is on its way when the state is captured.
    old.offer(0, &[testing::readable(testing::DATA, 8)]);
    let state = old.save();

    let mut new = Driver::new(testing::copy(&old.mem), Mirror::default());
    new.take_over(&old);
    new.device().restore(state.clone()).unwrap();
    assert_eq!(new.save(), state);
    new.kick(0);
    new.turn();
    assert!(new.returned(0).is_empty());
    assert!(!new.interrupted());
    new.device().resume();
    assert_eq!(new.returned(0).len(), 1);
    assert!(new.interrupted());
    assert_eq!(new.get(reg::INTERRUPT_STATUS), 1);
}

#[test]
fn impossible_states_are_refused() {
    type Change = fn(&mut TransportState);
    let changes: [(Change, RestoreError); 6] = [
        (|s| s.driver_features |= 1, RestoreError::Features(1)),
        (|s| s.status = 7, RestoreError::Status(7)),
        (|s| s.status = 0x10f, RestoreError::Status(0x10f)),
        (|s| s.queues.truncate(1), RestoreError::QueueCount(1)),
        (|s| s.queues[1].size = 32, RestoreError::Queue(1)),
        (|s| s.queues[0].device = 1 << 40, RestoreError::Queue(0)),
    ];
    let driver = up(ALL);
    let good = driver.save();
    for (change, error) in changes {
        let mut state = good.clone();
        change(&mut state.transport);
        assert_eq!(driver.device().restore(state), Err(error));
        assert_eq!(driver.save(), good);
    }
}

/// A guest may be captured at any moment, also while its driver has asked for too much.
#[test]
fn features_that_were_not_settled_yet_are_no_reason_to_refuse_a_state() {
    let mut old = down();
    old.set(reg::STATUS, 3);
    old.set(reg::DRIVER_FEATURES_SEL, 0);
    old.set(reg::DRIVER_FEATURES, 1 << 31 | 1);
    let state = old.save();
    let mut new = down();
    new.device().restore(state.clone()).unwrap();
    assert_eq!(new.save(), state);
    new.set(reg::STATUS, 11);
    assert_eq!(new.get(reg::STATUS), 3, "refused as ever");
}
