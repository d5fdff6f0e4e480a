//! A guest that gets only a part of its time does all that any guest does.

use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use evertwin::config::{AfterEnd, KernelSource, VmConfig};
use evertwin::machine::{ConsoleOutput, Machine};
use evertwin::twin::Twin;
use evertwin_replicator::machine::{Capture, Machine as _};
use evertwin_tests::kernel::{elf, reset_until};
use evertwin_tests::lab::{SLOW, STEP};
use evertwin_tests::{ring, seed};

/// What a guest has written to its serial port.
#[derive(Clone, Default)]
struct Console(Arc<Mutex<Vec<u8>>>);

impl Console {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }

    /// Waits until the guest has written so many bytes.
    fn wait_for(&self, bytes: usize) {
        let until = Instant::now() + STEP;
        while self.text().len() < bytes {
            assert!(Instant::now() < until, "{:?}", self.text());
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A twin that runs this kernel with an open gate.
fn booted(directory: &Path, kernel: &[u8], vcpus: u8) -> (Twin, Console) {
    let path = directory.join("kernel");
    std::fs::write(&path, kernel).unwrap();
    let config = VmConfig {
        vcpus,
        on_reboot: AfterEnd::Restart,
        ..VmConfig::alone("slow", KernelSource::File(path), 16 << 20)
    };
    let console = Console::default();
    let output = ConsoleOutput::Writer(Box::new(console.clone()));
    let kvm = evertwin::kvm::open().unwrap();
    let mut twin = Twin::new(Machine::new(&kvm, &config, output).unwrap()).unwrap();
    twin.open_output();
    twin.boot().unwrap();
    (twin, console)
}

#[test]
fn slowed_processors_wake_each_other_and_are_captured() {
    let directory = tempfile::tempdir().unwrap();
    let (mut twin, console) = booted(directory.path(), &ring::kernel(), ring::VCPUS);
    twin.start_tracking();
    twin.tracking_started().unwrap();
    let mut random = seed::generator();
    let mut capture = Capture::default();
    for epoch in 1..=300 / u64::from(SLOW) {
        let percent = random.choice([0, 20, 50, 90, 99]).unwrap();
        twin.slow_guest(percent);
        std::thread::sleep(Duration::from_micros(random.u64(0..3000)));
        twin.capture(epoch, &mut capture).unwrap();
    }
    // It goes on, slow as it is, and is not too slow to be stopped.
    twin.slow_guest(99);
    let before = console.text().len();
    console.wait_for(before + 10);
    twin.fence();
    let text = console.text();
    let alphabet = ('a'..='z').cycle().take(text.len());
    assert_eq!(
        text,
        String::from_iter(alphabet),
        "a turn was lost or wrong"
    );
}

#[test]
fn a_slowed_guest_that_reboots_does_so_and_ends() {
    let directory = tempfile::tempdir().unwrap();
    for vcpus in [1, 4] {
        let (mut twin, console) = booted(directory.path(), &elf(&reset_until(5)), vcpus);
        twin.slow_guest(99);
        for boots in 1..=5 {
            console.wait_for(boots);
            let until = Instant::now() + STEP;
            while twin.machine().exit().get().is_none() {
                assert!(Instant::now() < until, "boot {boots} does not end");
                std::thread::sleep(Duration::from_millis(1));
            }
            assert_eq!(twin.after_guest_exit().unwrap(), boots < 5);
        }
        assert_eq!(console.text(), "12345");
    }
}
