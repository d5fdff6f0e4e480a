//! Disks grow under the running guest, on both hosts or on none, and nothing is lost whoever dies meanwhile (I3, I10).

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::process::Output;
use std::time::{Duration, Instant};

use evertwin::lab::pair::PairConfig;
use evertwin::lab::topology::Node;
use evertwin_tests::lab::STEP;
use evertwin_tests::seed;
use evertwin_tests::stage::Stage;

const MIB: u64 = 1 << 20;
/// Size of the guest's disk at first, and what it grows to: another page of its record's bits, and no whole block at the end.
const SMALL: u64 = 64 * MIB;
const LARGE: u64 = 40 * 1024 * MIB + 512;
/// The unit that the guest writes.
const BLOCK: u64 = 4096;
/// Blocks that it writes at the disk's start, and at its end if that is a new one.
const BLOCKS: u64 = 64;

/// A guest that writes and verifies, round after round.
fn config(protection: &str) -> PairConfig {
    PairConfig {
        cmdline: format!("workload=disk blocks={BLOCKS}"),
        memory: "64M".to_owned(),
        disk: Some(SMALL),
        protection: Some(protection.to_owned()),
        // The machine may have other work to do.
        timeout: Duration::from_secs(1),
        ..PairConfig::default()
    }
}

fn grow(stage: &Stage, arguments: &[&str]) -> Output {
    stage.operate(Node::A, &[&["grow"], arguments].concat())
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn demand_done(output: &Output, bytes: u64) {
    let done = format!("done, disk 0 has {bytes} bytes");
    assert!(
        output.status.success() && said(output).contains(&done),
        "{output:?}"
    );
}

fn demand_refused(output: &Output, why: &str) {
    let refused = output.status.code() == Some(1) && said(output).contains(why);
    assert!(refused, "{why}: {output:?}");
}

fn bytes_of(stage: &Stage, image: &str) -> u64 {
    std::fs::metadata(stage.lab.path(image)).unwrap().len()
}

fn resize(stage: &Stage, image: &str, bytes: u64) {
    let file = File::options().write(true).open(stage.lab.path(image));
    file.unwrap().set_len(bytes).unwrap();
}

/// Waits for two more reports of the guest on this host, which has verified what it wrote.
fn demand_sound(stage: &mut Stage, node: Node) {
    let console = stage.twin(node).console();
    let mut from = console.len();
    for _ in 0..2 {
        let found = console.wait(from, STEP, |line| line.text.contains("disk: rounds="));
        let line = found.unwrap_or_else(|why| panic!("{node:?}: {why:?}"));
        assert!(line.text.contains("errors=0"), "{}", line.text);
        from = console.len();
    }
    let warned = console.lines();
    let warned = warned.iter().find(|line| line.text.contains("WARNING"));
    assert!(warned.is_none(), "{warned:?}");
}

/// Whether the guest has written to the end of a disk of so many bytes.
fn end_is_written(stage: &Stage, image: &str, bytes: u64) -> bool {
    let file = File::open(stage.lab.path(image)).unwrap();
    let mut block = [0; BLOCK as usize];
    let last = (bytes / BLOCK - 1) * BLOCK;
    file.read_exact_at(&mut block, last).is_ok() && block != [0; BLOCK as usize]
}

fn await_end_written(stage: &Stage, image: &str, bytes: u64) {
    let until = Instant::now() + STEP;
    while !end_is_written(stage, image, bytes) {
        assert!(Instant::now() < until, "{image} is not written at its end");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_disk_grows_on_both_hosts_and_survives_the_death_of_one() {
    let mut stage = Stage::protected(&config("ft"));
    demand_done(&grow(&stage, &["--size", &LARGE.to_string()]), LARGE);
    for image in ["disk-a.img", "disk-b.img"] {
        assert_eq!(bytes_of(&stage, image), LARGE);
        await_end_written(&stage, image, LARGE);
    }
    stage.twin(Node::A).kill();
    stage.wait_for(Node::B, "promoted");
    demand_sound(&mut stage, Node::B);
    // Who was killed has a copy of the grown disk again, and its guest goes on there.
    stage.pair.start(Node::A).unwrap();
    stage.wait_for(Node::A, "standby ready");
    stage.twin(Node::B).kill();
    stage.wait_for(Node::A, "promoted");
    demand_sound(&mut stage, Node::A);
    // Alone it grows as well; the one that comes then has too little, and says what is missing.
    demand_done(&grow(&stage, &["--size", "41G"]), 41 << 30);
    await_end_written(&stage, "disk-a.img", 41 << 30);
    stage.pair.start(Node::B).unwrap();
    let ended = stage.twin(Node::B).wait_for_exit(STEP).unwrap();
    assert_eq!(ended.code(), Some(1));
    let lines = stage.twin(Node::B).log().lines();
    let fix = format!("truncate -s {}", 41u64 << 30);
    assert!(
        lines.iter().any(|line| line.text.contains(&fix)),
        "{lines:?}"
    );
    resize(&stage, "disk-b.img", 41 << 30);
    stage.pair.start(Node::B).unwrap();
    stage.wait_for(Node::B, "standby ready");
    stage.twin(Node::A).kill();
    stage.wait_for(Node::B, "promoted");
    demand_sound(&mut stage, Node::B);
}

#[test]
fn a_kill_at_any_moment_leaves_a_disk_of_the_old_or_of_the_new_size() {
    let mut random = seed::generator();
    for protection in ["ft", "ft", "ft", "ha"] {
        let mut stage = Stage::protected(&config(protection));
        let delay = Duration::from_micros(random.u64(0..80_000));
        println!("{protection}: killed after {delay:?}");
        let size = (2 * SMALL).to_string();
        let answered = std::thread::scope(|scope| {
            let (pair, size) = (stage.pair.directory().to_owned(), &size);
            let evertwin = evertwin_tests::lab::evertwin_binary();
            let host = stage.pair.topology.a.clone();
            let asking = scope.spawn(move || {
                let config = pair.join("vm.toml");
                let mut command = host.command(evertwin);
                command
                    .args(["grow", "--node", "a", "--size", size])
                    .arg(config);
                command.output().unwrap()
            });
            std::thread::sleep(delay);
            stage.twin(Node::A).kill();
            asking.join().unwrap()
        });
        stage.wait_for(Node::B, "promoted");
        if protection == "ha" {
            let b = stage.twin(Node::B);
            b.wait_for_console("ready", STEP).unwrap();
        }
        demand_sound(&mut stage, Node::B);
        // What the operator was told holds.
        if answered.status.success() {
            let again = stage.operate(Node::B, &["grow", "--size", &size]);
            demand_refused(&again, "and so is the guest's disk");
        }
        // The host that is back may have a larger or a smaller image: it is a copy, and the guest can go on there.
        stage.pair.start(Node::A).unwrap();
        stage.wait_for(Node::A, "standby ready");
        let again = stage.operate(Node::B, &["grow", "--size", "256M"]);
        demand_done(&again, 256 * MIB);
        stage.twin(Node::B).kill();
        stage.wait_for(Node::A, "promoted");
        if protection == "ha" {
            let a = stage.twin(Node::A);
            a.wait_for_console("ready", STEP).unwrap();
        }
        demand_sound(&mut stage, Node::A);
        if protection == "ft" {
            await_end_written(&stage, "disk-a.img", 256 * MIB);
        }
    }
}

#[test]
fn what_cant_be_is_refused_and_changes_nothing() {
    let mut stage = Stage::protected(&config("ft"));
    let status = |stage: &Stage| said(&stage.operate(Node::A, &["status"]));
    for (arguments, why) in [
        (&["--size", "32M"][..], "can't shrink"),
        (
            &["--size", "64M"],
            "make the image larger on both hosts first",
        ),
        (&[], "make the image larger on both hosts first"),
        (&["--size", "67108865"], "multiple of 512"),
        (&["--size", "512T"], "multiple of 512, at most"),
        (&["--size", "much"], "for example 20G"),
        (&["--disk", "1", "--size", "1G"], "no disk 1"),
    ] {
        demand_refused(&grow(&stage, arguments), why);
    }
    let of_standby = stage.operate(Node::B, &["grow", "--size", "1G"]);
    demand_refused(&of_standby, "not the primary: ask the other one");
    // Only here: the standby has the last word.
    resize(&stage, "disk-a.img", 2 * SMALL);
    demand_refused(&grow(&stage, &[]), "on the standby's host");
    // There, and not empty.
    resize(&stage, "disk-b.img", 2 * SMALL);
    let file = File::options()
        .write(true)
        .open(stage.lab.path("disk-b.img"));
    file.unwrap()
        .write_all_at(b"something", SMALL + 5000)
        .unwrap();
    demand_refused(&grow(&stage, &[]), "not empty behind the disk's end");
    assert!(status(&stage).contains("protected"));
    demand_sound(&mut stage, Node::A);
    // The way out that it names.
    resize(&stage, "disk-b.img", SMALL);
    resize(&stage, "disk-b.img", 2 * SMALL);
    demand_done(&grow(&stage, &[]), 2 * SMALL);
    await_end_written(&stage, "disk-b.img", 2 * SMALL);
    demand_sound(&mut stage, Node::A);
    let scrub = stage.operate(Node::A, &["scrub"]);
    assert!(said(&scrub).contains("differences=0"), "{scrub:?}");
}
