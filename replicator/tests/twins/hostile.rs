//! What a bad network and wrong peers can do: nothing but cost time (I3, I9).

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::Duration;

use crate::support::machine::{FakeVm, Handle, World};
use crate::support::proxy::Proxy;
use crate::support::{
    PAGES, PATIENCE, Pair, Running, assert_ascending, free_address, run_until_seen, wait_for, world,
};
use evertwin_replicator::machine::CpuLeaf;
use evertwin_replicator::{Difference, Ended, Error, WireError};

/// How pairs talk.
const LINKS: [fn() -> Pair; 2] = [Pair::new, Pair::plain];

/// A protected pair with a wire between the twins that can be harmed.
fn protected(mut pair: Pair, world: &World) -> (Pair, Proxy, Running, Running) {
    let proxy = Proxy::to(pair.listen);
    pair.dial = proxy.address;
    // Nobody waits for the other: what is looked at is the race.
    pair.reconnect = Some(Duration::ZERO);
    let a = pair.start("a", FakeVm::new(world, PAGES));
    wait_for("a boots", || a.vm.running());
    run_until_seen(&a.vm, world, 200);
    let b = pair.start("b", FakeVm::new(world, PAGES));
    pair.wait_named("a");
    (pair, proxy, a, b)
}

/// One of the twins has taken the right; its guest is exactly one epoch and goes on.
fn check_winner(pair: &Pair, world: &World, twins: [&Handle; 2]) {
    wait_for("one of them wins", || {
        twins[0].step();
        pair.record().is_some_and(|record| record.generation == 2)
    });
    let record = pair.record().expect("it was there");
    let winner = twins[usize::from(record.releaser.as_str() == "b")];
    wait_for("the winner's guest runs", || winner.running());
    assert!(winner.lock().consistent(), "exactly one epoch (I3)");
    run_until_seen(winner, world, 100);
    assert_ascending(world);
}

#[test]
fn a_changed_byte_costs_no_more_than_the_link() {
    let places = [0, 25, 39, 50, 4000, 5000, 9000, 20_000];
    for (link, after) in LINKS
        .iter()
        .flat_map(|link| places.map(|after| (link, after)))
    {
        let world = world();
        let (pair, proxy, a, b) = protected(link(), &world);
        proxy.corrupt_after(after);
        check_winner(&pair, &world, [&a.vm, &b.vm]);
        assert!(a.vm.running(), "a primary that is alive keeps its guest");
    }
}

#[test]
fn a_torn_epoch_is_discarded() {
    let places = [0, 39, 41, 4200, 9000, 20_000];
    for (link, after) in LINKS
        .iter()
        .flat_map(|link| places.map(|after| (link, after)))
    {
        let world = world();
        let (pair, proxy, a, b) = protected(link(), &world);
        proxy.cut_after(after);
        check_winner(&pair, &world, [&a.vm, &b.vm]);
    }
}

#[test]
fn a_sync_that_is_cut_is_begun_again() {
    let world = world();
    let mut pair = Pair::new();
    let proxy = Proxy::to(pair.listen);
    pair.dial = proxy.address;
    let mut a = pair.start("a", FakeVm::new(&world, PAGES));
    wait_for("a boots", || a.vm.running());
    // Fills memory, so that the sync has bytes to carry.
    run_until_seen(&a.vm, &world, PAGES as usize);
    proxy.cut_after(1_000_000);
    let b = pair.start("b", FakeVm::new(&world, PAGES));
    // If the cut came as the standby was about to be named, that generation has ended.
    let generation = pair.wait_named("a").generation;
    assert!((1..=2).contains(&generation), "{generation}");
    run_until_seen(&a.vm, &world, 100);
    a.stop();
    a.ended().expect("a clean stop");
    wait_for("b is promoted", || b.vm.running());
    assert!(b.vm.lock().consistent());
}

#[test]
fn strangers_do_not_disturb_a_pair() {
    LINKS.iter().for_each(|link| undisturbed(link()));
}

fn undisturbed(pair: Pair) {
    let world = world();
    let (pair, _proxy, a, b) = protected(pair, &world);
    let mut strangers = Vec::new();
    for words in [
        &b"GET / HTTP/1.1\r\nHost: x\r\n\r\n                              "[..],
        &[0; 4096],
        b"EVTW\x02\0\x01\0                                     ",
        b"EVTW\x01\0\x0a\0\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0        ",
        b"",
        // The heads of a record and of a ClientHello, and no more.
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03",
    ] {
        let mut stranger = TcpStream::connect(pair.listen).expect("a listening twin");
        stranger.write_all(words).expect("a few bytes");
        strangers.push(stranger);
    }
    run_until_seen(&a.vm, &world, 200);
    for mut stranger in strangers {
        let patience = Some(PATIENCE);
        stranger.set_read_timeout(patience).expect("a socket");
        // It gets a refusal at most, and is then let go. A reset is as good.
        let mut answer = Vec::new();
        let _ = stranger.read_to_end(&mut answer);
        assert!(answer.len() < 1000);
    }
    run_until_seen(&a.vm, &world, 200);
    let record = pair.record().expect("a record");
    assert_eq!(record.generation, 1, "the link never broke");
    assert!(record.standby.is_some() && !b.vm.running());
}

#[test]
fn a_dialer_tells_what_is_wrong_with_its_peer() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let mut pair = Pair::plain();
    pair.dial = listener.local_addr().expect("a bound listener");
    let world = world();
    let mut other = b"EVTW\xFF\xFF\x01\0".to_vec();
    other.resize(64, 0);
    let mut web = b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec();
    web.resize(64, b' ');
    for (words, want) in [
        (other, "version 65535"),
        (web, "does not speak Evertwin's protocol"),
    ] {
        let mut b = pair.start("b", FakeVm::new(&world, PAGES));
        let (mut stream, _) = listener.accept().expect("b dials");
        stream.write_all(&words).expect("a few bytes");
        let error = b.ended().expect_err("that is no peer");
        let wire = matches!(
            error,
            Error::Wire {
                source: WireError::Magic | WireError::Version { .. },
                ..
            }
        );
        assert!(wire && error.to_string().contains(want), "{error}");
    }
}

#[test]
fn twins_of_different_vms_refuse_each_other() {
    type Change = fn(&FakeVm);
    type IsIt = fn(&Difference) -> bool;
    let table: [(Change, IsIt, &str); 5] = [
        (
            |vm| vm.handle().lock().identity.vm = "other".to_owned(),
            |difference| matches!(difference, Difference::Vm { .. }),
            "VM \"demo\"",
        ),
        (
            |vm| vm.handle().lock().identity.memory[0].len = 4096,
            |difference| matches!(difference, Difference::Memory { .. }),
            "memory",
        ),
        (
            |vm| vm.handle().lock().identity.vcpus = 8,
            |difference| matches!(difference, Difference::Vcpus { .. }),
            "vcpus",
        ),
        (
            |vm| vm.handle().lock().identity.devices.clear(),
            |difference| matches!(difference, Difference::Devices { number: 1, .. }),
            "device number 1",
        ),
        (
            |vm| {
                vm.handle().lock().identity.cpu.push(CpuLeaf {
                    function: 7,
                    index: 0,
                    registers: [0; 4],
                });
            },
            |difference| matches!(difference, Difference::Cpu { .. }),
            "CPU",
        ),
    ];
    for (change, is_it, words) in table {
        let (pair, world) = (Pair::new(), world());
        let a = pair.start("a", FakeVm::new(&world, PAGES));
        wait_for("a boots", || a.vm.running());
        let vm = FakeVm::new(&world, PAGES);
        change(&vm);
        let mut b = pair.start("b", vm);
        match b.ended().expect_err("they are no pair") {
            Error::Peer { difference, .. } => {
                assert!(is_it(&difference), "{difference}");
                assert!(difference.to_string().contains(words), "{difference}");
            }
            // Whoever compares first tells the other.
            Error::Refused { reason, .. } => assert!(!reason.is_empty()),
            other => panic!("{other}"),
        }
        // The guest is none the worse for it.
        run_until_seen(&a.vm, &world, 50);
    }
}

#[test]
fn an_address_in_use_is_named() {
    let mut pair = Pair::new();
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    pair.listen = taken.local_addr().expect("a bound listener");
    let mut a = pair.start("a", FakeVm::new(&world(), PAGES));
    let error = a.ended().expect_err("the port is in use").to_string();
    assert!(error.contains(&pair.listen.to_string()), "{error}");
}

#[test]
fn a_standby_waits_for_a_primary_that_is_not_there_yet() {
    let mut pair = Pair::new();
    pair.dial = free_address();
    let mut b = pair.start("b", FakeVm::new(&world(), PAGES));
    std::thread::sleep(Duration::from_millis(300));
    b.stop();
    assert_eq!(b.ended().expect("a clean stop"), Ended::Stopped);
}

#[test]
fn a_damaged_arbiter_file_stops_nothing_but_decides_nothing() {
    let (pair, world) = (Pair::new(), world());
    let file = pair.directory.path().join("arbiter");
    std::fs::write(&file, "evertwin-arbiter-1 1 a - 0000000000000000\n").expect("a file");
    let a = pair.start("a", FakeVm::new(&world, PAGES));
    std::thread::sleep(Duration::from_millis(300));
    assert!(!a.vm.running(), "no right is guessed");
    std::fs::remove_file(&file).expect("it is there");
    wait_for("a boots", || a.vm.running());
}
