use super::*;
use crate::config::{KernelSource, VmConfig};
use crate::machine::ConsoleOutput;

const PAGE: usize = PAGE_SIZE as usize;

/// A machine that runs nothing; what is written to its memory is found as what devices write is.
fn machine() -> Machine {
    let config = VmConfig::alone("still", KernelSource::Pico, 16 << 20);
    let kvm = crate::kvm::open().unwrap();
    Machine::new(
        &kvm,
        &config,
        ConsoleOutput::Writer(Box::new(std::io::sink())),
    )
    .unwrap()
}

fn tracked() -> (Machine, DirtyPages) {
    let machine = machine();
    let mut dirty = DirtyPages::new(&machine).unwrap();
    dirty.start();
    dirty.started(&machine).unwrap();
    dirty.clear(&machine);
    (machine, dirty)
}

fn write(machine: &Machine, pages: impl IntoIterator<Item = u64>, value: u8) {
    for page in pages {
        let at = GuestAddress(page * PAGE_SIZE);
        machine.memory().write_slice(&[value; PAGE], at).unwrap();
    }
}

/// Number and first byte of each page, in order.
fn contents(epoch: &Capture) -> Vec<(u64, u8)> {
    assert_eq!(epoch.bytes.len(), epoch.pages.len() * PAGE);
    let bytes = epoch.bytes.chunks(PAGE).map(|page| page[0]);
    let mut contents: Vec<_> = epoch.pages.iter().copied().zip(bytes).collect();
    contents.sort_unstable();
    contents
}

fn pause(machine: &Machine, dirty: &mut DirtyPages, epoch: &mut Capture) {
    dirty.harvest(machine).unwrap();
    dirty.copy_rest(machine, epoch);
}

#[test]
fn a_page_that_is_written_to_again_is_in_the_epoch_once_as_it_is_in_the_end() {
    let (machine, mut dirty) = tracked();
    let mut epoch = Capture::default();
    write(&machine, 10..100, 1);
    dirty.copy_ahead(&machine, &mut epoch).unwrap();
    assert_eq!(epoch.pages.len(), 90);
    write(&machine, [5, 20, 99, 200], 2);
    pause(&machine, &mut dirty, &mut epoch);
    let value = |page| {
        if [5, 20, 99, 200].contains(&page) {
            2
        } else {
            1
        }
    };
    let pages = std::iter::once(5).chain(10..100).chain([200]);
    let expected: Vec<_> = pages.map(|page| (page, value(page))).collect();
    assert_eq!(contents(&epoch), expected);
    // Nothing is left for the next one.
    dirty.copy_ahead(&machine, &mut epoch).unwrap();
    pause(&machine, &mut dirty, &mut epoch);
    assert_eq!(contents(&epoch), []);
}

#[test]
fn few_pages_are_left_to_the_pause() {
    let (machine, mut dirty) = tracked();
    let mut epoch = Capture::default();
    write(&machine, 0..FEWEST_AHEAD as u64 - 1, 1);
    dirty.copy_ahead(&machine, &mut epoch).unwrap();
    assert!(epoch.pages.is_empty());
    pause(&machine, &mut dirty, &mut epoch);
    assert_eq!(epoch.pages.len(), FEWEST_AHEAD - 1);
}

#[test]
fn an_epoch_that_is_given_up_loses_no_page() {
    let (machine, mut dirty) = tracked();
    let mut epoch = Capture::default();
    write(&machine, 0..100, 1);
    dirty.copy_ahead(&machine, &mut epoch).unwrap();
    write(&machine, 50..150, 2);
    dirty.give_back(&epoch);
    let mut next = Capture::default();
    dirty.copy_ahead(&machine, &mut next).unwrap();
    pause(&machine, &mut dirty, &mut next);
    let value = |page| if page < 50 { 1 } else { 2 };
    let expected: Vec<_> = (0..150).map(|page| (page, value(page))).collect();
    assert_eq!(contents(&next), expected);
}

#[test]
fn a_page_that_is_written_to_while_it_is_copied_is_hot_for_some_epochs() {
    let (machine, mut dirty) = tracked();
    let mut epoch = Capture::default();
    write(&machine, 0..100, 1);
    dirty.copy_ahead(&machine, &mut epoch).unwrap();
    write(&machine, [7, 200], 2);
    pause(&machine, &mut dirty, &mut epoch);
    let mut log = [u64::MAX, u64::MAX];
    dirty.hot.remove_from(0, &mut log);
    assert_eq!(log, [!(1 << 7), u64::MAX], "of these, 7 stays in the log");
    assert_eq!(dirty.hot.len(), 1);
    for _ in 1..HOT_EPOCHS {
        assert!(!dirty.hot.is_empty());
        dirty.copy_ahead(&machine, &mut epoch).unwrap();
    }
    assert!(dirty.hot.is_empty());
}
