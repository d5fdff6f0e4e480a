use std::fs;
use std::ops::Range;
use std::path::Path;

use super::super::tests::{MIB, Run, SIZE, blocks, image, run};
use super::super::{Held, Step, Ticket};
use super::*;

/// Blocks of the whole disk.
const ALL: u32 = (SIZE / BLOCK_BYTES) as u32;

fn base(point: u128, lacks: impl IntoIterator<Item = Range<u32>>) -> Option<CopyBase> {
    Some(CopyBase {
        point: Point(point),
        lacks: blocks(lacks),
    })
}

/// A standby whose full copy has begun.
fn copying(path: &Path) -> Run {
    let mut standby = run(path);
    standby
        .mirror
        .begin_copy(None, base(5, Some(0..ALL)))
        .unwrap();
    standby
}

/// What the next run of this disk knows.
fn next_run(path: &Path, this: Run) -> Held {
    drop(this);
    run(path).mirror.held()
}

#[test]
fn a_copy_that_has_begun_lacks_everything() {
    let directory = tempfile::tempdir().unwrap();
    let path = image(&directory);
    let mut standby = run(&path);
    standby.point(1, &[], false);
    // More than there is, in another's words.
    let lacks = base(5, Some(0..ALL + 77));
    standby.mirror.begin_copy(None, lacks).unwrap();
    for held in [standby.mirror.held(), next_run(&path, standby)] {
        assert_eq!((held.points, held.distrust), (vec![Point(5)], None));
        assert_eq!(held.changed, blocks(Some(0..ALL)));
    }
}

#[test]
fn what_was_received_is_noted_when_it_is_durable() {
    let directory = tempfile::tempdir().unwrap();
    let path = image(&directory);
    let mut standby = copying(&path);
    standby.mirror.received(20 * MIB + 100);
    let steps = standby.mirror.take_steps();
    let is_flush = |(_, step): &(Ticket, Step)| matches!(step, Step::Flush);
    assert!(steps.len() == 1 && is_flush(&steps[0]), "{steps:?}");
    // While the disk is being flushed it dies: nothing counts.
    let held = next_run(&path, standby);
    assert_eq!(held.changed, blocks(Some(0..ALL)));

    let mut standby = copying(&path);
    standby.mirror.received(20 * MIB + 100);
    standby.work();
    for held in [standby.mirror.held(), next_run(&path, standby)] {
        assert_eq!(held.points, [Point(5)]);
        assert_eq!(held.changed, blocks(Some(320..ALL)));
    }
}

#[test]
fn what_comes_during_a_flush_is_noted_by_the_next() {
    let directory = tempfile::tempdir().unwrap();
    let path = image(&directory);
    let mut standby = copying(&path);
    standby.mirror.received(10 * MIB);
    let flush = standby.mirror.take_steps();
    for end in [12, 30, 20] {
        standby.mirror.received(end * MIB);
    }
    assert!(standby.mirror.take_steps().is_empty());
    standby.mirror.done(flush[0].0, &Ok(()));
    let held = standby.mirror.held();
    assert_eq!(held.changed, blocks(Some(160..ALL)));
    standby.work();
    let held = next_run(&path, standby);
    assert_eq!(held.changed, blocks(Some(480..ALL)));
}

#[test]
fn a_copy_to_its_end_is_a_point_like_any_other() {
    let directory = tempfile::tempdir().unwrap();
    let path = image(&directory);
    let mut standby = copying(&path);
    // What the guest writes meanwhile comes as well; its primary has it.
    standby.mirror.note(3 * MIB, 1);
    standby.mirror.received(u64::MAX);
    standby.work();
    let held = standby.mirror.held();
    assert!(held.points == [Point(5)] && held.changed.is_empty());
    standby.point(6, &[Point(5)], false);
    let held = next_run(&path, standby);
    assert_eq!(held.points, [Point(5), Point(6)]);
    assert!(held.changed.is_empty() && held.distrust.is_none());
}

#[test]
fn a_point_that_comes_right_behind_a_copy_covers_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = image(&directory);
    for (end, left) in [(u64::MAX, 0), (SIZE / 2, SIZE / 2), (0, SIZE)] {
        let mut standby = copying(&path);
        standby.mirror.received(end);
        // The copy's own flush has not ended.
        standby.point(6, &[Point(5)], false);
        assert_eq!(standby.mirror.held().changed.bytes(), left);
        assert_eq!(next_run(&path, standby).changed.bytes(), left);
        let _ = fs::remove_file(path.with_extension("img.mirror"));
    }
}

#[test]
fn a_copy_is_whole_when_it_ends_though_nobody_told_how_far_it_was() {
    let directory = tempfile::tempdir().unwrap();
    let path = image(&directory);
    let mut standby = copying(&path);
    standby.mirror.has_all();
    // Not before it is durable.
    assert_eq!(standby.mirror.held().changed.bytes(), SIZE);
    standby.point(6, &[Point(5)], false);
    let held = next_run(&path, standby);
    assert_eq!(held.points, [Point(5), Point(6)]);
    assert!(held.changed.is_empty());
}

#[test]
fn what_a_guest_writes_here_during_the_flush_of_its_copy_is_known() {
    let directory = tempfile::tempdir().unwrap();
    let path = image(&directory);
    let with_a_point = |standby: &mut Run| {
        standby.mirror.has_all();
        standby
            .mirror
            .begin_point(Point(6), &[Point(5)], [].into_iter());
        standby.mirror.settle(Point(6), false);
    };
    let without = |standby: &mut Run| standby.mirror.received(u64::MAX);
    for flush in [&with_a_point as &dyn Fn(&mut Run), &without] {
        let mut standby = copying(&path);
        flush(&mut standby);
        // The primary is gone, and with it all that it knew but for the begin of the copy.
        standby.write(3 * MIB);
        standby.work();
        let changed = |held: Held| held.changed;
        assert_eq!(changed(standby.mirror.held()), blocks(Some(48..49)));
        let theirs = Held {
            points: vec![Point(5)],
            ..Held::default()
        };
        let common = standby.mirror.common(&theirs);
        assert_eq!(common, Some((Point(5), blocks(Some(48..49)))));
        // After a crash of this one as well: its region.
        assert_eq!(changed(next_run(&path, standby)), blocks(Some(48..64)));
        let _ = fs::remove_file(path.with_extension("img.mirror"));
    }
}

#[test]
fn a_delta_copy_goes_on_from_its_own_begin() {
    let directory = tempfile::tempdir().unwrap();
    let path = image(&directory);
    let mut standby = run(&path);
    standby.point(1, &[], false);
    let lacks = base(5, [16..64, 640..656]);
    standby.mirror.begin_copy(Some(Point(1)), lacks).unwrap();
    // Until the primary knows the begin durably, the old point is needed.
    drop(standby);
    let mut standby = run(&path);
    let held = standby.mirror.held();
    assert_eq!(held.points, [Point(1), Point(5)]);
    assert_eq!(held.changed, blocks([16..64, 640..656]));
    // It goes on, under a new name, and with what was written meanwhile.
    let lacks = base(7, [0..16, 16..64, 640..656]);
    standby.mirror.begin_copy(Some(Point(5)), lacks).unwrap();
    standby.mirror.received(2 * MIB);
    standby.work();
    let held = next_run(&path, standby);
    assert_eq!(held.points, [Point(7)]);
    assert_eq!(held.changed, blocks([32..64, 640..656]));
}

#[test]
fn both_sides_together_know_what_is_left() {
    let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let path = image(&ours);
    let (mut primary, mut standby) = (run(&path), copying(&image(&theirs)));
    primary.point(1, &[], true);
    primary.write(0);
    let under_way = [(9 * MIB, 4096)].into_iter();
    primary.mirror.begin_base(Point(5), &[], under_way);
    primary.mirror.settle(Point(5), true);
    primary.work();
    assert_eq!(primary.mirror.durable_points(), [Point(5)]);
    // Though nothing was written since: a point that both have whole is better.
    assert!(primary.mirror.wants_point());
    primary.write(2 * MIB);
    standby.mirror.received(60 * MIB);
    standby.work();
    let left = blocks([32..33, 144..145, 960..ALL]);
    let common = primary.mirror.common(&standby.mirror.held());
    assert_eq!(common, Some((Point(5), left)));
    // After the primary's process has died as well: regions.
    drop(primary);
    let left = blocks([32..48, 144..160, 960..ALL]);
    let common = run(&path).mirror.common(&standby.mirror.held());
    assert_eq!(common, Some((Point(5), left)));
}

#[test]
fn a_begin_of_which_nobody_was_told_costs_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = image(&directory);
    let mut primary = run(&path);
    primary.point(1, &[], true);
    primary.write(0);
    primary
        .mirror
        .begin_base(Point(5), &[Point(1)], [].into_iter());
    primary.write(2 * MIB);
    // It dies before the standby has answered: the old point is as good as before.
    let held = next_run(&path, primary);
    assert_eq!(held.points, [Point(1)]);
    assert_eq!(held.changed, blocks([0..16, 32..48]));
}

#[test]
fn an_older_twin_names_no_begin() {
    let directory = tempfile::tempdir().unwrap();
    let path = image(&directory);
    let mut standby = copying(&path);
    standby.mirror.begin_copy(None, None).unwrap();
    // Nobody asked for it.
    standby.mirror.received(u64::MAX);
    assert!(standby.mirror.take_steps().is_empty());
    let held = next_run(&path, standby);
    assert_eq!(held.distrust, Some(Distrust::Unfinished));
}

#[test]
fn a_name_that_is_taken_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let mut standby = run(&image(&directory));
    standby.point(1, &[], false);
    let again = standby
        .mirror
        .begin_copy(Some(Point(1)), base(1, Some(0..5)));
    assert!(again.unwrap_err().to_string().contains("one name for two"));
    let unknown = standby
        .mirror
        .begin_copy(Some(Point(2)), base(3, Some(0..5)));
    assert!(unknown.unwrap_err().to_string().contains("does not know"));
}

#[test]
fn a_torn_record_of_a_copy_says_too_much_or_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = image(&directory);
    let record = path.with_extension("img.mirror");
    let half_done = || {
        let _ = fs::remove_file(&record);
        let mut standby = copying(&path);
        standby.mirror.received(SIZE / 2);
        standby.work();
        fs::read(&record).unwrap()
    };
    let mut torn = half_done();
    torn[8192 + 9] ^= 4;
    fs::write(&record, &torn).unwrap();
    assert_eq!(run(&path).mirror.held().changed.bytes(), SIZE);
    for slot in [0, 4096] {
        let mut torn = half_done();
        torn[slot + 33] ^= 1;
        fs::write(&record, &torn).unwrap();
        assert_eq!(run(&path).mirror.held().distrust, Some(Distrust::Damaged));
    }
}
