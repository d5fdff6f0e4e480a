use tempfile::TempDir;

use super::super::{DiskData, DiskSerial};
use super::*;

const SIZE: u64 = 64 << 20;
const VM: &str = "shop";

/// Disks of a VM, as one run of a standby has them.
struct Run {
    blocks: Vec<Block>,
}

fn images(count: u32) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    for disk in 0..count {
        let file = File::create(path(&directory, disk)).unwrap();
        file.set_len(SIZE).unwrap();
    }
    directory
}

fn path(directory: &TempDir, disk: u32) -> PathBuf {
    directory.path().join(format!("disk{disk}.img"))
}

fn run(directory: &TempDir, count: u32) -> Run {
    let open = |disk| {
        let serial = DiskSerial::of_disk(disk);
        Block::open(disk, &path(directory, disk), false, serial).unwrap()
    };
    Run {
        blocks: (0..count).map(open).collect(),
    }
}

impl Run {
    fn disks(&self) -> Vec<JournaledDisk> {
        let disks = self.blocks.iter().map(|block| block.journaled().unwrap());
        disks.collect()
    }

    fn journal(&self) -> Journal {
        Journal::new(VM, self.disks()).unwrap()
    }

    fn apply(&mut self, writes: &[DiskWrite]) {
        for block in &mut self.blocks {
            let disk = block.disk;
            let own = writes.iter().filter(|write| write.disk == disk);
            block.repeat(own).unwrap();
        }
    }

    fn recover(&mut self) -> Result<Recovery, JournalError> {
        let disks = self.disks();
        recover(VM, &disks, |writes| {
            self.apply(writes);
            Ok(())
        })
    }
}

fn bytes(disk: u32, offset: u64, byte: u8, len: usize) -> DiskWrite {
    DiskWrite {
        disk,
        offset,
        data: DiskData::Bytes(vec![byte; len].into()),
    }
}

/// One byte on each of two disks, far apart.
fn epoch(number: u8) -> Vec<DiskWrite> {
    vec![bytes(0, 4096, number, 512), bytes(1, 8 << 20, number, 512)]
}

fn contents(directory: &TempDir, disk: u32, offset: u64) -> u8 {
    let mut byte = [0];
    let file = File::open(path(directory, disk)).unwrap();
    file.read_exact_at(&mut byte, offset).unwrap();
    byte[0]
}

fn both(directory: &TempDir) -> (u8, u8) {
    (
        contents(directory, 0, 4096),
        contents(directory, 1, 8 << 20),
    )
}

#[test]
fn who_dies_in_the_middle_of_an_epoch_has_all_of_it_at_the_next_start() {
    let directory = images(2);
    let mut standby = run(&directory, 2);
    let mut journal = standby.journal();
    journal.append(&[epoch(1), epoch(2)]).unwrap();
    standby.apply(&epoch(1));
    // Half of the second.
    standby.apply(&epoch(2)[1..]);
    assert_eq!(both(&directory), (1, 2));
    drop((journal, standby));
    let mut next = run(&directory, 2);
    assert_eq!(next.recover().unwrap(), Recovery::Repeated(2));
    assert_eq!(both(&directory), (2, 2));
    // Once is enough.
    assert_eq!(next.recover().unwrap(), Recovery::Nothing);
}

/// Gives the second disk's image another size.
fn resize(directory: &TempDir, bytes: u64) {
    let file = File::options().write(true).open(path(directory, 1));
    file.unwrap().set_len(bytes).unwrap();
}

#[test]
fn entries_outlive_the_growth_of_an_image() {
    let directory = images(2);
    for (size, goes_on) in [(2 * SIZE, false), (3 * SIZE, true)] {
        let mut standby = run(&directory, 2);
        let mut journal = standby.journal();
        journal.append(&[epoch(1)]).unwrap();
        journal.expect_growth().unwrap();
        resize(&directory, size);
        // Who dies now has entries from before the growth; who goes on adds others to them.
        if goes_on {
            standby.blocks[1].use_room(size).unwrap();
            journal.images_have_grown(standby.disks());
            let end = bytes(1, size - 512, 9, 512);
            journal.append(&[vec![end]]).unwrap();
        }
        drop((journal, standby));
        let recovery = run(&directory, 2).recover().unwrap();
        assert_eq!(recovery, Recovery::Repeated(1 + u64::from(goes_on)));
        assert_eq!(both(&directory), (1, 1));
    }
    assert_eq!(contents(&directory, 1, 3 * SIZE - 1), 9);
    // A smaller one is another one.
    let mut journal = run(&directory, 2).journal();
    journal.append(&[epoch(2)]).unwrap();
    drop(journal);
    resize(&directory, SIZE);
    let recovery = run(&directory, 2).recover().unwrap();
    assert!(matches!(recovery, Recovery::Forgotten(_)), "{recovery:?}");
}

#[test]
fn an_epoch_that_is_not_whole_in_the_journal_is_on_no_disk() {
    let directory = images(2);
    let mut standby = run(&directory, 2);
    let mut journal = standby.journal();
    journal.append(&[epoch(1)]).unwrap();
    standby.apply(&epoch(1));
    let torn = journal.at;
    journal.append(&[epoch(2)]).unwrap();
    for (place, harm) in [(torn + 60, 1), (torn + 70, 1), (torn + 700, 1)] {
        let mut byte = [0];
        journal.files[0]
            .file()
            .read_exact_at(&mut byte, place)
            .unwrap();
        journal.files[0]
            .file()
            .write_all_at(&[byte[0] ^ harm], place)
            .unwrap();
        let found = standby.recover().unwrap();
        assert_eq!(found, Recovery::Repeated(1), "{place}");
        assert_eq!(both(&directory), (1, 1));
        // As it was before.
        journal.files[0].file().write_all_at(&byte, place).unwrap();
        write_master(journal.files[0].file(), &journal.master).unwrap();
    }
    assert_eq!(standby.recover().unwrap(), Recovery::Repeated(2));
    assert_eq!(both(&directory), (2, 2));
}

#[test]
fn what_was_forgotten_is_not_repeated() {
    let directory = images(2);
    let mut standby = run(&directory, 2);
    let mut journal = standby.journal();
    journal.append(&[epoch(1), epoch(2)]).unwrap();
    standby.apply(&epoch(1));
    standby.apply(&epoch(2));
    // The guest runs here now, and writes.
    journal.forget().unwrap();
    standby.apply(&epoch(7));
    drop((journal, standby));
    let mut next = run(&directory, 2);
    assert_eq!(next.recover().unwrap(), Recovery::Nothing);
    assert_eq!(both(&directory), (7, 7));
    // A later life does not believe an earlier one's entries, which are still there.
    let mut journal = next.journal();
    journal.append(&[epoch(8)]).unwrap();
    next.apply(&epoch(8)[1..]);
    assert_eq!(next.recover().unwrap(), Recovery::Repeated(1));
    assert_eq!(both(&directory), (8, 8));
}

#[test]
fn files_take_turns_and_their_entries_stay_in_order() {
    let directory = images(2);
    let mut standby = run(&directory, 2);
    let mut journal = standby.journal();
    let large = |number: u8| vec![bytes(0, 0, number, 9 << 20), bytes(1, 8 << 20, number, 512)];
    for number in 1..=21 {
        let epochs = [large(number)];
        journal.append(&epochs).unwrap();
        standby.apply(&epochs[0]);
    }
    assert_eq!(journal.current, 1, "four of them fill a file");
    // Part of the last one is lost: the host went down with it in its memory.
    standby.apply(&[bytes(0, 0, 20, 9 << 20)]);
    drop((journal, standby));
    let mut next = run(&directory, 2);
    // Those of the file that was filled before, and one.
    assert_eq!(next.recover().unwrap(), Recovery::Repeated(5));
    assert_eq!(both(&directory), (21, 21));
}

#[test]
fn a_file_is_left_only_when_all_that_it_has_is_on_the_disks() {
    let directory = images(1);
    let standby = run(&directory, 1);
    let mut journal = standby.journal();
    let large = |number| vec![bytes(0, 0, number, 9 << 20)];
    // The first four fill a file, and none of them is on the disk yet.
    let batch: Vec<_> = (1..=6).map(large).collect();
    journal.append(&batch).unwrap();
    assert!(journal.is_full() && journal.current == 0);
    journal.append(&[vec![]]).unwrap();
    assert_eq!(journal.current, 0);
    journal.append(&[large(7)]).unwrap();
    assert_eq!(journal.current, 1);
}

#[test]
fn entries_of_the_form_before_are_repeated() {
    let directory = images(2);
    let mut standby = run(&directory, 2);
    let journal = standby.journal();
    let (file, life) = (journal.files[0].file(), journal.master.life);
    let mut at = PAGE as u64;
    for (sequence, number) in (0..).zip(1..=3) {
        let mut bytes = entry::encode(life, sequence, 0, &epoch(number));
        bytes.extend(entry::contents(&epoch(number)).flatten());
        file.write_all_at(&bytes, at).unwrap();
        at += bytes.len() as u64;
    }
    let master = Master {
        version: PACKED,
        ..journal.master.clone()
    };
    write_master(file, &master).unwrap();
    assert_eq!(standby.recover().unwrap(), Recovery::Repeated(3));
    assert_eq!(both(&directory), (3, 3));
}

#[test]
fn disks_whose_journal_has_a_hole_are_not_booted_from() {
    let directory = images(2);
    let mut standby = run(&directory, 2);
    let mut journal = standby.journal();
    for number in 1..=5 {
        let epochs = [vec![bytes(0, 0, number, 9 << 20)]];
        journal.append(&epochs).unwrap();
        standby.apply(&epochs[0]);
    }
    assert_eq!(journal.current, 1);
    journal.files[0]
        .file()
        .write_all_at(&[1], 20 << 20)
        .unwrap();
    assert!(!standby.blocks[1].copy_mark().is_unfinished().unwrap());
    assert_eq!(damaged_entry(&mut standby, &directory, 0), 2);
}

/// The entry that a recovery finds damaged in this file; all disks are distrusted then, and nothing is repeated at the next start.
fn damaged_entry(standby: &mut Run, directory: &TempDir, file: usize) -> u64 {
    let found = standby.recover().unwrap();
    let Recovery::Damaged { path: named, entry } = found else {
        panic!("{found:?}");
    };
    let name = format!("{}{}", path(directory, 0).display(), SUFFIXES[file]);
    assert_eq!(named, PathBuf::from(name));
    for block in &standby.blocks {
        assert!(block.copy_mark().is_unfinished().unwrap());
    }
    assert_eq!(standby.recover().unwrap(), Recovery::Nothing);
    entry
}

/// Changes a byte of a journal's file.
fn flip(journal: &Journal, file: usize, at: u64) {
    let mut byte = [0];
    journal.files[file]
        .file()
        .read_exact_at(&mut byte, at)
        .unwrap();
    journal.files[file]
        .file()
        .write_all_at(&[byte[0] ^ 4], at)
        .unwrap();
}

/// A standby with epochs 1 to `count`, one after the other, and where the entry of each begins.
fn with_epochs(directory: &TempDir, count: u8) -> (Run, Journal, Vec<u64>) {
    let mut standby = run(directory, 2);
    let mut journal = standby.journal();
    let mut places = Vec::new();
    for number in 1..=count {
        places.push(journal.at);
        journal.append(&[epoch(number)]).unwrap();
        standby.apply(&epoch(number));
    }
    (standby, journal, places)
}

#[test]
fn an_entry_that_rots_before_later_ones_is_found() {
    // In its head, its descriptors and its bytes; and the very first one.
    for (entry, behind) in [(2, 20), (2, 70), (2, 800), (0, 3), (3, 50)] {
        let directory = images(2);
        let (mut standby, journal, places) = with_epochs(&directory, 5);
        flip(&journal, 0, places[entry] + behind);
        let found = damaged_entry(&mut standby, &directory, 0);
        assert_eq!(found, entry as u64, "{behind}");
        assert_eq!(both(&directory), (5, 5), "nothing older was repeated");
    }
}

#[test]
fn what_was_known_of_a_disk_goes_with_its_journal() {
    let directory = images(2);
    let (mut standby, journal, places) = with_epochs(&directory, 3);
    let record = format!("{}.mirror", path(&directory, 1).display());
    std::fs::write(&record, "points, and the like").unwrap();
    flip(&journal, 0, places[0] + 100);
    assert_eq!(damaged_entry(&mut standby, &directory, 0), 0);
    assert!(!std::fs::exists(&record).unwrap());
}

#[test]
fn a_batch_that_was_torn_is_no_damage() {
    let directory = images(2);
    let (mut standby, mut journal, _) = with_epochs(&directory, 2);
    let torn = journal.at;
    // The host goes down before these are durable: the later ones may be there without the first.
    journal.append(&[epoch(3), epoch(4), epoch(5)]).unwrap();
    flip(&journal, 0, torn + 90);
    assert_eq!(standby.recover().unwrap(), Recovery::Repeated(2));
    assert_eq!(both(&directory), (2, 2));
    assert!(!standby.blocks[0].copy_mark().is_unfinished().unwrap());
}

#[test]
fn leftovers_are_no_damage() {
    let directory = images(2);
    let (mut standby, mut journal, places) = with_epochs(&directory, 9);
    journal.forget().unwrap();
    assert_eq!(standby.recover().unwrap(), Recovery::Nothing);
    // Nor are those of an earlier life behind a later one's.
    let mut journal = standby.journal();
    journal.append(&[epoch(11)]).unwrap();
    flip(&journal, 0, places[0] + 90);
    assert_eq!(standby.recover().unwrap(), Recovery::Nothing);
}

#[test]
fn each_files_first_entry_is_missed() {
    let large = |number: u8| vec![bytes(0, 0, number, 9 << 20)];
    // Four entries fill a file and a fifth closes it: the files have 0 to 4 and 5 to 9, and then the first has 10 and 11.
    let filled = |count: u8| {
        let directory = images(2);
        let mut standby = run(&directory, 2);
        let mut journal = standby.journal();
        for number in 1..=count {
            journal.append(&[large(number)]).unwrap();
            standby.apply(&large(number));
        }
        (directory, standby, journal)
    };
    let begin = PAGE as u64;
    for (count, file, missed) in [(6, 0, 4), (6, 1, 5), (10, 1, 9)] {
        let (directory, mut standby, journal) = filled(count);
        flip(&journal, file, begin + 9);
        let found = damaged_entry(&mut standby, &directory, file);
        assert_eq!(found, missed, "{count} {file}");
    }
    // One that was being overwritten may be torn: the other file has all that is needed.
    let (_directory, mut standby, journal) = filled(9);
    assert_eq!(journal.current, 0);
    flip(&journal, 0, begin + 9);
    assert_eq!(standby.recover().unwrap(), Recovery::Repeated(4));
}

#[test]
fn disks_that_are_not_what_they_were_are_left_alone() {
    let ready = || {
        let directory = images(2);
        let mut standby = run(&directory, 2);
        standby.journal().append(&[epoch(1)]).unwrap();
        standby.apply(&epoch(1)[1..]);
        directory
    };
    // Restored from a backup.
    let directory = ready();
    std::fs::remove_file(path(&directory, 1)).unwrap();
    File::create(path(&directory, 1))
        .unwrap()
        .set_len(SIZE)
        .unwrap();
    let found = run(&directory, 2).recover().unwrap();
    assert_eq!(
        found,
        Recovery::Forgotten("they are of other images".into())
    );
    assert_eq!(both(&directory), (0, 0));
    // Written to by another program, long after.
    let directory = ready();
    for suffix in SUFFIXES {
        let file = format!("{}{suffix}", path(&directory, 0).display());
        let old = std::time::SystemTime::now() - std::time::Duration::from_secs(60);
        File::open(file).unwrap().set_modified(old).unwrap();
    }
    let found = run(&directory, 2).recover().unwrap();
    assert!(
        matches!(&found, Recovery::Forgotten(why) if why.ends_with("was changed since")),
        "{found:?}"
    );
    assert_eq!(both(&directory), (0, 1));
    // Used for another VM.
    let directory = ready();
    let disks = run(&directory, 2).disks();
    let found = recover("clinic", &disks, |_| panic!("they are another VM's")).unwrap();
    assert_eq!(found, Recovery::Forgotten("they are of VM `shop`".into()));
}

#[test]
fn a_journal_of_another_form_is_refused_and_one_that_is_none_is_nothing() {
    let directory = images(1);
    let standby = run(&directory, 1);
    let journal = standby.journal();
    let master = Master {
        version: 9,
        ..journal.master.clone()
    };
    write_master(journal.files[0].file(), &master).unwrap();
    let disks = standby.disks();
    let error = recover(VM, &disks, |_| Ok(())).unwrap_err().to_string();
    assert!(
        error.contains("has form 9, which this build does not know"),
        "{error}"
    );
    for bytes in [&[0; PAGE][..], &[255; PAGE], b""] {
        let file = journal.files[0].file();
        file.set_len(0).unwrap();
        file.write_all_at(bytes, 0).unwrap();
        let found = recover(VM, &disks, |_| panic!("nothing to repeat")).unwrap();
        assert_eq!(found, Recovery::Nothing);
    }
    assert_eq!(recover(VM, &[], |_| Ok(())).unwrap(), Recovery::Nothing);
}

#[test]
fn an_orderly_end_leaves_nothing_to_repeat() {
    let directory = images(2);
    let mut standby = run(&directory, 2);
    let mut journal = standby.journal();
    journal.append(&[epoch(1)]).unwrap();
    standby.apply(&epoch(1));
    journal.close().unwrap();
    assert_eq!(standby.recover().unwrap(), Recovery::Nothing);
}

/// A recovery, given how long ago the record had word of the image; whether it has newer word after that.
fn record_is_stamped(seconds: u64) -> bool {
    let directory = images(1);
    let event = || vmm_sys_util::eventfd::EventFd::new(0).unwrap();
    let mut standby = run(&directory, 1);
    standby.blocks[0].open_mirror(VM, event()).unwrap();
    let mut journal = standby.journal();
    journal.append(&[vec![bytes(0, 0, 1, 512)]]).unwrap();
    let disks = standby.disks();
    // It dies: nothing is closed.
    std::mem::forget(std::mem::take(&mut standby.blocks));
    let record = format!("{}.mirror", path(&directory, 0).display());
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(seconds);
    File::open(&record).unwrap().set_modified(old).unwrap();
    recover(VM, &disks, |_| Ok(())).unwrap();
    let stamped = File::open(&record).unwrap().metadata().unwrap();
    stamped.modified().unwrap() > old
}

#[test]
fn what_a_delta_copy_relies_on_outlives_a_recovery() {
    assert!(record_is_stamped(3));
}

#[test]
fn a_recovery_does_not_hide_that_somebody_else_wrote_to_a_disk() {
    assert!(!record_is_stamped(60));
}

/// As the reference: encoded, then decoded by the rules in the module's words.
#[test]
fn an_entry_comes_back_as_it_was() {
    let zeroes = |unmap| DiskWrite {
        disk: 3,
        offset: 1 << 40,
        data: DiskData::Zeroes {
            len: 1 << 30,
            unmap,
        },
    };
    let writes = vec![
        bytes(0, 512, 7, 1024),
        zeroes(true),
        zeroes(false),
        bytes(9, 0, 1, 512),
    ];
    let mut bytes = entry::encode(11, 12, 10, &writes);
    bytes.extend(entry::contents(&writes).flatten());
    assert_eq!(bytes.len() as u64, entry::size(&writes));
    let (head, rest) = bytes.split_first_chunk().unwrap();
    let head = entry::Head::decode(head).unwrap();
    assert_eq!((head.life, head.sequence, head.batch), (11, 12, 10));
    assert!(!head.closes());
    assert_eq!(head.writes(rest).unwrap(), writes);
    assert_eq!(head.writes(&rest[1..]), None);
}

proptest::proptest! {
    /// Descriptors that promise what is not there, behind checksums that are right.
    #[test]
    fn no_entry_is_trusted_to_be_well_formed(
        count in 0u64..5,
        rest in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200),
    ) {
        let words = [0, 0, rest.len() as u64, count, 0, xxhash_rust::xxh3::xxh3_64(&rest)];
        let mut head = b"EVTWEPOC".to_vec();
        head.extend(words.into_iter().flat_map(u64::to_le_bytes));
        head.extend(xxhash_rust::xxh3::xxh3_64(&head).to_le_bytes());
        let head = entry::Head::decode(head.first_chunk().unwrap()).unwrap();
        if let Some(writes) = head.writes(&rest) {
            proptest::prop_assert_eq!(writes.len() as u64, count);
        }
    }
}
