//! Disks that are copies of each other, and what is made of one that is not.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use evertwin::lab::client::LoadOptions;
use evertwin::lab::events::Line;
use evertwin::lab::pair::PairConfig;
use evertwin::lab::topology::{Node, REPLICATION};
use evertwin_tests::lab::{SLOW, STEP};
use evertwin_tests::stage::{Stage, demand_clean, wait_for_more};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change, mount_remount};
use rustix::thread::{UnshareFlags, unshare_unsafe};

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

/// Waits for an event of twin a, behind what it has said until then.
fn await_event(stage: &mut Stage, from: usize, event: &str) {
    let said = |line: &Line| line.message().as_deref() == Some(event);
    let came = stage.twin(Node::A).log().wait(from, 2 * STEP, said);
    came.unwrap_or_else(|why| panic!("{event}: {why:?}"));
}

/// Waits until `evertwin status` of a twin says what is wanted.
fn await_status(stage: &Stage, node: Node, wanted: impl Fn(&str) -> bool) {
    let until = Instant::now() + STEP;
    loop {
        let output = stage.operate(node, &["status"]);
        let said = String::from_utf8_lossy(&output.stdout);
        if output.status.success() && wanted(&said) {
            return;
        }
        assert!(Instant::now() < until, "{node:?}: {output:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A small file system, in a mount namespace of this thread's own: it goes with the test.
fn mount_small(directory: &Path, bytes: u64) {
    // SAFETY: NEWNS changes what this thread and its children see mounted; no descriptor table is unshared.
    #[allow(unsafe_code)]
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.unwrap();
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).unwrap();
    let size = std::ffi::CString::new(format!("size={bytes}")).unwrap();
    mount("tmpfs", directory, "tmpfs", MountFlags::empty(), &*size).unwrap();
}

#[test]
fn a_full_disk_of_the_primary_is_no_matter_for_the_guest() {
    let mut stage = Stage::new(&PairConfig {
        memory: "64M".to_owned(),
        ..PairConfig::default()
    });
    // Room for the log's beginning, and no more.
    let [small, image]: [PathBuf; 2] = ["small", "disk-a.img"].map(|name| stage.lab.path(name));
    std::fs::create_dir(&small).unwrap();
    mount_small(&small, 256 << 10);
    let disk = small.join("disk.img");
    File::create(&disk).unwrap().set_len(64 << 20).unwrap();
    std::fs::remove_file(&image).unwrap();
    std::os::unix::fs::symlink(&disk, &image).unwrap();
    stage.protect();
    let load = stage.load(LoadOptions::default());
    stage.wait_for(Node::A, "a disk fails here: the guest goes on at the peer");
    stage.wait_for(Node::B, "promoted");
    wait_for_more(&load, 300);
    // What it is to repeat as the standby does not fit either: both sides say so, and it tries again and again.
    for _ in 0..2 {
        let from = stage.twin(Node::A).log().len();
        await_event(
            &mut stage,
            from,
            "a disk fails here: this standby tries it again",
        );
    }
    let named = |line: &str| line.contains("disk-a.img") && line.contains("No space left");
    let lines = stage.twin(Node::A).log().lines();
    assert!(lines.iter().any(|line| named(&line.text)), "{lines:?}");
    stage.wait_for(
        Node::B,
        "a disk of the peer's fails: it is no standby until that is repaired",
    );
    await_status(&stage, Node::A, |said| said.contains("disk   fails here"));
    await_status(&stage, Node::B, |said| {
        named(said) && said.contains("disk   fails at the peer")
    });
    let refused = stage.operate(Node::A, &["switchover"]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    wait_for_more(&load, 100);
    // Once there is room, it is the standby again, by itself.
    let from = stage.twin(Node::A).log().len();
    mount_remount(&small, MountFlags::empty(), "size=256M").unwrap();
    await_event(&mut stage, from, "standby ready");
    stage.wait_for_role(Node::B, "protected");
    for node in [Node::A, Node::B] {
        await_status(&stage, node, |said| !said.contains("fails"));
    }
    wait_for_more(&load, 100);
    stage.twin(Node::B).kill();
    stage.wait_for(Node::A, "promoted");
    wait_for_more(&load, 100);
    demand_clean(load);
}
