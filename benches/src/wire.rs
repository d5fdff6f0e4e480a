//! What goes over the replication link while a key-value server is written to.

use std::time::Duration;

use evertwin::lab::namespace::NetNamespace;
use evertwin::lab::topology::{Node, REPLICATION};

use crate::arms::{Arm, Setup, Undisturbed};
use crate::redis;
use crate::report::{Demand, Row, Samples, Unit};

const ROUNDS: usize = 2;
const PAGE: f64 = 4096.0;
const LOAD: [&str; 8] = ["-t", "set", "-n", "20000", "-r", "10000", "-d", "100"];
/// What is captured last is on its way a little later.
const REST: Duration = Duration::from_millis(300);

/// Bytes that a host has sent over the replication link, with all headers.
///
/// # Panics
/// If the host does not say.
#[must_use]
pub fn sent(host: &NetNamespace) -> u64 {
    let sent = host.sent(REPLICATION);
    sent.unwrap_or_else(|error| panic!("{error}"))
}

/// What the link carried in all rounds.
struct Carried {
    /// Bytes of an epoch on the link, of each round.
    bytes: Samples,
    /// Bytes of an epoch's dirty pages, of each round.
    whole: Samples,
    /// The one over the other, on average.
    ratio: f64,
    epochs: usize,
    pages: u64,
}

impl Carried {
    fn new() -> Self {
        Self {
            bytes: Samples::of(Unit::Bytes),
            whole: Samples::of(Unit::Bytes),
            ratio: 0.0,
            epochs: 0,
            pages: 0,
        }
    }

    fn measure(&mut self, setup: &Setup, undisturbed: &mut Undisturbed) {
        let (carried, captured) = undisturbed.measure(setup, Arm::Protected, |running| {
            std::thread::sleep(REST);
            let from = running.guest().log().len();
            let before = sent(running.topology().host(Node::A));
            redis::benchmark(running.lab(), &LOAD);
            std::thread::sleep(REST);
            let carried = sent(running.topology().host(Node::A)) - before;
            (carried, running.epochs_since(from))
        });
        let dirty: u64 = captured.iter().map(|epoch| epoch.pages).sum();
        let per_epoch = captured.len().max(1) as f64;
        self.bytes.push(carried as f64 / per_epoch);
        self.whole.push(dirty as f64 * PAGE / per_epoch);
        self.ratio += carried as f64 / (dirty as f64 * PAGE) / ROUNDS as f64;
        self.epochs += captured.len();
        self.pages += dirty;
    }

    fn pages_per_epoch(&self) -> f64 {
        self.pages as f64 / self.epochs.max(1) as f64
    }
}

/// Measures it, and how it would be without deltas.
#[must_use]
pub fn run() -> Row {
    let setup = Setup {
        log_epochs: true,
        ..Setup::default()
    };
    let without_deltas = setup.switched(|on| on.deltas = false);
    let (mut carried, mut off) = (Carried::new(), Carried::new());
    let mut undisturbed = Undisturbed::default();
    for _ in 0..ROUNDS {
        carried.measure(&setup, &mut undisturbed);
        off.measure(&without_deltas, &mut undisturbed);
    }
    let row = Row::new("bytes on the wire per epoch, key-value load", &carried.bytes)
        .floor("all of the dirty pages", &carried.whole)
        .demand(Demand::at_most("wire / (4096 x dirty pages)", Unit::Ratio, carried.ratio, 0.15))
        .part("deltas off", &off.bytes)
        .detail(format!(
            "{} epochs of {:.1} pages; bytes that left by the interface, with the headers of TLS, TCP, IP and Ethernet",
            carried.epochs,
            carried.pages_per_epoch()
        ))
        .detail(format!(
            "deltas off: {} of the dirty pages, {} epochs of {:.1} pages",
            Unit::Ratio.show(off.ratio),
            off.epochs,
            off.pages_per_epoch()
        ))
        .commands(setup.commands(Arm::Protected))
        .commands(without_deltas.commands(Arm::Protected))
        .commands([redis::command_line(&LOAD)]);
    undisturbed.note(row)
}
