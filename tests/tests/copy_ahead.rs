//! Pages that are copied before the guest is paused, and written to meanwhile (I3, I5).

use std::time::Duration;

use evertwin::config::{FastPath, KernelSource, VmConfig};
use evertwin::machine::{ConsoleOutput, Machine};
use evertwin::twin::Twin;
use evertwin_replicator::machine::{Capture, Machine as _, PAGE_SIZE};
use evertwin_tests::lab::SLOW;
use evertwin_tests::seed;

const MEMORY: u64 = 128 << 20;
/// A guest that is hardly ever done with its round when the next one is due.
const WORKLOAD: &str = "workload=dirty pages=1500 period_us=3000 pattern=random";

fn busy_twin(switches: FastPath) -> Twin {
    let config = VmConfig {
        cmdline: WORKLOAD.into(),
        ..VmConfig::alone("busy", KernelSource::Pico, MEMORY)
    };
    let kvm = evertwin::kvm::open().unwrap();
    let output = ConsoleOutput::Writer(Box::new(std::io::sink()));
    let machine = Machine::new(&kvm, &config, output).unwrap();
    let mut twin = Twin::new(machine).unwrap().with_fast_path(&switches);
    twin.open_output();
    twin.boot().unwrap();
    twin.start_tracking();
    twin.tracking_started().unwrap();
    twin
}

/// What a standby has of the guest's memory.
struct Standby(Vec<u8>);

impl Standby {
    fn store(&mut self, capture: &Capture) {
        let mut sorted = capture.pages.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted.len(), capture.pages.len(), "a page is in it twice");
        assert_eq!(capture.bytes.len(), capture.pages.len() * PAGE_SIZE);
        for (page, bytes) in capture.pages.iter().zip(capture.bytes.chunks(PAGE_SIZE)) {
            let at = *page as usize * PAGE_SIZE;
            self.0[at..at + PAGE_SIZE].copy_from_slice(bytes);
        }
    }
}

/// Captures epoch after epoch of a busy guest, and compares all of its memory when it stands still. Returns how
/// many pages were copied ahead, and how many in all.
fn capture_and_compare(switches: FastPath) -> (usize, usize) {
    let mut random = seed::generator();
    let mut twin = busy_twin(switches);
    let all: Vec<u64> = (0..MEMORY / PAGE_SIZE as u64).collect();
    let mut standby = Standby(Vec::new());
    twin.read_pages(&all, &mut standby.0);
    let mut capture = Capture::default();
    let (mut ahead, mut pages) = (0, 0);
    let epochs = 200 / u64::from(SLOW);
    for epoch in 1..=epochs {
        std::thread::sleep(Duration::from_micros(random.u64(0..6000)));
        twin.capture(epoch, &mut capture).unwrap();
        standby.store(&capture);
        ahead += twin.last_pause().pages_ahead;
        pages += capture.pages.len();
    }
    twin.capture_last(epochs + 1, &mut capture).unwrap();
    standby.store(&capture);
    let mut memory = Vec::new();
    twin.read_pages(&all, &mut memory);
    let differ = memory.chunks(PAGE_SIZE).zip(standby.0.chunks(PAGE_SIZE));
    let differ = differ.filter(|(theirs, ours)| theirs != ours).count();
    assert_eq!(differ, 0, "pages that the epochs left behind, of {pages}");
    (ahead, pages)
}

#[test]
fn epochs_carry_what_the_guest_wrote_while_it_was_copied() {
    // The guest runs in this process.
    let _failpoints = fail::FailScenario::setup();
    let (ahead, pages) = capture_and_compare(FastPath::default());
    assert!(
        ahead > pages / 4,
        "only {ahead} of {pages} were copied ahead"
    );
}

#[test]
fn no_page_is_copied_ahead_where_that_is_turned_off() {
    let (ahead, pages) = capture_and_compare(FastPath {
        copy_ahead: false,
        ..FastPath::default()
    });
    assert_eq!(ahead, 0);
    assert!(pages > 1000, "the guest wrote to {pages} pages only");
}
