//! A copy of a disk that was interrupted goes on where it stopped, whoever stopped it (I10).

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use evertwin::lab::client::{Load, LoadOptions};
use evertwin::lab::events::Line;
use evertwin::lab::pair::PairConfig;
use evertwin::lab::topology::Node;
use evertwin_tests::lab::STEP;
use evertwin_tests::stage::{Stage, demand_clean, wait_for_more};

const MIB: u64 = 1 << 20;
/// The disk, and what of it is neither a hole nor the guest's.
const DISK: u64 = 256 * MIB;
const FULL: std::ops::Range<u64> = 16 * MIB..240 * MIB;
/// In MiB per second.
const RATE: u64 = 32;
/// The copy is interrupted when so much of it has come.
const PART: u64 = 144 * MIB;
/// What has come is noted a second later, and what was being written then does not count.
const LEFT: u64 = DISK - PART + 2 * RATE * MIB;

fn message_is(line: &Line, message: &str) -> bool {
    line.message().as_deref() == Some(message)
}

fn number(line: &Line, field: &str) -> u64 {
    line.field(field).unwrap().as_u64().unwrap()
}

/// A pair whose primary runs, with a disk that takes its time to be copied.
fn with_a_full_disk() -> Stage {
    let mut stage = Stage::new(&PairConfig {
        memory: "64M".to_owned(),
        disk: Some(DISK),
        resync_rate: Some(format!("{RATE}M")),
        ..PairConfig::default()
    });
    let image = stage.lab.path("disk-a.img");
    let disk = File::options().write(true).open(image).unwrap();
    for at in FULL.step_by(MIB as usize) {
        // No block is like another.
        let words = (at / 8..(at + MIB) / 8).flat_map(|n| (n ^ 0x5a5a_5a5a).to_le_bytes());
        disk.write_all_at(&words.collect::<Vec<_>>(), at).unwrap();
    }
    stage.pair.start(Node::A).unwrap();
    let a = stage.twin(Node::A);
    a.wait_for_console("ready", STEP).unwrap();
    write(&stage, 50);
    stage
}

/// Writes through the guest until so many more are acknowledged.
fn write(stage: &Stage, more: u64) {
    let load = stage.load(LoadOptions::default());
    wait_for_more(&load, more);
    demand_clean(load);
}

/// Starts the standby and waits until it has a part of the disk.
fn copy_in_part(stage: &mut Stage) {
    stage.pair.start(Node::B).unwrap();
    let b = stage.twin(Node::B);
    let far = |line: &Line| message_is(line, "sync progress") && number(line, "disk_bytes") >= PART;
    b.log().wait(0, STEP, far).unwrap();
    let status = stage.operate(Node::B, &["status"]);
    let status = String::from_utf8(status.stdout).unwrap();
    assert!(
        status.contains("filling") && status.contains("sync "),
        "{status}"
    );
}

/// Lines with this message that a twin has said so far.
fn said(stage: &mut Stage, node: Node, message: &str) -> Vec<Line> {
    let lines = stage.twin(node).log().lines();
    let lines = lines.into_iter();
    lines.filter(|line| message_is(line, message)).collect()
}

/// The pair comes to be protected, with what was left of the copy, and its disks are the same.
fn goes_on(stage: &mut Stage, from: usize, load: Option<Load>) {
    let b = stage.twin(Node::B);
    let ready = |line: &Line| message_is(line, "standby ready");
    b.log().wait(from, 4 * STEP, ready).unwrap();
    let copy = said(stage, Node::A, "disk copy").pop().unwrap();
    assert_eq!(copy.field("copy").unwrap(), "resumed", "{}", copy.text);
    let left = number(&copy, "bytes");
    assert!(left <= LEFT, "{left} bytes were left");
    let sent = said(stage, Node::A, "sync progress");
    let sent = sent.last().map(|line| number(line, "bytes"));
    load.map(demand_clean);
    write(stage, 100);
    stage.await_same_images(["disk-a.img", "disk-b.img"]);
    // Memory comes behind the disk: this says less than the last line of the disk's round would.
    assert!(sent.is_none_or(|sent| sent <= LEFT + 64 * MIB), "{sent:?}");
}

#[test]
fn a_standby_that_is_killed_goes_on_where_it_was() {
    let mut stage = with_a_full_disk();
    let load = stage.load(LoadOptions::default());
    copy_in_part(&mut stage);
    stage.twin(Node::B).kill();
    wait_for_more(&load, 100);
    stage.pair.start(Node::B).unwrap();
    goes_on(&mut stage, 0, Some(load));
    // It is as good a copy as any.
    stage.twin(Node::A).kill();
    stage.wait_for(Node::B, "promoted");
    write(&stage, 100);
}

#[test]
fn a_copy_whose_link_is_cut_goes_on_where_it_was() {
    let mut stage = with_a_full_disk();
    let load = stage.load(LoadOptions::default());
    copy_in_part(&mut stage);
    let from = stage.twin(Node::B).log().len();
    stage.pair.topology.set_replication_link(false).unwrap();
    stage.wait_for(Node::B, "link down");
    wait_for_more(&load, 100);
    stage.pair.topology.set_replication_link(true).unwrap();
    goes_on(&mut stage, from, Some(load));
}

#[test]
fn a_primary_that_is_killed_goes_on_with_its_copy() {
    let mut stage = with_a_full_disk();
    copy_in_part(&mut stage);
    write(&stage, 50);
    let from = stage.twin(Node::B).log().len();
    stage.twin(Node::A).kill();
    // Nobody boots from what there is of the copy.
    stage.wait_for(Node::B, "link down");
    stage.pair.start(Node::A).unwrap();
    stage.wait_for(Node::A, "solo");
    goes_on(&mut stage, from, None);
    assert!(said(&mut stage, Node::B, "promoted").is_empty());
}

#[test]
fn both_that_are_killed_go_on() {
    let mut stage = with_a_full_disk();
    copy_in_part(&mut stage);
    stage.twin(Node::A).kill();
    stage.twin(Node::B).kill();
    for node in [Node::A, Node::B] {
        stage.pair.start(node).unwrap();
    }
    stage.wait_for(Node::A, "solo");
    goes_on(&mut stage, 0, None);
}

#[test]
fn an_unfinished_copy_that_somebody_else_changed_begins_anew() {
    let mut stage = with_a_full_disk();
    copy_in_part(&mut stage);
    stage.twin(Node::B).kill();
    let image = stage.lab.path("disk-b.img");
    let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(60);
    let record = File::options()
        .write(true)
        .open(image.with_extension("img.mirror"));
    let times = std::fs::FileTimes::new().set_modified(long_ago);
    record.unwrap().set_times(times).unwrap();
    let file = File::options().write(true).open(&image).unwrap();
    file.write_all_at(&[0xee; 4096], FULL.start).unwrap();
    stage.pair.start(Node::B).unwrap();
    stage.wait_for(Node::B, "standby ready");
    let copy = said(&mut stage, Node::A, "disk copy").pop().unwrap();
    let why = copy.field("why").unwrap();
    assert!(
        copy.field("copy").unwrap() == "full" && why.as_str().unwrap().contains("changed since"),
        "{}",
        copy.text
    );
    stage.await_same_images(["disk-a.img", "disk-b.img"]);
}
