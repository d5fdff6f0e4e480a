//! The arbiter in a real etcd (Debian's etcd-server) on the loopback.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use evertwin_replicator::NodeId;
use evertwin_replicator::arbiter::{Arbiter as _, CasOutcome, EtcdArbiter, EtcdError, Record};

/// How long etcd may take to answer after it was started.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running etcd. Dropping it kills it, and so does the end of the thread that started it.
struct Etcd {
    address: SocketAddr,
    directory: tempfile::TempDir,
    process: Child,
}

impl Etcd {
    fn start() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let address = free_address();
        let process = launch(directory.path(), address);
        let etcd = Self {
            address,
            directory,
            process,
        };
        etcd.wait();
        etcd
    }

    /// Kills it and starts it on the same data.
    fn restart(&mut self) {
        self.stop();
        self.process = launch(self.directory.path(), self.address);
        self.wait();
    }

    fn stop(&mut self) {
        self.process.kill().expect("it runs");
        self.process.wait().expect("it was killed");
    }

    fn wait(&self) {
        let until = Instant::now() + PATIENCE;
        while let Err(error) = self.arbiter("probe").read() {
            assert!(Instant::now() < until, "{error}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn arbiter(&self, vm: &str) -> EtcdArbiter {
        EtcdArbiter::new(vec![self.address], vm)
    }

    /// Writes to a VM's key as somebody else would.
    fn put(&self, vm: &str, value: &str) {
        let key = base64(format!("evertwin/{vm}").as_bytes());
        let body = format!(
            r#"{{"key":"{key}","value":"{}"}}"#,
            base64(value.as_bytes())
        );
        let request = format!(
            "POST /v3/kv/put HTTP/1.1\r\nHost: etcd\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut stream = TcpStream::connect(self.address).expect("it listens");
        stream.write_all(request.as_bytes()).expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn launch(directory: &Path, address: SocketAddr) -> Child {
    let url = format!("http://{address}");
    Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "etcd", "--data-dir"])
        .arg(directory.join("data"))
        .args([
            "--listen-client-urls",
            &url,
            "--advertise-client-urls",
            &url,
        ])
        .args(["--listen-peer-urls", "http://127.0.0.1:0"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("setpriv and etcd: run `make deps`")
}

fn free_address() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("a bound listener")
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

fn node(name: &str) -> NodeId {
    name.parse().expect("a valid name")
}

#[test]
fn a_swap_needs_the_whole_expected_record() {
    let etcd = Etcd::start();
    let mut arbiter = etcd.arbiter("vm");
    let (a, b) = (node("a"), node("b"));
    assert_eq!(arbiter.read().expect("etcd runs"), None);
    let solo = Record::solo(1, a);
    let named = Record::protected(1, a, b);
    let promoted = Record::solo(2, b);
    let mut swap = |expected: Option<Record>, new| {
        let outcome = arbiter.compare_and_swap(expected.as_ref(), &new);
        outcome.expect("etcd runs")
    };
    assert_eq!(swap(Some(solo), named), CasOutcome::Lost(None));
    assert_eq!(swap(None, solo), CasOutcome::Won);
    assert_eq!(swap(None, solo), CasOutcome::Lost(Some(solo)));
    assert_eq!(swap(Some(solo), named), CasOutcome::Won);
    assert_eq!(swap(Some(solo), promoted), CasOutcome::Lost(Some(named)));
    assert_eq!(swap(Some(named), promoted), CasOutcome::Won);
    // Asked again, because the answer was lost: told what is there, not that it was won.
    assert_eq!(
        swap(Some(named), promoted),
        CasOutcome::Lost(Some(promoted))
    );
    // Another process sees the same.
    let read = etcd.arbiter("vm").read().expect("etcd runs");
    assert_eq!(read, Some(promoted));
}

#[test]
fn one_of_many_racers_wins() {
    let etcd = Etcd::start();
    let expected = Record::solo(1, node("a"));
    let first = etcd.arbiter("vm").compare_and_swap(None, &expected);
    assert_eq!(first.expect("etcd runs"), CasOutcome::Won);
    let wins: usize = std::thread::scope(|scope| {
        let race = |racer: u64| {
            let new = Record::solo(2 + racer, node("b"));
            let outcome = etcd.arbiter("vm").compare_and_swap(Some(&expected), &new);
            usize::from(outcome.expect("etcd runs") == CasOutcome::Won)
        };
        let racers: Vec<_> = (0..8).map(|n| scope.spawn(move || race(n))).collect();
        let won = racers.into_iter().map(|racer| racer.join());
        won.map(|won| won.expect("no panic")).sum()
    });
    assert_eq!(wins, 1);
}

#[test]
fn one_etcd_serves_many_vms_and_keeps_their_records_over_a_restart() {
    let mut etcd = Etcd::start();
    let (mut one, mut other) = (etcd.arbiter("one"), etcd.arbiter("other"));
    let (a, b) = (Record::solo(1, node("a")), Record::solo(7, node("b")));
    let swapped = one.compare_and_swap(None, &a).expect("etcd runs");
    assert_eq!(swapped, CasOutcome::Won);
    let swapped = other.compare_and_swap(None, &b).expect("etcd runs");
    assert_eq!(swapped, CasOutcome::Won);

    etcd.stop();
    let error = one.read().expect_err("nobody listens").to_string();
    let endpoint = format!("http://{}", etcd.address);
    assert!(error.contains(&endpoint), "{error}");
    let next = Record::solo(2, node("a"));
    one.compare_and_swap(Some(&a), &next)
        .expect_err("nobody listens");
    etcd.restart();

    assert_eq!(one.read().expect("etcd runs"), Some(a));
    assert_eq!(other.read().expect("etcd runs"), Some(b));
    let swapped = one.compare_and_swap(Some(&a), &next).expect("etcd runs");
    assert_eq!(swapped, CasOutcome::Won);
    assert_eq!(other.read().expect("etcd runs"), Some(b));
}

#[test]
fn a_damaged_value_is_named_and_never_guessed() {
    let etcd = Etcd::start();
    let mut arbiter = etcd.arbiter("vm");
    let record = Record::solo(1, node("a"));
    for value in [
        "",
        "evertwin-arbiter-1 1 a - 0000000000000000\n",
        "no record",
    ] {
        etcd.put("vm", value);
        let error = arbiter.load().expect_err("a damaged value");
        assert!(matches!(error, EtcdError::Damaged { .. }), "{error}");
        let swap = arbiter.compare_and_swap(Some(&record), &record);
        let error = swap.expect_err("a damaged value").to_string();
        assert!(
            error.contains("evertwin/vm") && error.contains("damaged"),
            "{error}"
        );
        // There is a key, so nothing is claimed over it.
        let claim = arbiter.compare_and_swap(None, &record);
        claim.expect_err("a damaged value");
    }
}

#[test]
fn endpoints_are_tried_in_turn_and_all_are_named() {
    let etcd = Etcd::start();
    let dead = free_address();
    let mut arbiter = EtcdArbiter::new(vec![dead, etcd.address], "vm");
    let record = Record::solo(1, node("a"));
    let swapped = arbiter.compare_and_swap(None, &record).expect("one runs");
    assert_eq!(swapped, CasOutcome::Won);

    // One that accepts and never says a word costs its time, and no more.
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let silent = silent.local_addr().map(|address| (silent, address));
    let (_silent, silent) = silent.expect("a bound listener");
    let mut arbiter = EtcdArbiter::new(vec![silent, dead], "vm");
    let begun = Instant::now();
    let error = arbiter.read().expect_err("nobody answers").to_string();
    assert!(begun.elapsed() < Duration::from_secs(4), "{error}");
    for address in [dead, silent] {
        assert!(error.contains(&format!("http://{address}")), "{error}");
    }
    let mut arbiter = EtcdArbiter::new(vec![silent, etcd.address], "vm");
    assert_eq!(arbiter.read().expect("one runs"), Some(record));
}

/// Answers every request with the same bytes.
fn impostor(answer: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let address = listener.local_addr().expect("a bound listener");
    // It ends with the test's process.
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            // Closed with something unread, it would take the answer with it.
            let _ = stream.set_read_timeout(Some(Duration::from_millis(50)));
            while let Ok(1..) = stream.read(&mut [0; 4096]) {}
            let _ = stream.write_all(answer);
        }
    });
    address
}

#[test]
fn what_is_not_etcd_is_refused() {
    let answers: [&[u8]; 7] = [
        b"",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\nno\n\n",
        b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9999999999\r\n\r\n[[[[[[[[[[[[[[[[",
    ];
    for answer in answers {
        let address = impostor(answer);
        let mut arbiter = EtcdArbiter::new(vec![address], "vm");
        let error = arbiter.load().expect_err("not etcd");
        let text = error.to_string();
        assert!(matches!(error, EtcdError::NoAnswer(_)), "{text}");
        assert!(text.contains(&format!("http://{address}")), "{text}");
        assert!(!text.contains('\n'), "{text}");
    }
}

#[test]
fn two_clusters_are_not_one_arbiter() {
    let mut etcd = Etcd::start();
    let other = impostor(
        b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{\"header\":{\"cluster_id\":\"12345\"}}",
    );
    let mut arbiter = EtcdArbiter::new(vec![etcd.address, other], "vm");
    assert_eq!(arbiter.load().expect("etcd runs"), None);
    etcd.stop();
    let error = arbiter.load().expect_err("another cluster");
    assert!(matches!(error, EtcdError::OtherCluster(at) if at == other));
}
