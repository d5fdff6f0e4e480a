//! Who may be the other end of a link: the peer, proved by its certificate, and nobody else.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;

use crate::support::keys::Authority;
use crate::support::machine::FakeVm;
use crate::support::proxy::Proxy;
use crate::support::{
    PAGES, Pair, TIMEOUT, assert_ascending, free_address, run_until_seen, wait_for, world,
};
use evertwin_replicator::tls::TlsError;
use evertwin_replicator::{Error, WireError};

/// What ends the run of a dialing twin that has no guest. Its peer's guest runs on.
fn refusal(change: impl Fn(&mut Pair)) -> Error {
    let (mut pair, world) = (Pair::new(), world());
    change(&mut pair);
    let a = pair.start("a", FakeVm::new(&world, PAGES));
    wait_for("a boots", || a.vm.running());
    let mut b = pair.start("b", FakeVm::new(&world, PAGES));
    let error = b.ended().expect_err("they don't trust each other");
    assert!(!b.vm.running());
    run_until_seen(&a.vm, &world, 50);
    let record = pair.record().expect("a record");
    assert_eq!((record.generation, record.standby), (1, None));
    error
}

fn tls(error: Error) -> TlsError {
    match error {
        Error::Tls { source, .. } => source,
        other => panic!("{other}"),
    }
}

#[test]
fn twins_of_different_cas_refuse_each_other() {
    let error = refusal(|pair| Authority::new().certify("b", &pair.keys("b")));
    assert_eq!(tls(error), TlsError::Authority);
}

#[test]
fn another_node_of_the_same_ca_is_no_peer() {
    let error = refusal(|pair| pair.posing.push(("a", "c")));
    assert_eq!(tls(error), TlsError::Name);
    // The listening twin says no, and the other one passes its words on.
    let error = refusal(|pair| pair.posing.push(("b", "c")));
    let told = error.to_string();
    assert!(
        matches!(
            error,
            Error::Tls {
                source: TlsError::Refused(_),
                ..
            }
        ),
        "{told}"
    );
    assert!(
        told.contains("expects") && told.contains("twin at 127."),
        "{told}"
    );
}

#[test]
fn tls_and_plaintext_do_not_mix() {
    let error = refusal(|pair| pair.plaintext.push("a"));
    assert_eq!(tls(error), TlsError::Plaintext);
    match refusal(|pair| pair.plaintext.push("b")) {
        Error::Wire { source, .. } => assert_eq!(source, WireError::Tls),
        other => panic!("{other}"),
    }
}

#[test]
fn what_listens_instead_of_a_twin_is_named() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let mut pair = Pair::new();
    pair.dial = listener.local_addr().expect("a bound listener");
    let mut b = pair.start("b", FakeVm::new(&world(), PAGES));
    let (mut stream, _) = listener.accept().expect("b dials");
    stream
        .write_all(b"SSH-2.0-OpenSSH_9.2p1\r\n")
        .expect("a few bytes");
    let error = b.ended().expect_err("that is no peer");
    let text = error.to_string();
    assert_eq!(tls(error), TlsError::NotTls);
    assert!(text.contains(&pair.dial.to_string()), "{text}");
}

#[test]
fn plaintext_stays_on_the_loopback() {
    for node in ["a", "b"] {
        let mut pair = Pair::plain();
        let address = "192.0.2.1:7700".parse().expect("an address");
        (pair.listen, pair.dial) = (address, address);
        let error = pair.start(node, FakeVm::new(&world(), PAGES)).ended();
        let text = error.expect_err("it leaves this host").to_string();
        assert!(text.contains("loopback"), "{text}");
    }
}

#[test]
fn a_listener_that_never_answers_is_given_up() {
    // The first connection is accepted and then left alone; what follows goes to the twin.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let (mut pair, world) = (Pair::new(), world());
    let target = pair.listen;
    pair.dial = listener.local_addr().expect("a bound listener");
    let a = pair.start("a", FakeVm::new(&world, PAGES));
    wait_for("a boots", || a.vm.running());
    let _b = pair.start("b", FakeVm::new(&world, PAGES));
    let (mut silent, _) = listener.accept().expect("b dials");
    let mut hello = [0; 5];
    silent.read_exact(&mut hello).expect("b speaks first");
    assert_eq!(hello[0], 22, "a record of the handshake");
    thread::spawn(move || {
        for dialer in listener.incoming().flatten() {
            let twin = TcpStream::connect(target).expect("a listens");
            let copy = |mut from: TcpStream, mut to: TcpStream| {
                thread::spawn(move || std::io::copy(&mut from, &mut to))
            };
            copy(
                dialer.try_clone().expect("a descriptor"),
                twin.try_clone().expect("another"),
            );
            copy(twin, dialer);
        }
    });
    pair.wait_named("a");
    run_until_seen(&a.vm, &world, 100);
}

#[test]
fn handshakes_that_stall_keep_nobody_out() {
    let (pair, world) = (Pair::new(), world());
    let a = pair.start("a", FakeVm::new(&world, PAGES));
    wait_for("a boots", || a.vm.running());
    let stall = || {
        let mut stream = TcpStream::connect(pair.listen).expect("a listens");
        // A ClientHello is to follow, and does not.
        stream
            .write_all(b"\x16\x03\x01\x02\0\x01")
            .expect("a few bytes");
        stream
    };
    let mut stalled: Vec<_> = (0..8).map(|_| stall()).collect();
    let mut b = pair.start("b", FakeVm::new(&world, PAGES));
    pair.wait_named("a");
    stalled.extend((0..8).map(|_| stall()));
    run_until_seen(&a.vm, &world, 200);
    b.stop();
    b.ended().expect("a clean stop");
    // It comes back among them.
    stalled.extend((0..8).map(|_| stall()));
    let _b = pair.start("b", FakeVm::new(&world, PAGES));
    wait_for("the standby is named again", || {
        a.vm.step();
        pair.record()
            .is_some_and(|record| record.generation > 1 && record.standby.is_some())
    });
    run_until_seen(&a.vm, &world, 200);
    assert_ascending(&world);
}

#[test]
fn a_handshake_that_was_harmed_is_begun_again() {
    // Within the listening twin's first flight: its hello, its certificate, its last words. And
    // behind it, where frames begin.
    for (after, cut) in [30, 100, 300, 700, 1200]
        .into_iter()
        .flat_map(|at| [(at, true), (at, false)])
    {
        let (mut pair, world) = (Pair::new(), world());
        let proxy = Proxy::to(pair.listen);
        pair.dial = proxy.address;
        let a = pair.start("a", FakeVm::new(&world, PAGES));
        wait_for("a boots", || a.vm.running());
        if cut {
            proxy.cut_after(after);
        } else {
            proxy.corrupt_after(after);
        }
        let b = pair.start("b", FakeVm::new(&world, PAGES));
        pair.wait_named("a");
        run_until_seen(&a.vm, &world, 50);
        assert!(!b.vm.running());
    }
}

#[test]
fn a_copy_of_much_memory_arrives_whole() {
    let (pair, world) = (Pair::new(), world());
    let pages = 8000;
    let mut a = pair.start("a", FakeVm::new(&world, pages));
    wait_for("a boots", || a.vm.running());
    run_until_seen(&a.vm, &world, pages as usize);
    let b = pair.start("b", FakeVm::new(&world, pages));
    pair.wait_named("a");
    run_until_seen(&a.vm, &world, 1000);
    a.stop();
    a.ended().expect("a clean stop");
    wait_for("b is promoted", || b.vm.running());
    assert!(b.vm.lock().consistent());
    run_until_seen(&b.vm, &world, 100);
    assert_ascending(&world);
}

#[test]
fn a_peer_that_is_silent_in_the_handshake_is_not_waited_for_when_the_run_ends() {
    let listener = TcpListener::bind(free_address()).expect("a free port");
    let mut pair = Pair::new();
    pair.dial = listener.local_addr().expect("a bound listener");
    let mut b = pair.start("b", FakeVm::new(&world(), PAGES));
    let (_silent, _) = listener.accept().expect("b dials");
    thread::sleep(TIMEOUT / 4);
    b.stop();
    b.ended().expect("a clean stop");
}
