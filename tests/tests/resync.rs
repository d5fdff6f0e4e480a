//! A disk that was a copy becomes one again by what has changed since, if that is known, and else as a whole (I10).

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use evertwin::lab::client::LoadOptions;
use evertwin::lab::pair::PairConfig;
use evertwin::lab::topology::Node;
use evertwin_tests::lab::STEP;
use evertwin_tests::stage::{Stage, demand_clean, wait_for_more};

/// Behind what the guest writes, and no part of a delta copy.
const BULK: std::ops::Range<u64> = 32 << 20..48 << 20;
/// Delta copies in these tests are smaller, full ones larger.
const SMALL: u64 = 12 << 20;

fn image(node: Node) -> String {
    format!("disk-{}.img", node.name())
}

/// Writes what is no part of a delta copy.
fn fill(stage: &Stage) {
    let image = stage.lab.path(&image(Node::A));
    let disk = File::options().write(true).open(image).unwrap();
    let bulk = vec![0x5a; (BULK.end - BULK.start) as usize];
    disk.write_all_at(&bulk, BULK.start).unwrap();
}

/// A protected pair whose disks have a point in common that is durable on both.
fn with_a_point() -> Stage {
    let mut stage = Stage::new(&PairConfig {
        memory: "64M".to_owned(),
        ..PairConfig::default()
    });
    fill(&stage);
    stage.protect();
    assert_eq!(copy_by(&mut stage, Node::A).0, "full");
    stage.wait_for(
        Node::A,
        "both disks know a point: a later copy needs only what changes from here on",
    );
    for node in [Node::A, Node::B] {
        await_no_bits(&stage, node);
    }
    stage
}

/// Waits until a record says of no region that it may have changed: the bits of the first copy are taken back a moment after the
/// point. Who dies before that has all of the disk copied once more.
fn await_no_bits(stage: &Stage, node: Node) {
    let record = stage.lab.path(&format!("{}.mirror", image(node)));
    let until = Instant::now() + STEP;
    // Behind two headers of a page each; one bit for each of the disk's 64 MiB.
    while fs::read(&record).unwrap()[8192..8200] != [0; 8] {
        assert!(Instant::now() < until, "the bits of {node:?} stay");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// How the last copy from this twin went: its kind, its bytes, and why.
fn copy_by(stage: &mut Stage, from: Node) -> (String, u64, Option<String>) {
    stage.wait_for(from, "disk copy");
    let lines = stage.twin(from).log().lines();
    let copies = lines.iter().rev();
    let mut copies = copies.filter(|line| line.message().as_deref() == Some("disk copy"));
    let copy = copies.next().unwrap();
    let text = |name| Some(copy.field(name)?.as_str()?.to_owned());
    let bytes = copy.field("bytes").unwrap().as_u64().unwrap();
    (text("copy").unwrap(), bytes, text("why"))
}

/// Both images, once the guest is quiet and the last epoch is applied.
fn assert_same_disks(stage: &Stage) {
    stage.await_same_images([Node::A, Node::B].map(image).each_ref().map(String::as_str));
}

/// Writes through the guest until so many more are acknowledged.
fn write(stage: &Stage, more: u64) {
    let load = stage.load(LoadOptions::default());
    wait_for_more(&load, more);
    demand_clean(load);
}

/// One that somebody else writes, long after its twin did.
fn change(image: &Path) {
    let file = File::options().write(true).open(image).unwrap();
    file.write_all_at(&[0xee; 4096], BULK.start + 4096).unwrap();
}

#[test]
fn a_returning_standby_gets_what_has_changed() {
    let mut stage = with_a_point();
    write(&stage, 100);
    stage.twin(Node::B).kill();
    stage.wait_for(Node::A, "solo");
    write(&stage, 500);
    stage.pair.start(Node::B).unwrap();
    stage.wait_for(Node::B, "standby ready");
    let (copy, bytes, _) = copy_by(&mut stage, Node::A);
    assert!(copy == "delta" && bytes <= SMALL, "{copy} {bytes}");
    write(&stage, 100);
    assert_same_disks(&stage);
}

#[test]
fn a_standby_that_dies_comes_back_with_a_whole_epoch() {
    let mut stage = with_a_point();
    let load = stage.load(LoadOptions::default());
    wait_for_more(&load, 200);
    stage.twin(Node::B).kill();
    stage.wait_for(Node::A, "solo");
    wait_for_more(&load, 100);
    stage.pair.start(Node::B).unwrap();
    let recovered = "the disks hold the last epoch of their journal";
    stage.wait_for(Node::B, recovered);
    stage.wait_for(Node::B, "standby ready");
    // That it was repeated is no reason to distrust the disk.
    assert_eq!(copy_by(&mut stage, Node::A).0, "delta");
    wait_for_more(&load, 100);
    demand_clean(load);
    assert_same_disks(&stage);
    // The guest goes on there: what it writes from now on is not undone by an older journal.
    stage.twin(Node::A).kill();
    stage.wait_for(Node::B, "promoted");
    write(&stage, 100);
    stage.twin(Node::B).kill();
    stage.pair.start(Node::B).unwrap();
    stage.wait_for(Node::B, "solo");
    let lines = stage.twin(Node::B).log().lines();
    let mut again = lines
        .iter()
        .filter(|line| line.message().as_deref() == Some(recovered));
    assert!(again.next().is_none());
}

#[test]
fn what_a_primary_wrote_alone_outlives_its_process() {
    let mut stage = with_a_point();
    stage.twin(Node::B).kill();
    stage.wait_for(Node::A, "solo");
    write(&stage, 500);
    stage.twin(Node::A).kill();
    stage.pair.start(Node::A).unwrap();
    stage.wait_for(Node::A, "solo");
    stage.pair.start(Node::B).unwrap();
    stage.wait_for(Node::B, "standby ready");
    let (copy, bytes, _) = copy_by(&mut stage, Node::A);
    assert!(copy == "delta" && bytes <= SMALL, "{copy} {bytes}");
    assert_same_disks(&stage);
}

#[test]
fn an_old_primary_is_undone_and_brought_up() {
    let mut stage = with_a_point();
    let load = stage.load(LoadOptions::default());
    wait_for_more(&load, 200);
    // What it wrote in epochs that never committed is on its disk.
    stage.twin(Node::A).kill();
    stage.wait_for(Node::B, "promoted");
    wait_for_more(&load, 300);
    stage.pair.start(Node::A).unwrap();
    stage.wait_for(Node::A, "standby ready");
    let (copy, bytes, _) = copy_by(&mut stage, Node::B);
    assert!(copy == "delta" && bytes <= SMALL, "{copy} {bytes}");
    wait_for_more(&load, 100);
    // And back, with what both have written since.
    stage.twin(Node::B).kill();
    stage.wait_for(Node::A, "promoted");
    wait_for_more(&load, 100);
    stage.pair.start(Node::B).unwrap();
    stage.wait_for(Node::B, "standby ready");
    assert_eq!(copy_by(&mut stage, Node::A).0, "delta");
    wait_for_more(&load, 100);
    demand_clean(load);
    assert_same_disks(&stage);
}

#[test]
fn an_unfinished_delta_copy_goes_on() {
    let mut stage = with_a_point();
    stage.twin(Node::B).kill();
    stage.wait_for(Node::A, "solo");
    write(&stage, 300);
    for _ in 0..3 {
        stage.pair.start(Node::B).unwrap();
        stage.wait_for(Node::B, "disk becomes a copy");
        stage.twin(Node::B).kill();
        write(&stage, 50);
    }
    stage.pair.start(Node::B).unwrap();
    stage.wait_for(Node::B, "standby ready");
    let (copy, bytes, _) = copy_by(&mut stage, Node::A);
    assert!(copy == "resumed" && bytes <= SMALL, "{copy} {bytes}");
    assert_same_disks(&stage);
}

#[test]
fn a_copy_takes_no_more_of_the_link_than_it_may() {
    let mut stage = Stage::new(&PairConfig {
        memory: "64M".to_owned(),
        resync_rate: Some("8M".to_owned()),
        ..PairConfig::default()
    });
    fill(&stage);
    stage.pair.start(Node::A).unwrap();
    let a = stage.twin(Node::A);
    a.wait_for_console("ready", STEP).unwrap();
    let load = stage.load(LoadOptions::default());
    wait_for_more(&load, 10);
    let began = Instant::now();
    stage.pair.start(Node::B).unwrap();
    stage.wait_for(Node::B, "disk becomes a copy");
    // The guest goes on meanwhile.
    wait_for_more(&load, 500);
    stage.wait_for(Node::B, "standby ready");
    let took = began.elapsed();
    assert!(took >= Duration::from_secs(2), "16 MiB took {took:?}");
    demand_clean(load);
    assert_same_disks(&stage);
}

#[test]
fn a_disk_that_somebody_else_changed_is_copied_whole() {
    let mut stage = with_a_point();
    stage.twin(Node::B).terminate();
    stage.twin(Node::B).wait_for_exit(STEP).unwrap();
    change(&stage.lab.path(&image(Node::B)));
    stage.pair.start(Node::B).unwrap();
    stage.wait_for(Node::B, "standby ready");
    let (copy, bytes, why) = copy_by(&mut stage, Node::A);
    let why = why.unwrap();
    assert!(copy == "full" && bytes > SMALL, "{copy} {bytes}");
    assert!(why.contains("changed since it was put down"), "{why}");
    assert_same_disks(&stage);
}

#[test]
fn a_disk_whose_record_is_gone_is_copied_whole() {
    let mut stage = with_a_point();
    stage.twin(Node::B).kill();
    stage.wait_for(Node::A, "solo");
    let image = stage.lab.path(&image(Node::B));
    std::fs::remove_file(image.with_extension("img.mirror")).unwrap();
    change(&image);
    stage.pair.start(Node::B).unwrap();
    stage.wait_for(Node::B, "standby ready");
    let (copy, _, why) = copy_by(&mut stage, Node::A);
    let why = why.unwrap();
    assert!(copy == "full" && why.contains("nothing is known"), "{why}");
    assert_same_disks(&stage);
}

#[test]
fn a_guest_that_ran_alone_on_its_disk_leaves_nothing_to_trust() {
    let mut stage = with_a_point();
    stage.twin(Node::B).kill();
    let alone = [
        "run",
        "--kernel",
        "pico",
        "--cmdline",
        "workload=disk rounds=1",
        "--disk",
        "path=disk-b.img",
    ];
    let (status, log) = stage.lab.evertwin_to_end("alone", &alone);
    assert!(status.success(), "{status}: {log:?}");
    stage.pair.start(Node::B).unwrap();
    stage.wait_for(Node::B, "standby ready");
    assert_eq!(copy_by(&mut stage, Node::A).0, "full");
    assert_same_disks(&stage);
}

#[test]
fn a_record_that_can_neither_be_used_nor_removed_is_named() {
    let mut stage = Stage::new(&PairConfig::default());
    let record = stage.lab.path("disk-a.img.mirror");
    std::fs::create_dir(&record).unwrap();
    stage.pair.start(Node::A).unwrap();
    let ended = stage.twin(Node::A).wait_for_exit(STEP).unwrap();
    let said = stage.twin(Node::A).log().lines();
    let named = said
        .last()
        .is_some_and(|line| line.text.contains("disk-a.img.mirror"));
    assert!(ended.code() == Some(1) && named, "{ended}: {said:?}");
}
