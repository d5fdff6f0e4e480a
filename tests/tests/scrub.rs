//! Both twins' disks are compared while the guest runs, and what differs is repaired from the primary's (I10).

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::process::Output;
use std::time::{Duration, Instant};

use evertwin::lab::client::LoadOptions;
use evertwin::lab::pair::PairConfig;
use evertwin::lab::topology::Node;
use evertwin_tests::lab::STEP;
use evertwin_tests::stage::{Stage, demand_clean, wait_for_more};

const MIB: u64 = 1 << 20;
/// Size of the guest's disk.
const DISK: u64 = 64 * MIB;
/// Size of its memory.
const MEMORY: u64 = 64 * MIB;
/// The unit in which disks are compared.
const BLOCK: u64 = 64 << 10;

/// A guest that runs this on a disk that is compared as fast as can be.
fn config(cmdline: &str) -> PairConfig {
    PairConfig {
        cmdline: cmdline.to_owned(),
        memory: "64M".to_owned(),
        disk: Some(DISK),
        scrub_rate: Some("1G".to_owned()),
        // The machine may have other work to do: a pass ends with the protection.
        timeout: Duration::from_secs(2),
        ..PairConfig::default()
    }
}

/// Writes all over its disk for half a second, and is quiet for one.
const BURSTS: &str = "workload=bursts writes=128 busy_ms=500 pause_ms=1000";

/// What a pass has found.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    bytes: u64,
    differences: u64,
    repaired: u64,
    busy: u64,
    unreadable: u64,
}

fn found(output: &Output) -> Found {
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().last().unwrap_or_default();
    assert!(line.starts_with("scrub: "), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!said.contains("ended early"), "{said}");
    let field = |name: &str| {
        let mut fields = line.split(' ').filter_map(|word| word.split_once('='));
        let value = fields.find(|(key, _)| *key == name).unwrap().1;
        value.parse::<u64>().unwrap()
    };
    Found {
        bytes: field("bytes"),
        differences: field("differences"),
        repaired: field("repaired"),
        busy: field("busy"),
        unreadable: field("unreadable"),
    }
}

/// Has the disks compared, which must end well.
fn scrub(stage: &Stage) -> Found {
    scrub_with(stage, &["scrub"])
}

fn scrub_with(stage: &Stage, command: &[&str]) -> Found {
    let output = stage.operate(Node::A, command);
    let found = found(&output);
    assert!(output.status.success(), "{output:?}");
    found
}

/// Changes an image behind the back of the twin that has it open.
fn rot(stage: &Stage, image: &str, offset: u64) {
    let mut options = File::options();
    let options = options.read(true).write(true);
    let file = options.open(stage.lab.path(image)).unwrap();
    let mut bytes = [0; 512];
    file.read_exact_at(&mut bytes, offset).unwrap();
    file.write_all_at(&bytes.map(|byte| !byte), offset).unwrap();
}

/// What a twin refuses, and why.
fn assert_refused(stage: &Stage, node: Node, why: &str) {
    let output = stage.operate(node, &["scrub"]);
    let said = String::from_utf8_lossy(&output.stderr);
    let refused = output.status.code() == Some(1) && said.contains(why);
    assert!(refused, "{output:?}");
}

#[test]
fn what_rots_at_the_standby_is_found_and_repaired() {
    let mut stage = Stage::protected(&config(BURSTS));
    let clean = scrub(&stage);
    assert_eq!((clean.differences, clean.bytes), (0, DISK));
    // Behind blocks that the guest writes, in a hole, in the last block; two in one block.
    for offset in [8192, 12288, 7 * MIB + 16384, 40 * MIB + 8192, DISK - 512] {
        rot(&stage, "disk-b.img", offset);
    }
    let rotten = scrub(&stage);
    let found = Found {
        bytes: DISK,
        differences: 4,
        repaired: 4,
        busy: 0,
        unreadable: 0,
    };
    assert_eq!(rotten, found);
    stage.wait_for(
        Node::A,
        "64 KiB of the standby's disk differ from this one's: they are sent again",
    );
    stage.await_same_images(["disk-a.img", "disk-b.img"]);
    assert_eq!(scrub(&stage).differences, 0);
    let status = stage.operate(Node::A, &["status"]);
    let said = String::from_utf8_lossy(&status.stdout);
    assert!(said.contains("ago: bytes=67108864 differences=0"), "{said}");
    // The guest verifies what it has written, here and there.
    stage.twin(Node::A).kill();
    stage.wait_for(Node::B, "promoted");
    let b = stage.twin(Node::B);
    b.wait_for_console("quiet", STEP).unwrap();
    let log = b.log().lines();
    let warned = log.iter().find(|line| line.text.contains("WARNING"));
    assert!(warned.is_none(), "{warned:?}");
}

#[test]
fn a_busy_guests_disks_are_the_same() {
    // No two requests at one place at a time: what comes of those is nobody's to say. The first one comes once the pair is protected.
    for busy in [
        "workload=io pattern=random do=write depth=1 kib=4 after_ms=3000",
        "workload=io pattern=sequential do=write depth=8 kib=32 after_ms=3000",
    ] {
        let mut stage = Stage::protected(&config(busy));
        let a = stage.twin(Node::A);
        a.wait_for_console("io: requests=", STEP).unwrap();
        for _ in 0..2 {
            let output = stage.operate(Node::A, &["scrub"]);
            let found = found(&output);
            println!("{busy}: {found:?}");
            // Blocks that are written to whenever they are looked at are no differences.
            assert_eq!(output.status.success(), found.busy == 0, "{output:?}");
            assert_eq!((found.differences, found.unreadable), (0, 0), "{busy}");
            assert_eq!(found.bytes + found.busy * BLOCK, DISK);
            assert!(found.bytes >= DISK / 2, "{busy}: {found:?}");
        }
    }
}

#[test]
fn both_memories_are_the_same() {
    let kv = config(&PairConfig::default().cmdline);
    let stage = Stage::protected(&kv);
    let load = stage.load(LoadOptions::default());
    for _ in 0..2 {
        wait_for_more(&load, 200);
        let output = stage.operate(Node::A, &["scrub", "--memory"]);
        let found = found(&output);
        println!("{found:?}");
        // The guest never leaves some of its memory alone.
        assert_eq!((found.differences, found.unreadable), (0, 0));
        assert_eq!(found.bytes + found.busy * BLOCK, DISK + MEMORY);
        assert!(found.busy < 256, "{found:?}");
    }
    demand_clean(load);
    let found = scrub_with(&stage, &["scrub", "--memory"]);
    assert_eq!((found.bytes, found.differences), (DISK + MEMORY, 0));
}

/// Of a process's address space.
fn mapped(pid: u32) -> u64 {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap();
    let pages = statm.split(' ').next().unwrap();
    pages.parse::<u64>().unwrap() * 4096
}

/// What epochs are compared with is given back, and the next one comes without it.
#[test]
fn an_idle_pair_forgets_what_was_sent() {
    let mut stage = Stage::protected(&config(&PairConfig::default().cmdline));
    let pid = stage.twin(Node::A).id();
    for _ in 0..2 {
        let load = stage.load(LoadOptions::default());
        wait_for_more(&load, 200);
        demand_clean(load);
        let busy = mapped(pid);
        // The cache's own size; the guest is quiet from here on.
        let until = Instant::now() + STEP;
        while mapped(pid) + 64 * MIB > busy {
            assert!(Instant::now() < until, "{} of {busy}", mapped(pid));
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    let load = stage.load(LoadOptions::default());
    wait_for_more(&load, 200);
    demand_clean(load);
    let found = scrub_with(&stage, &["scrub", "--memory"]);
    assert_eq!((found.bytes, found.differences), (DISK + MEMORY, 0));
}

#[test]
fn each_disk_is_compared() {
    let stage = Stage::protected(&PairConfig {
        second_disk: Some(3 * BLOCK + 512),
        ..config("workload=idle")
    });
    rot(&stage, "disk-b.img", 5 * MIB);
    rot(&stage, "disk2-b.img", 3 * BLOCK);
    let found = scrub(&stage);
    assert_eq!(found.bytes, DISK + 3 * BLOCK + 512);
    assert_eq!((found.differences, found.repaired), (2, 2));
    stage.await_same_images(["disk-a.img", "disk-b.img"]);
    stage.await_same_images(["disk2-a.img", "disk2-b.img"]);
}

#[test]
fn disks_are_compared_where_nothing_else_is_replicated() {
    let stage = Stage::protected(&PairConfig {
        protection: Some("ha".to_owned()),
        ..config(BURSTS)
    });
    rot(&stage, "disk-b.img", 40 * MIB + 8192);
    let found = scrub(&stage);
    assert_eq!((found.differences, found.repaired), (1, 1));
    stage.await_same_images(["disk-a.img", "disk-b.img"]);
    let output = stage.operate(Node::A, &["scrub", "--memory"]);
    let said = String::from_utf8_lossy(&output.stderr);
    let refused = output.status.code() == Some(1) && said.contains("leave --memory out");
    assert!(refused, "{output:?}");
}

#[test]
fn a_guest_leaves_a_disk_with_blocks_that_cant_be_read() {
    let mut stage = Stage::protected(&config(BURSTS));
    // There is nothing to be read where the image ends too early.
    let image = File::options()
        .write(true)
        .open(stage.lab.path("disk-a.img"));
    image.unwrap().set_len(DISK - BLOCK).unwrap();
    let output = stage.operate(Node::A, &["scrub"]);
    let said = String::from_utf8_lossy(&output.stdout);
    let told = output.status.code() == Some(1) && said.contains("unreadable=1");
    assert!(told, "{output:?}");
    stage.wait_for(Node::A, "a disk fails here: the guest goes on at the peer");
    stage.wait_for(Node::B, "promoted");
    stage.wait_for_role(Node::B, "protected");
    let b = stage.twin(Node::B);
    b.wait_for_console("quiet", STEP).unwrap();
}

#[test]
fn a_pass_ends_with_the_protection_and_says_so() {
    let mut stage = Stage::new(&PairConfig {
        scrub_rate: Some("2M".to_owned()),
        ..config(BURSTS)
    });
    stage.pair.start(Node::A).unwrap();
    stage.wait_for_role(Node::A, "solo");
    assert_refused(&stage, Node::A, "the guest is not protected");
    stage.pair.start(Node::B).unwrap();
    stage.wait_for(Node::A, "protected");
    assert_refused(&stage, Node::B, "ask the other one");
    std::thread::scope(|scope| {
        // Half a minute, if nothing comes between.
        let pair = &stage;
        let pass = scope.spawn(|| pair.operate(Node::A, &["scrub"]));
        let until = Instant::now() + STEP;
        loop {
            let status = pair.operate(Node::A, &["status"]);
            if String::from_utf8_lossy(&status.stdout).contains("% of 64 MiB, now disk 0") {
                break;
            }
            assert!(Instant::now() < until, "{status:?}");
        }
        assert_refused(pair, Node::A, "under way already");
        assert!(!pass.is_finished());
        let leave = pair.operate(Node::B, &["leave"]);
        assert!(leave.status.success(), "{leave:?}");
        let output = pass.join().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        let why = "the scrub ended early: the guest is not protected any more";
        assert!(said.contains(why), "{said}");
    });
    // Its next life is compared as well.
    stage.pair.start(Node::B).unwrap();
    stage.wait_for_role(Node::A, "protected");
}
