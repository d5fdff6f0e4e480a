//! Wrong input: each is answered with one line that names the thing and the fix, and leaves nothing behind.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::path::Path;

use evertwin::lab::pair::{PairConfig, make_keys};
use evertwin::lab::process::Process;
use evertwin::lab::topology::Node;
use evertwin_tests::kernel::{elf, out_and_halt};
use evertwin_tests::lab::{STEP, TestLab, evertwin_binary, tool};

const NET: &str = "tap=tap0,mac=52:54:00:12:34:56";

/// The names in a directory, without the harness's own logs and the arbiter's lock, which stays by design: a lock file
/// that is removed guards nothing.
fn names(directory: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    names
        .filter(|name| {
            !name.ends_with(".log") && !name.ends_with(".console") && name != "arbiter.lock"
        })
        .collect()
}

/// Demands that this process refuses with one line that has all of `words` in it.
fn demand_refusal(case: &str, mut process: Process, words: &[&str]) {
    let status = process
        .wait_for_exit(STEP)
        .unwrap_or_else(|error| panic!("{case}: {error}"));
    let lines: Vec<String> = process
        .log()
        .lines()
        .into_iter()
        .map(|line| line.text)
        .collect();
    let code = status
        .code()
        .unwrap_or_else(|| panic!("{case}: ended by {status}: {lines:#?}"));
    assert!(
        code != 0 && code != 101,
        "{case}: exit code {code}: {lines:#?}"
    );
    let last = lines
        .last()
        .unwrap_or_else(|| panic!("{case}: says nothing"));
    for word in words {
        assert!(last.contains(word), "{case}: {word:?} is not in {last:?}");
    }
    let errors = lines
        .iter()
        .filter(|line| !line.contains(" INFO ") && !line.contains(" WARN "))
        .count();
    assert_eq!(errors, 1, "{case}: more than one line: {lines:#?}");
    println!("{case}: {last}");
}

/// Runs `evertwin run` with these arguments and demands a refusal that leaves no file behind.
fn refuse(lab: &TestLab, case: &str, arguments: &[&str], words: &[&str]) {
    let before = names(lab.directory());
    let arguments = [&["run"], arguments].concat();
    demand_refusal(case, lab.evertwin(case, &arguments), words);
    assert_eq!(
        names(lab.directory()),
        before,
        "{case}: files were left behind"
    );
}

#[test]
fn wrong_kernels() {
    let lab = TestLab::new();
    let good = elf(&out_and_halt(0x80, 1));
    let mut class32 = good.clone();
    class32[4] = 1;
    let mut arm = good.clone();
    arm[18] = 183;
    std::fs::write(lab.path("text"), "this is no kernel\n").unwrap();
    std::fs::write(lab.path("empty"), "").unwrap();
    std::fs::write(lab.path("class32"), class32).unwrap();
    std::fs::write(lab.path("arm"), arm).unwrap();
    std::fs::write(lab.path("torn"), &good[..100]).unwrap();
    for name in ["nonesuch", "text", "empty", "class32", "arm", "torn", "."] {
        refuse(
            &lab,
            &format!("kernel {name}"),
            &["--kernel", name, "--memory", "16M"],
            &[name],
        );
    }
    refuse(
        &lab,
        "initrd",
        &["--kernel", "pico", "--initrd", "nonesuch"],
        &["nonesuch"],
    );
    // Neither may be read for ever.
    let zero = ["--kernel", "pico", "--initrd", "/dev/zero"];
    refuse(&lab, "endless", &zero, &["/dev/zero", "regular"]);
    // A kernel that asks for memory beyond what the VM has.
    refuse(
        &lab,
        "small",
        &["--kernel", "pico", "--memory", "1M"],
        &["memory"],
    );
}

#[test]
fn wrong_memory_sizes() {
    let lab = TestLab::new();
    for size in [
        "0",
        "lots",
        "-1M",
        "12Q",
        "4095",
        "99999999999999999G",
        "1000T",
        "9000G",
        "",
    ] {
        let memory = format!("--memory={size}");
        refuse(
            &lab,
            &format!("memory {size}"),
            &["--kernel", "pico", &memory],
            &["memory"],
        );
    }
}

#[test]
fn wrong_disks() {
    let lab = TestLab::new();
    std::fs::write(lab.path("odd.img"), [0; 1000]).unwrap();
    std::fs::write(lab.path("empty.img"), "").unwrap();
    std::fs::create_dir(lab.path("directory")).unwrap();
    for name in ["nonesuch.img", "odd.img", "empty.img", "directory"] {
        refuse(
            &lab,
            &format!("disk {name}"),
            &["--kernel", "pico", "--disk", &format!("path={name}")],
            &[name],
        );
    }
    refuse(
        &lab,
        "disk words",
        &["--kernel", "pico", "--disk", "colour=red"],
        &["path="],
    );
    assert_eq!(
        std::fs::read(lab.path("odd.img")).unwrap(),
        [0; 1000],
        "a refused disk was changed"
    );

    lab.make_disk("used.img", 1 << 20);
    let disk = [
        "--kernel",
        "pico",
        "--memory",
        "64M",
        "--disk",
        "path=used.img",
    ];
    let mut first = lab.evertwin(
        "first",
        ["run"]
            .iter()
            .chain(&disk)
            .chain(&["--cmdline", "workload=cpu"]),
    );
    first.wait_for_console("pico: ready", STEP).unwrap();
    refuse(&lab, "locked disk", &disk, &["used.img"]);
    assert!(first.is_running(), "the first user of the disk was harmed");
}

#[test]
fn wrong_vsocks() {
    let lab = TestLab::new();
    let long = format!("cid=3,socket={}", "x".repeat(97));
    let cases: &[(&str, &str, &[&str])] = &[
        ("host", "cid=2,socket=vm.vsock", &["2 can't be", "from 3"]),
        ("no socket", "cid=3", &["`cid=3`", "socket="]),
        ("long path", &long, &["97 bytes", "at most 96"]),
        (
            "no directory",
            "cid=3,socket=/nonexistent/vm.vsock",
            &["/nonexistent/vm.vsock", "missing"],
        ),
    ];
    for (name, vsock, words) in cases {
        refuse(&lab, name, &["--kernel", "pico", "--vsock", vsock], words);
    }
}

#[test]
fn wrong_networks() {
    let lab = TestLab::new();
    let cases: &[(&str, &[&str])] = &[
        (
            "tap=nonesuch0,mac=52:54:00:12:34:56",
            &["nonesuch0", "ip tuntap add"],
        ),
        ("tap=lan0,mac=52:54:00:12:34:56", &["lan0"]),
        (
            "tap=a-name-that-is-too-long,mac=52:54:00:12:34:56",
            &["a-name-that-is-too-long"],
        ),
        ("tap=tap0,mac=52:54:00:12:34", &["52:54:00:12:34"]),
        ("tap=tap0,mac=53:54:00:12:34:56", &["53:54:00:12:34:56"]),
        ("mac=52:54:00:12:34:56", &["tap="]),
    ];
    for (net, words) in cases {
        refuse(&lab, net, &["--kernel", "pico", "--net", net], words);
    }
    let net = ["--kernel", "pico", "--memory", "64M", "--net", NET];
    let mut first = lab.evertwin(
        "first",
        ["run"]
            .iter()
            .chain(&net)
            .chain(&["--cmdline", "workload=cpu"]),
    );
    first.wait_for_console("pico: ready", STEP).unwrap();
    refuse(&lab, "busy tap", &net, &["tap0"]);
    assert!(first.is_running(), "the first user of the TAP was harmed");
}

#[test]
fn wrong_configurations() {
    let lab = TestLab::new();
    let good = PairConfig {
        disk: None,
        ..PairConfig::default()
    }
    .to_toml();
    let cases: &[(&str, String, &[&str])] = &[
        ("syntax", "name = [".to_owned(), &["syntax.toml"]),
        ("unknown", format!("colour = \"red\"\n{good}"), &["colour"]),
        (
            "address",
            good.replace("192.168.50.1:7700", "nowhere"),
            &["nowhere"],
        ),
        (
            "foreign",
            good.replace("192.168.50.1:7700", "203.0.113.9:7700"),
            &["203.0.113.9:7700"],
        ),
        ("duration", good.replace("\"20ms\"", "\"soon\""), &["soon"]),
        (
            "arbiter",
            good.replace("file:arbiter", "ouija:board"),
            &["ouija:board"],
        ),
        (
            "lonely",
            good.split("[node.b]").next().unwrap().to_owned(),
            &["node"],
        ),
        (
            "heartbeat",
            good.replace("heartbeat = \"50ms\"", "heartbeat = \"5s\""),
            &["heartbeat"],
        ),
        (
            "keyless",
            good.replace("keys = \"keys/{node}\"\n", ""),
            &["evertwin keys", "[replication]"],
        ),
        (
            "plaintext",
            good.replace("keys = \"keys/{node}\"", "plaintext = true"),
            &["plaintext", "192.168.50.1:7700", "evertwin keys"],
        ),
        (
            "unmade",
            good.replace("keys/{node}", "elsewhere/{node}"),
            &["elsewhere/a/ca.crt", "evertwin keys"],
        ),
        (
            "other",
            good.replace("keys/{node}", "keys/b"),
            &["keys/b/node.crt", "node a", "another node"],
        ),
    ];
    make_keys(lab.directory()).unwrap();
    for (name, text, words) in cases {
        let file = format!("{name}.toml");
        std::fs::write(lab.path(&file), text).unwrap();
        refuse(
            &lab,
            &format!("config {name}"),
            &[&file, "--node", "a"],
            words,
        );
    }
    std::fs::write(lab.path("good.toml"), &good).unwrap();
    refuse(
        &lab,
        "absent config",
        &["nonesuch.toml", "--node", "a"],
        &["nonesuch.toml"],
    );
    refuse(&lab, "unknown node", &["good.toml", "--node", "c"], &["c"]);
    refuse(&lab, "no node", &["good.toml"], &["--node"]);
    std::fs::write(lab.path("arbiter"), "no arbiter's record").unwrap();
    refuse(
        &lab,
        "arbiter file",
        &["good.toml", "--node", "a"],
        &["arbiter"],
    );
    assert_eq!(
        std::fs::read(lab.path("arbiter")).unwrap(),
        b"no arbiter's record",
        "a refused record was changed"
    );
}

#[test]
fn a_port_in_use_is_named() {
    let lab = TestLab::new();
    std::fs::write(
        lab.path("vm.toml"),
        PairConfig {
            disk: None,
            ..PairConfig::default()
        }
        .to_toml(),
    )
    .unwrap();
    make_keys(lab.directory()).unwrap();
    let _listener = lab
        .topology
        .a
        .enter(|| TcpListener::bind(Node::A.address()))
        .unwrap()
        .unwrap();
    refuse(
        &lab,
        "port in use",
        &["vm.toml", "--node", "a"],
        &["192.168.50.1:7700"],
    );
}

#[test]
fn missing_rights_and_devices_are_named() {
    let lab = TestLab::new();
    let binary = evertwin_binary();
    let binary = binary.to_str().unwrap();
    let hidden = "mount -t tmpfs none /dev && exec \"$@\"";
    let start = |name: &str, program: &str, arguments: &[&str]| {
        Process::start(
            tool(&lab.topology.a, program, arguments),
            name,
            lab.directory(),
        )
        .unwrap()
    };
    let no_kvm = start(
        "no kvm",
        "unshare",
        &[
            "-m", "sh", "-c", hidden, "sh", binary, "run", "--kernel", "pico",
        ],
    );
    demand_refusal("no kvm", no_kvm, &["/dev/kvm"]);

    // A copy that an unprivileged user may run, from a directory that it may enter.
    let open = tempfile::tempdir().unwrap();
    let copy = open.path().join("evertwin");
    std::fs::copy(binary, &copy).unwrap();
    std::fs::set_permissions(
        open.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    let copy = copy.to_str().unwrap();
    let locked = "mount -t tmpfs none /mnt && mknod /mnt/kvm c 10 232 && mount --bind /mnt/kvm /dev/kvm && chmod 600 /dev/kvm \
                  && exec setpriv --reuid 65534 --regid 65534 --clear-groups \"$@\"";
    let no_rights = start(
        "no rights",
        "unshare",
        &[
            "-m", "sh", "-c", locked, "sh", copy, "run", "--kernel", "pico",
        ],
    );
    demand_refusal("no rights", no_rights, &["/dev/kvm", "usermod -aG kvm"]);
}

#[test]
fn keys_are_made_once() {
    let lab = TestLab::new();
    let make = |arguments: &[&str]| {
        let arguments = [&["keys", "keys", "--node"], arguments].concat();
        lab.evertwin_to_end("keys", &arguments)
    };
    let (status, lines) = make(&["a", "--node", "b"]);
    assert!(status.success(), "{lines:?}");
    for (again, words) in [
        (&["b"][..], &["keys/b/node.crt", "--renew"][..]),
        (&["A"], &["'A'", "a-z"]),
    ] {
        let (status, lines) = make(again);
        let last = lines.join(" ");
        assert!(!status.success() && !last.contains("panicked"), "{last}");
        for word in words {
            assert!(last.contains(word), "{word}: {last}");
        }
    }
    let (status, lines) = make(&["b", "--renew"]);
    assert!(status.success(), "{lines:?}");
}

#[test]
fn wrong_words_are_refused() {
    let lab = TestLab::new();
    for arguments in [
        &["run"][..],
        &["run", "--colour", "red"],
        &["nonesuch"],
        &["run", "--kernel"],
    ] {
        let (status, lines) = lab.evertwin_to_end("words", arguments);
        assert!(
            status.code().is_some_and(|code| code != 0 && code != 101),
            "{arguments:?}: {status}"
        );
        assert!(
            !lines.is_empty() && lines.iter().all(|line| !line.contains("panicked")),
            "{arguments:?}: {lines:?}"
        );
    }
}
