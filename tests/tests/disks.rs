//! Disks that are copies of each other, and what is made of one that is not.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use evertwin::lab::pair::PairConfig;
use evertwin::lab::topology::{Node, REPLICATION};
use evertwin_tests::lab::{SLOW, STEP};
use evertwin_tests::stage::Stage;

/// Waits until a file is there, or is not.
fn await_file(path: &Path, there: bool) {
    let deadline = Instant::now() + STEP;
    while path.exists() != there {
        assert!(Instant::now() < deadline, "{}: {there}", path.display());
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn an_unfinished_copy_is_not_booted() {
    let mut stage = Stage::new(&PairConfig {
        memory: "64M".to_owned(),
        ..PairConfig::default()
    });
    let arbiter = stage.lab.path("arbiter");
    let [image, mark]: [PathBuf; 2] =
        ["disk-a.img", "disk-a.img.unfinished"].map(|name| stage.lab.path(name));
    // Behind the guest's own, so that a copy takes its time.
    let bulk = vec![0x5a; 24 << 20];
    let disk = File::options().write(true).open(&image).unwrap();
    disk.write_all_at(&bulk, 32 << 20).unwrap();
    stage.protect();
    stage.lab.redis(&["SET", "key", "kept"]);
    // B's disk is a whole copy and says nothing else, once it is durable.
    await_file(&stage.lab.path("disk-b.img.unfinished"), false);

    stage.twin(Node::A).kill();
    stage.wait_for(Node::B, "promoted");
    let b = stage.pair.topology.b.clone();
    b.limit_outbound(REPLICATION, 60 / SLOW).unwrap();
    stage.pair.start(Node::A).unwrap();
    await_file(&mark, true);
    stage.twin(Node::A).kill();
    stage.twin(Node::B).kill();
    b.heal_outbound(REPLICATION).unwrap();

    let alone = ["run", "--kernel", "pico", "--disk", "path=disk-a.img"];
    let (status, log) = stage.lab.evertwin_to_end("alone", &alone);
    let named = log
        .iter()
        .any(|line| line.contains("disk-a.img.unfinished"));
    assert!(status.code() == Some(1) && named, "{status}: {log:?}");
    // Without its record a would come first, and have b's disk overwritten by what there is of its copy.
    let record = std::fs::read(&arbiter).unwrap();
    std::fs::remove_file(&arbiter).unwrap();
    stage.pair.start(Node::A).unwrap();
    assert_eq!(
        stage.twin(Node::A).wait_for_exit(STEP).unwrap().code(),
        Some(1)
    );
    assert!(mark.exists() && !arbiter.exists());

    // With its record all is as it was: b has the guest, and finishes the copy.
    std::fs::write(&arbiter, record).unwrap();
    stage.pair.start(Node::A).unwrap();
    stage.pair.start(Node::B).unwrap();
    stage.wait_for(Node::B, "protected");
    await_file(&mark, false);
    stage.twin(Node::B).kill();
    stage.wait_for(Node::A, "promoted");
    assert_eq!(stage.lab.redis(&["GET", "key"]), "kept");
}
