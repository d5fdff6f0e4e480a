//! What a client sees of a planned move of its guest: Evertwin's switchover, and QEMU's live migration of the same guest.

use std::time::{Duration, Instant};

use evertwin::lab::client::{Load, LoadOptions};
use evertwin::lab::pair::PairConfig;
use evertwin::lab::topology::{GUEST_KV, Node, Topology};
use evertwin_tests::lab::STEP;
use evertwin_tests::stage::Stage;

use crate::report::{Row, Samples};

mod image;
mod qemu;
mod qmp;

use qemu::{Migration, Peer};

const ROUNDS: usize = 20;
/// Answers after which a moved guest counts as well.
const ANSWERS: u64 = 200;

/// QEMU stops the guest when it expects what is left to take no longer than this, in milliseconds. The first is its default;
/// who wants the shortest gap sets a lower one.
const LIMITS_MS: [u64; 2] = [300, 5];
/// A gap that is longer has seen a request get lost: Linux sends it again after 200 ms at the earliest, and a migration's own
/// times are far below.
const LOST: Duration = Duration::from_millis(150);

/// QEMU with one limit, and what came of it.
struct Arm {
    limit_ms: u64,
    gap: Samples,
    /// Of the migrations in which no request was lost.
    lossless: Samples,
    downtime: Samples,
    total: Samples,
}

impl Arm {
    fn new(limit_ms: u64) -> Self {
        Self {
            limit_ms,
            gap: Samples::default(),
            lossless: Samples::default(),
            downtime: Samples::default(),
            total: Samples::default(),
        }
    }

    fn name(&self) -> String {
        format!("QEMU, downtime-limit {} ms", self.limit_ms)
    }

    fn add(&mut self, gap: Duration, migration: &Migration) {
        self.gap.add(gap);
        self.downtime.add(migration.downtime);
        self.total.add(migration.total);
        if gap < LOST {
            self.lossless.add(gap);
        }
    }
}

/// Measures them in turns.
#[must_use]
pub fn migration() -> Row {
    let version = qemu::version();
    // Neither has a disk: QEMU would need one that both hosts reach, or a second copy of it.
    let config = PairConfig {
        cmdline: "workload=kv ip=10.77.0.2/24".into(),
        disk: None,
        ..PairConfig::default()
    };
    let stage = Stage::protected(&config);
    let mut peer = Peer::start(stage.lab.another(), &config);
    let mut arms = LIMITS_MS.map(Arm::new);
    let mut switchover = Samples::default();
    let nodes = [Node::A, Node::B];
    for round in 0..ROUNDS {
        switchover.add(gap(&stage.pair.topology, || {
            let output = stage.operate(nodes[round % 2], &["switchover"]);
            assert!(output.status.success(), "{output:?}");
        }));
        for arm in &mut arms {
            let there = peer.prepare();
            let topology = peer.lab.topology.clone();
            let mut migration = None;
            let gap = gap(&topology, || {
                migration = Some(peer.migrate(there, arm.limit_ms));
            });
            arm.add(gap, &migration.expect("it came to its end"));
        }
    }
    row(&version, &config, &switchover, &arms)
}

fn row(version: &str, config: &PairConfig, switchover: &Samples, arms: &[Arm; 2]) -> Row {
    // The peer's better one.
    let [usual, low] = arms;
    let best = match usual.gap.p50() <= low.gap.p50() {
        true => usual,
        false => low,
    };
    let mut row = Row::new("longest gap for a client when its guest moves", switchover)
        .floor(
            &format!("the same guest's live migration: {}", best.name()),
            &best.gap,
        )
        .times_floor_at_most(1.0)
        .detail(version);
    for arm in arms {
        let name = arm.name();
        let lost = arm.gap.count() - arm.lossless.count();
        row = row
            .part(&format!("{name}: longest gap"), &arm.gap)
            .part(&format!("{name}: where nothing was lost"), &arm.lossless)
            .part(&format!("{name}: its `downtime`"), &arm.downtime)
            .part(&format!("{name}: its `total-time`"), &arm.total)
            .detail(format!(
                "{name}: {lost} of {ROUNDS} migrations lost a request, which its client sent again"
            ));
    }
    let run = |node| format!("evertwin run vm.toml --node {node} --log-format json");
    row.commands([
        run("a"),
        run("b"),
        "evertwin switchover vm.toml --node a".into(),
        format!("# vm.toml:\n{}", config.to_toml()),
    ])
    .commands(qemu::commands(&config.memory, &LIMITS_MS))
}

/// The longest time without an answer while the guest moves.
fn gap(topology: &Topology, moves: impl FnOnce()) -> Duration {
    let stream = topology.client.connect(GUEST_KV, STEP);
    let stream = stream.unwrap_or_else(|error| panic!("{error}"));
    let load = Load::start(stream, LoadOptions::default());
    let load = load.unwrap_or_else(|error| panic!("{error}"));
    let until = Instant::now() + Duration::from_millis(500);
    load.wait_until(STEP, |_| Instant::now() >= until);
    load.measure_anew();
    moves();
    let done = load.progress().acked;
    assert!(
        load.wait_until(STEP, |now| now.acked > done + ANSWERS),
        "the guest did not go on: {:?}",
        load.progress()
    );
    let verdict = load.finish();
    assert!(verdict.is_clean(), "{}", verdict.summary());
    verdict.progress.longest_gap
}
