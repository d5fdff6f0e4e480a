//! Peers that speak wrongly and links that damage what they carry: the guest goes on, and nothing wrong is applied.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use evertwin::lab::client::{Load, LoadOptions};
use evertwin::lab::events::{Line, NoLine};
use evertwin::lab::pair::{PairConfig, make_keys};
use evertwin::lab::process::Process;
use evertwin::lab::topology::Node;
use evertwin_tests::lab::{SLOW, STEP, evertwin_binary};
use evertwin_tests::proxy::{Damage, Proxy};
use evertwin_tests::seed;
use evertwin_tests::stage::{Stage, demand_clean, run_for, wait_for_more};

/// Where b finds a through a damaging proxy on its own host.
const PROXY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 168, 50, 2)), 7701);

fn wait_for_damage(proxy: &Proxy) {
    let deadline = Instant::now() + STEP;
    while !proxy.is_done() {
        assert!(
            Instant::now() < deadline,
            "no damage was done: too little was sent"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn diskless() -> PairConfig {
    PairConfig {
        cmdline: "workload=kv ip=10.77.0.2/24".to_owned(),
        memory: "64M".to_owned(),
        disk: None,
        ..PairConfig::default()
    }
}

/// Starts b so that it reaches a only through `proxy_address`, in place of a's own address.
fn start_b_through(stage: &Stage, proxy_address: SocketAddr) -> Process {
    let config = std::fs::read_to_string(stage.lab.path("vm.toml")).unwrap();
    let config = config.replace(&Node::A.address().to_string(), &proxy_address.to_string());
    std::fs::write(stage.lab.path("vm-b.toml"), config).unwrap();
    let mut command = stage.pair.topology.b.command(evertwin_binary());
    command
        .args(["run", "vm-b.toml", "--node", "b", "--log-format", "json"])
        .current_dir(stage.lab.directory());
    Process::start(command, "b", stage.lab.directory()).unwrap()
}

/// A pair that is protected over a link which may be damaged, and its load.
fn protected_through(config: &PairConfig, damage: Damage) -> (Stage, Proxy, Process, Load) {
    let mut stage = Stage::new(config);
    let proxy = Proxy::start(&stage.pair.topology.b, PROXY, Node::A.address(), damage).unwrap();
    stage.pair.start(Node::A).unwrap();
    let b = start_b_through(&stage, PROXY);
    stage.wait_for(Node::A, "protected");
    stage.twin(Node::A).wait_for_console("ready", STEP).unwrap();
    let load = stage.load(LoadOptions::default());
    wait_for_more(&load, 100);
    (stage, proxy, b, load)
}

/// The pair is protected over a link that then damages one epoch: the epoch is discarded, the guest goes on, and the
/// pair is protected, again or still, over the link that is now good.
fn survives(damage: Damage) {
    let (mut stage, proxy, mut b, load) = protected_through(&diskless(), damage);
    let seen = (stage.twin(Node::A).log().len(), b.log().len());
    proxy.damage_after(20_000);
    wait_for_more(&load, 500);
    assert!(proxy.is_done(), "no damage was done: too little was sent");

    // Whoever won the race speaks for the guest; the other joins it again.
    let protected_again = |process: &Process, from: usize| {
        process
            .log()
            .wait(from, STEP, |line| {
                let message = line.message();
                matches!(message.as_deref(), Some("protected" | "resumed"))
            })
            .is_ok()
    };
    if b.has_event_since(0, "promoted") {
        stage.wait_for(Node::A, "fenced");
    } else {
        assert!(
            protected_again(stage.twin(Node::A), seen.0),
            "the pair was not protected again"
        );
        let refused = |text: &str| text.contains("WARN") || text.contains("ERROR");
        let lines = b.log().lines();
        assert!(
            lines[seen.1..].iter().any(|line| refused(&line.text)),
            "b says nothing of what it refused"
        );
    }
    demand_clean(load);
    b.kill();
}

/// With time enough, twins whose link breaks find each other again: nobody asks the arbiter.
#[test]
fn a_link_that_breaks_is_back_and_nobody_notices() {
    for damage in [Damage::Cut, Damage::Flip] {
        let config = PairConfig {
            timeout: Duration::from_secs(8),
            ..diskless()
        };
        let (mut stage, proxy, mut b, load) = protected_through(&config, damage);
        for _ in 0..5 {
            wait_for_more(&load, 100);
            let seen = stage.twin(Node::A).log().len();
            proxy.damage_after(20_000);
            wait_for_more(&load, 500);
            wait_for_damage(&proxy);
            let resumed = |line: &Line| line.message().as_deref() == Some("resumed");
            let log = stage.twin(Node::A).log();
            assert!(log.wait(seen, STEP, resumed).is_ok(), "{damage:?}");
        }
        assert_eq!(stage.role(Node::A).as_deref(), Some("protected"));
        assert!(!b.has_event_since(0, "promoted"));
        let record = std::fs::read_to_string(stage.lab.path("arbiter")).unwrap();
        assert!(record.contains(" 1 a b "), "{record}");
        demand_clean(load);
        b.kill();
    }
}

/// The link swallows everything from some byte on while acknowledgements still flow the other way.
#[test]
fn an_answer_waits_until_its_epoch_has_arrived_whole() {
    let mut random = seed::generator();
    for _ in 0..5 {
        let (mut stage, proxy, b, load) = protected_through(&diskless(), Damage::Stall);
        proxy.damage_after(random.u64(500..40_000));
        wait_for_damage(&proxy);
        // Shorter than the silence after which a twin counts as dead: so far nobody has noticed anything.
        run_for(&load, Duration::from_millis(150) * SLOW);
        stage.twin(Node::A).kill();
        let promoted = |line: &Line| line.message().as_deref() == Some("promoted");
        b.log().wait(0, STEP, promoted).unwrap();
        wait_for_more(&load, 200);
        demand_clean(load);
    }
}

#[test]
fn an_epoch_with_a_flipped_bit_is_discarded() {
    survives(Damage::Flip);
}

#[test]
fn a_torn_epoch_is_discarded() {
    survives(Damage::Cut);
}

#[test]
fn a_stranger_that_speaks_another_protocol_does_not_harm_the_guest() {
    let mut stage = Stage::protected(&diskless());
    let load = stage.load(LoadOptions::default());
    wait_for_more(&load, 100);
    for speech in [
        &b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"[..],
        &[0xff; 4096],
        b"",
    ] {
        let mut stranger = stage
            .pair
            .topology
            .b
            .connect(Node::A.address(), STEP)
            .unwrap();
        stranger.set_read_timeout(Some(STEP)).unwrap();
        // The stranger may be refused before it has spoken.
        let _ = stranger.write_all(speech);
        let _ = stranger.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stranger.read_to_end(&mut answer);
        wait_for_more(&load, 100);
    }
    assert!(stage.twin(Node::A).is_running() && stage.twin(Node::B).is_running());
    demand_clean(load);
}

#[test]
fn a_server_that_is_no_twin_is_named() {
    let mut stage = Stage::new(&diskless());
    let listener = stage
        .pair
        .topology
        .a
        .enter(|| TcpListener::bind(Node::A.address()))
        .unwrap()
        .unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u2\r\nand then some more to fill a header\r\n").unwrap();
        let mut heard = Vec::new();
        let _ = stream.set_read_timeout(Some(Duration::from_secs(2)));
        let _ = stream.read_to_end(&mut heard);
    });
    let b = stage.pair.start(Node::B).unwrap();
    let status = b.wait_for_exit(STEP).unwrap();
    let last = b.log().lines().pop().unwrap().text;
    assert!(!status.success(), "{status}: {last}");
    assert!(
        last.contains(&Node::A.address().to_string()) && last.contains("does not speak TLS"),
        "{last}"
    );
    server.join().unwrap();
}

/// Starts node b with a configuration in which something was replaced, and gives the last line that it says before
/// it ends with an error.
fn last_words_of_b(stage: &Stage, what: &str, replacement: &str) -> String {
    let config = std::fs::read_to_string(stage.lab.path("vm.toml")).unwrap();
    let other = config.replace(what, replacement);
    assert_ne!(other, config);
    std::fs::write(stage.lab.path("other.toml"), other).unwrap();
    let mut command = stage.pair.topology.b.command(evertwin_binary());
    command
        .args(["run", "other.toml", "--node", "b"])
        .current_dir(stage.lab.directory());
    let mut b = Process::start(command, "b", stage.lab.directory()).unwrap();
    let status = b.wait_for_exit(STEP).unwrap();
    let last = b.log().lines().pop().unwrap().text;
    assert!(!status.success(), "{status}: {last}");
    last
}

#[test]
fn a_peer_with_another_vm_is_refused_by_name() {
    let mut stage = Stage::new(&diskless());
    stage.pair.start(Node::A).unwrap();
    stage.wait_for(Node::A, "guest running");
    let disk = "[[disk]]\npath = \"other.img\"\n[replication]";
    stage.lab.make_disk("other.img", 1 << 20);
    for (what, replacement, named) in [
        ("memory = \"64M\"", "memory = \"128M\"", "memory"),
        ("memory = \"64M\"", "memory = \"64M\"\nvcpus = 2", "vCPUs"),
        ("[replication]", disk, "disk 0"),
    ] {
        let last = last_words_of_b(&stage, what, replacement);
        assert!(last.contains(named), "{last}");
    }
    assert!(stage.twin(Node::A).is_running());
}

#[test]
fn a_twin_with_the_keys_of_another_pair_is_refused() {
    let mut stage = Stage::new(&diskless());
    stage.pair.start(Node::A).unwrap();
    stage.wait_for(Node::A, "guest running");
    std::fs::create_dir(stage.lab.path("other")).unwrap();
    make_keys(&stage.lab.path("other")).unwrap();
    // Those of another pair, and those of the peer itself under this node's name.
    for (keys, words) in [
        (
            "other/keys/{node}",
            &["not from this pair's CA", "evertwin keys"][..],
        ),
        ("keys/a", &["keys/a/node.crt", "another node"]),
    ] {
        let last = last_words_of_b(&stage, "keys/{node}", keys);
        for word in words {
            assert!(last.contains(word), "{word:?} is not in {last:?}");
        }
    }
    assert!(stage.twin(Node::A).is_running());
}

#[test]
fn a_standby_that_never_held_a_whole_copy_is_not_promoted() {
    let mut stage = Stage::new(&diskless());
    let proxy = Proxy::start(
        &stage.pair.topology.b,
        PROXY,
        Node::A.address(),
        Damage::Stall,
    )
    .unwrap();
    proxy.damage_after(100_000);
    stage.pair.start(Node::A).unwrap();
    stage.twin(Node::A).wait_for_console("ready", STEP).unwrap();
    let b = start_b_through(&stage, PROXY);
    wait_for_damage(&proxy);
    assert!(
        !stage.twin(Node::A).has_event_since(0, "protected"),
        "the pair was protected before the sync was through"
    );
    stage.twin(Node::A).kill();
    // Four times the silence after which a peer counts as dead.
    let promoted = b.log().wait(0, Duration::from_secs(2) * SLOW, |line| {
        line.message().as_deref() == Some("promoted")
    });
    assert_eq!(
        promoted.err(),
        Some(NoLine::Timeout),
        "half a VM was promoted"
    );
}
