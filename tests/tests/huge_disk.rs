//! Disks as large as they come: what is not written to them costs nothing.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use evertwin::lab::pair::PairConfig;
use evertwin::lab::topology::Node;
use evertwin_tests::lab::STEP;
use evertwin_tests::stage::Stage;
use rustix::fs::{SeekFrom, seek};

/// 16 TiB less one MiB: a file of all 16 is more than ext4 holds.
const BYTES: u64 = (16 << 40) - (1 << 20);
const PIECE: u64 = 64 << 10;

/// What an image holds besides zeroes, by its place.
fn contents(image: &Path) -> BTreeMap<u64, Vec<u8>> {
    let file = File::open(image).unwrap();
    let mut found = BTreeMap::new();
    let mut at = 0;
    while let Ok(start) = seek(&file, SeekFrom::Data(at)) {
        let end = seek(&file, SeekFrom::Hole(start)).unwrap();
        assert!(end - start < 1 << 30, "{} is not sparse", image.display());
        for place in (start / PIECE..end.div_ceil(PIECE)).map(|piece| piece * PIECE) {
            let mut bytes = vec![0; PIECE.min(BYTES - place) as usize];
            file.read_exact_at(&mut bytes, place).unwrap();
            if bytes.iter().any(|byte| *byte != 0) {
                found.insert(place, bytes);
            }
        }
        at = end;
    }
    found
}

/// Waits until both hold the same, and something close to their end.
fn await_same(stage: &Stage) {
    let read = |node: Node| {
        let name = format!("disk-{}.img", node.name());
        contents(&stage.lab.path(&name))
    };
    let deadline = Instant::now() + STEP;
    loop {
        let [a, b] = [Node::A, Node::B].map(read);
        let far = a.keys().next_back().is_some_and(|at| *at > BYTES / 2);
        if a == b && far {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "{} and {} pieces",
            a.len(),
            b.len()
        );
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Waits until the guest has written to, and verified, blocks all over its disk.
fn bursts(stage: &mut Stage, node: Node) {
    let console = stage.twin(node).console();
    let is_quiet = |line: &evertwin::lab::events::Line| line.text.trim_end().ends_with("quiet");
    let line = console.wait(console.len(), STEP, is_quiet);
    let line = line.unwrap_or_else(|why| panic!("no burst: {why:?}"));
    assert!(line.text.contains(" errors=0 "), "{}", line.text);
}

#[test]
fn sixteen_tebibytes_are_mirrored_and_brought_up_again() {
    let mut stage = Stage::new(&PairConfig {
        cmdline: "workload=bursts blocks=64 writes=16 busy_ms=300 pause_ms=1200".to_owned(),
        memory: "64M".to_owned(),
        disk: Some(BYTES),
        ..PairConfig::default()
    });
    stage.protect();
    bursts(&mut stage, Node::A);
    stage.wait_for(
        Node::A,
        "both disks know a point: a later copy needs only what changes from here on",
    );
    stage.twin(Node::B).kill();
    stage.wait_for(Node::A, "solo");
    bursts(&mut stage, Node::A);
    stage.pair.start(Node::B).unwrap();
    stage.wait_for(Node::B, "standby ready");
    let lines = stage.twin(Node::A).log().lines();
    let copies = lines
        .iter()
        .filter(|line| line.message().as_deref() == Some("disk copy"));
    let kinds: Vec<_> = copies.filter_map(|line| line.field("copy")).collect();
    assert_eq!(kinds, ["full", "delta"]);
    await_same(&stage);
    stage.twin(Node::A).kill();
    stage.wait_for(Node::B, "promoted");
    bursts(&mut stage, Node::B);
}
