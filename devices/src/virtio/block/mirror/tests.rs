use std::os::unix::fs::FileExt as _;

use tempfile::TempDir;

use super::*;

pub(super) const MIB: u64 = 1 << 20;
pub(super) const SIZE: u64 = 64 * MIB;
const VM: &str = "shop";

/// An image in a directory of its own, as one run of a twin has it.
pub(super) struct Run {
    pub(super) image: DiskImage,
    pub(super) mirror: Mirror,
}

pub(super) fn image(directory: &TempDir) -> PathBuf {
    let path = directory.path().join("disk.img");
    File::create(&path).unwrap().set_len(SIZE).unwrap();
    path
}

pub(super) fn run(path: &Path) -> Run {
    let image = DiskImage::open(path, false).unwrap();
    let mirror = Mirror::open(&image, VM, 0).unwrap();
    Run { image, mirror }
}

impl Run {
    /// Does all steps that are to be done.
    pub(super) fn work(&mut self) {
        loop {
            let steps = self.mirror.take_steps();
            if steps.is_empty() {
                return;
            }
            for (ticket, step) in steps {
                self.act(&step);
                self.mirror.done(ticket, &Ok(()));
            }
        }
    }

    pub(super) fn act(&self, step: &Step) {
        if let Step::Write { offset, bytes } = step {
            self.mirror.file().write_all_at(bytes, *offset).unwrap();
        }
    }

    /// The guest writes, when it may.
    pub(super) fn write(&mut self, offset: u64) {
        if !self.mirror.touch(offset, 4096) {
            assert!(!self.mirror.is_marked(offset, 4096));
            self.work();
        }
        assert!(self.mirror.is_marked(offset, 4096));
    }

    pub(super) fn point(&mut self, number: u128, keep: &[Point], alone: bool) {
        self.mirror.begin_point(Point(number), keep, [].into_iter());
        self.mirror.settle(Point(number), alone);
        self.work();
        assert_eq!(self.mirror.take_reached(), Some(Point(number)));
    }

    pub(super) fn end(mut self) {
        self.mirror.close(&self.image);
    }
}

pub(super) fn blocks(runs: impl IntoIterator<Item = Range<u32>>) -> BlockSet {
    let mut set = BlockSet::default();
    runs.into_iter().for_each(|run| set.insert(run));
    set
}

#[test]
fn what_was_written_since_a_point_outlives_a_crash() {
    let directory = tempfile::tempdir().unwrap();
    let path = image(&directory);
    let mut first = run(&path);
    assert_eq!(first.mirror.held().distrust, Some(Distrust::New));
    // Before there is a point, nobody needs to know.
    assert!(first.mirror.touch(0, 4096));
    first.point(1, &[], true);
    first.write(5 * MIB);
    first.write(40 * MIB + 70_000);
    let held = first.mirror.held();
    assert_eq!(held.points, [Point(1)]);
    assert_eq!(held.changed, blocks([80..81, 641..642]));
    // It dies without a word.
    drop(first);
    let held = run(&path).mirror.held();
    assert_eq!((held.points, held.distrust), (vec![Point(1)], None));
    // Regions, as the record knows no blocks.
    assert_eq!(held.changed, blocks([80..96, 640..656]));
}

#[test]
fn a_write_waits_for_its_bit_alone() {
    let directory = tempfile::tempdir().unwrap();
    let mut run = run(&image(&directory));
    run.point(1, &[], true);
    assert!(!run.mirror.touch(0, 4096));
    let steps = run.mirror.take_steps();
    assert_eq!(steps.len(), 1);
    // More wait for bits while those are on their way: they go together, later.
    assert!(!run.mirror.touch(MIB, 4096) && !run.mirror.touch(2 * MIB, 4096));
    assert!(run.mirror.take_steps().is_empty());
    assert!(!run.mirror.is_marked(0, 1));
    run.act(&steps[0].1);
    run.mirror.done(steps[0].0, &Ok(()));
    assert!(run.mirror.is_marked(0, 1) && !run.mirror.is_marked(MIB, 1));
    assert_eq!(run.mirror.steps.len(), 1);
    run.work();
    assert!(run.mirror.is_marked(0, 3 * MIB) && run.mirror.touch(2 * MIB, 1));
}

#[test]
fn a_new_point_takes_bits_back() {
    let directory = tempfile::tempdir().unwrap();
    let path = image(&directory);
    let mut first = run(&path);
    first.point(1, &[], true);
    first.write(0);
    first.write(9 * MIB);
    // A request in flight is of neither side.
    let under_way = [(9 * MIB, 4096)].into_iter();
    first.mirror.begin_point(Point(2), &[Point(1)], under_way);
    first.write(20 * MIB);
    assert_eq!(first.mirror.held().points, [Point(1)]);
    first.mirror.settle(Point(2), true);
    first.work();
    let held = first.mirror.held();
    assert_eq!(held.points, [Point(2)]);
    assert_eq!(held.changed, blocks([144..145, 320..321]));
    // What lost its bit needs it anew.
    assert!(!first.mirror.is_marked(0, 1) && first.mirror.is_marked(9 * MIB, 1));
    drop(first);
    let held = run(&path).mirror.held();
    assert_eq!(held.changed, blocks([144..160, 320..336]));
}

#[test]
fn a_standby_knows_its_point_and_the_one_before() {
    let directory = tempfile::tempdir().unwrap();
    let path = image(&directory);
    let mut standby = run(&path);
    standby.point(1, &[], false);
    standby.mirror.note(3 * MIB, 10);
    standby.point(2, &[Point(1)], false);
    assert_eq!(standby.mirror.held().points, [Point(1), Point(2)]);
    // The primary has 2 by now.
    standby.point(3, &[Point(2)], false);
    drop(standby);
    assert_eq!(run(&path).mirror.held().points, [Point(2), Point(3)]);
}

#[test]
fn the_newest_point_in_common_counts() {
    let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (mut a, mut b) = (run(&image(&ours)), run(&image(&theirs)));
    assert_eq!(a.mirror.common(&b.mirror.held()), None);
    b.point(1, &[], false);
    a.point(1, &[], true);
    b.point(2, &[Point(1)], false);
    // The word of 2 was lost: a has begun it only.
    a.mirror.begin_point(Point(2), &[Point(1)], [].into_iter());
    a.write(7 * MIB);
    let common = a.mirror.common(&b.mirror.held());
    assert_eq!(common, Some((Point(2), blocks(vec![112..113; 1]))));
    // What b wrote as a primary differs as well, and no more blocks than there are.
    b.write(0);
    let mut held = b.mirror.held();
    held.changed.insert(5_000_000..5_000_100);
    let common = a.mirror.common(&held);
    assert_eq!(common, Some((Point(2), blocks([0..1, 112..113]))));
    held.points = vec![Point(9)];
    assert_eq!(a.mirror.common(&held), None);
}

#[test]
fn an_unfinished_full_copy_holds_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = image(&directory);
    let mut standby = run(&path);
    standby.point(1, &[], false);
    assert!(standby.mirror.begin_copy(Some(Point(7)), None).is_err());
    standby.point(1, &[], false);
    standby.mirror.begin_copy(None, None).unwrap();
    assert_eq!(standby.mirror.held().distrust, Some(Distrust::Unfinished));
    drop(standby);
    let mut standby = run(&path);
    assert_eq!(standby.mirror.held().distrust, Some(Distrust::Unfinished));
    standby.point(2, &[], false);
    // An unfinished copy of what has changed leaves what is known as it was.
    standby.mirror.begin_copy(Some(Point(2)), None).unwrap();
    drop(standby);
    assert_eq!(run(&path).mirror.held().points, [Point(2)]);
}

#[test]
fn an_image_that_somebody_else_changed_is_not_trusted() {
    let directory = tempfile::tempdir().unwrap();
    let path = image(&directory);
    let again = |change: &dyn Fn(), wanted: Option<Distrust>| {
        let mut first = run(&path);
        first.point(1, &[], true);
        first.end();
        change();
        let second = run(&path);
        assert_eq!(second.mirror.held().distrust, wanted);
        second.end();
    };
    again(&|| {}, None);
    let write = || {
        let image = OpenOptions::new().write(true).open(&path).unwrap();
        image.write_all_at(&[1], 0).unwrap();
    };
    again(&write, Some(Distrust::Changed));
    again(
        &|| {
            let copy = directory.path().join("copy");
            fs::copy(&path, &copy).unwrap();
            fs::rename(&copy, &path).unwrap();
        },
        Some(Distrust::Replaced),
    );
    // Put down by a crash: what was written long after the last word of its twin is not the twin's.
    let mut first = run(&path);
    first.point(1, &[], true);
    drop(first);
    let record = path.with_extension("img.mirror");
    let past = std::time::SystemTime::now() - Duration::from_secs(60);
    let times = fs::FileTimes::new().set_modified(past);
    let file = OpenOptions::new().write(true).open(&record).unwrap();
    file.set_times(times).unwrap();
    write();
    assert_eq!(run(&path).mirror.held().distrust, Some(Distrust::Changed));
}

#[test]
fn a_record_that_is_none_is_not_trusted() {
    let directory = tempfile::tempdir().unwrap();
    let path = image(&directory);
    let record = path.with_extension("img.mirror");
    let known = || {
        let _ = fs::remove_file(&record);
        let mut first = run(&path);
        first.point(1, &[], true);
        first.write(33 * MIB);
    };
    let distrust = || run(&path).mirror.held().distrust;
    known();
    let whole = fs::read(&record).unwrap();
    for len in [0, 1, 4095, 4096, 8191] {
        known();
        fs::write(&record, &whole[..len]).unwrap();
        assert_eq!(distrust(), Some(Distrust::Damaged), "{len}");
    }
    for slot in [0, 4096] {
        known();
        let mut torn = fs::read(&record).unwrap();
        torn[slot + 20] ^= 0x10;
        fs::write(&record, &torn).unwrap();
        assert_eq!(distrust(), Some(Distrust::Damaged), "{slot}");
    }
    // A page of bits is torn: then all of its regions may have changed.
    known();
    let mut torn = fs::read(&record).unwrap();
    torn[8192 + 100] ^= 1;
    fs::write(&record, &torn).unwrap();
    let held = run(&path).mirror.held();
    assert_eq!(held.points, [Point(1)]);
    assert_eq!(held.changed.bytes(), SIZE);
    // Of another VM.
    known();
    let image = DiskImage::open(&path, false).unwrap();
    let other = Mirror::open(&image, "clinic", 0).unwrap().held();
    assert_eq!(
        other.distrust.unwrap().to_string(),
        "its record is of disk 0 of VM `shop`"
    );
    drop(image);
    // Of a build that is still to come.
    known();
    let mut future = fs::read(&record).unwrap();
    let text = String::from_utf8_lossy(&future[..4096]).into_owned();
    assert!(text.contains("\"version\":1"), "{text}");
    for slot in [0, 4096] {
        let page = record::reseal(&future[slot..slot + 4096], "\"version\":1", "\"version\":2");
        future[slot..slot + 4096].copy_from_slice(&page);
    }
    fs::write(&record, &future).unwrap();
    assert_eq!(distrust(), Some(Distrust::Version(2)));
}

#[test]
fn a_record_that_can_not_be_written_is_not_left_behind() {
    let directory = tempfile::tempdir().unwrap();
    let path = image(&directory);
    let mut first = run(&path);
    first.point(1, &[], true);
    assert!(!first.mirror.touch(0, 1));
    let (ticket, _) = first.mirror.take_steps().remove(0);
    first
        .mirror
        .done(ticket, &Err(io::ErrorKind::StorageFull.into()));
    // The guest goes on.
    assert!(first.mirror.is_marked(0, 1) && first.mirror.touch(8 * MIB, 1));
    assert!(matches!(
        first.mirror.held().distrust,
        Some(Distrust::Failed(_))
    ));
    assert!(!path.with_extension("img.mirror").exists());
    first.end();
    assert_eq!(run(&path).mirror.held().distrust, Some(Distrust::New));
}

#[test]
fn a_guest_without_a_twin_leaves_no_record() {
    let directory = tempfile::tempdir().unwrap();
    let path = image(&directory);
    let mut first = run(&path);
    first.point(1, &[], true);
    forget(&first.image).unwrap();
    forget(&first.image).unwrap();
    drop(first);
    assert_eq!(run(&path).mirror.held().distrust, Some(Distrust::New));
}

#[test]
fn when_a_disk_was_compared_is_known_to_the_next_run() {
    let directory = tempfile::tempdir().unwrap();
    let path = image(&directory);
    let mut first = run(&path);
    assert_eq!(first.mirror.scrubbed(), None);
    first.point(1, &[], true);
    first.write(0);
    first.mirror.note_scrub(1_700_000_000);
    first.work();
    // It is killed, and what it knew besides is there as before.
    drop(first);
    let mut second = run(&path);
    assert_eq!(second.mirror.scrubbed(), Some(1_700_000_000));
    let held = second.mirror.held();
    assert_eq!(
        (held.points, held.changed),
        (vec![Point(1)], blocks(Some(0..16)))
    );
    // While a point is made durable its header takes the word along.
    second
        .mirror
        .begin_point(Point(2), &[Point(1)], [].into_iter());
    second.mirror.settle(Point(2), true);
    second.mirror.note_scrub(1_800_000_000);
    second.work();
    drop(second);
    let third = run(&path).mirror;
    assert_eq!(third.scrubbed(), Some(1_800_000_000));
    assert_eq!(third.held().points, [Point(2)]);
}

#[test]
fn a_disk_of_16_tib_has_a_record_of_2_mib() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk.img");
    // tmpfs and overlays hold less in one file; a file system that does not is no reason to fail here.
    let image = File::create(&path).unwrap();
    let size = [16 << 40, 8 << 40]
        .into_iter()
        .find(|size| image.set_len(*size).is_ok());
    let size = size.expect("a sparse file of 8 TiB");
    let mut first = run(&path);
    first.point(1, &[], true);
    first.write(size - 4096);
    let record = path.with_extension("img.mirror");
    assert!(fs::metadata(&record).unwrap().len() <= (2 << 20) + 32 * 1024);
    drop(first);
    let held = run(&path).mirror.held();
    let end = (size / BLOCK_BYTES) as u32;
    assert_eq!(held.changed, blocks(vec![end - 16..end; 1]));
}

#[test]
fn a_record_grows_with_its_image() {
    // The second page of bits is needed then.
    const LARGE: u64 = 40 << 30;
    let directory = TempDir::new().unwrap();
    let path = image(&directory);
    let mut first = run(&path);
    first.point(1, &[], true);
    first.write(MIB);
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(LARGE)
        .unwrap();
    first.image.grow(LARGE / 512);
    first.mirror.grow(&first.image);
    first.write(LARGE - 4096);
    // What is known goes on, also after a crash.
    drop(first);
    let second = run(&path);
    let held = second.mirror.held();
    assert_eq!((held.points, held.distrust), (vec![Point(1)], None));
    let last = (LARGE / BLOCK_BYTES) as u32 - 16;
    assert_eq!(held.changed.runs(9), [16..32, last..last + 16]);
}

#[test]
fn a_point_that_settles_while_the_image_grows_is_durable_in_the_end() {
    let directory = TempDir::new().unwrap();
    let path = image(&directory);
    let mut one = run(&path);
    one.point(1, &[], true);
    one.mirror
        .begin_point(Point(2), &[Point(1)], [].into_iter());
    one.mirror.settle(Point(2), false);
    // Its header is on its way, and done, but nobody knows yet.
    let mut late = Vec::new();
    loop {
        let steps = one.mirror.take_steps();
        if steps.is_empty() {
            break;
        }
        for (ticket, step) in steps {
            one.act(&step);
            match ticket {
                Ticket::Header(_) => late.push(ticket),
                _ => one.mirror.done(ticket, &Ok(())),
            }
        }
    }
    assert_eq!(late.len(), 1);
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(2 * SIZE)
        .unwrap();
    one.image.grow(2 * SIZE / 512);
    one.mirror.grow(&one.image);
    one.mirror.done(late[0], &Ok(()));
    assert_eq!(one.mirror.take_reached(), None);
    one.work();
    assert_eq!(one.mirror.take_reached(), Some(Point(2)));
    drop(one);
    assert_eq!(run(&path).mirror.held().points, [Point(1), Point(2)]);
}
