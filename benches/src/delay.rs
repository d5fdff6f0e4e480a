//! What the output gate adds to a round trip.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use evertwin::lab::resp;
use evertwin::lab::round_trips::round_trips;
use evertwin::lab::topology::{GUEST_KV, Node, Topology};
use evertwin_tests::lab::STEP;
use evertwin_tests::stage::Stage;

use crate::arms::{Arm, Running, Setup, Undisturbed};
use crate::floor::Stoppable;
use crate::pin::{Pinned, Side};
use crate::plot::{Axis, Lines, Plot};
use crate::report::{Row, Samples};
use crate::wire;

const ROUNDS: usize = 3;
const WARM_UP: Duration = Duration::from_millis(300);
const TIME: Duration = Duration::from_millis(1500);
/// What a standby's acknowledgement takes of the link, with TLS.
const ACKNOWLEDGEMENT: usize = 64;
const LINK_ROUND_TRIPS: usize = 1000;
/// As little as an epoch of a ping has.
const FLOOR: &str = "workload=dirty pages=16 period_us=2000 pattern=hot";
const FLOOR_PERIOD: Duration = Duration::from_millis(2);
const ORDER: [Arm; 4] = [Arm::Bare, Arm::Protected, Arm::Plaintext, Arm::Logging];

/// What the twin says of its newest epoch that both have.
///
/// # Panics
/// If it does not say.
#[must_use]
pub fn epoch(stage: &Stage, node: Node) -> u64 {
    let output = stage.operate(node, &["status", "--json"]);
    let status: Option<serde_json::Value> = serde_json::from_slice(&output.stdout).ok();
    let epoch = status.and_then(|status| status["epoch"].as_u64());
    epoch.unwrap_or_else(|| panic!("no epoch in the status: {output:?}"))
}

/// Measures it in four arms, and protected without each of two optimisations.
#[must_use]
pub fn run() -> Row {
    let mut setup = Setup::default();
    let mut undisturbed = Undisturbed::default();
    let mut arms = Arm::ALL.map(|_| Samples::default());
    let mut off = [
        ("poll off", setup.switched(|on| on.poll = false)),
        ("deltas off", setup.switched(|on| on.deltas = false)),
    ]
    .map(|(name, setup)| (name, setup, Samples::default()));
    let (mut link, mut lengths) = (Samples::default(), Samples::default());
    let (mut bytes, mut epochs) = (0, 0);
    for _ in 0..ROUNDS {
        for arm in ORDER {
            let measured = undisturbed.measure(&setup, arm, one);
            arms[arm.index()].add_round(&measured.times);
            if arm == Arm::Protected {
                let length = TIME.div_f64(measured.epochs.max(1) as f64);
                setup.harvest = Some(length.max(Duration::from_micros(100)));
                lengths.add(length);
                (bytes, epochs) = (bytes + measured.bytes, epochs + measured.epochs);
                link.add_round(&measured.link);
            }
        }
        for (_, setup, times) in &mut off {
            times.add_round(&undisturbed.measure(setup, Arm::Protected, one).times);
        }
    }
    let mut pause = Samples::default();
    let guest = Setup {
        cmdline: FLOOR.into(),
        ..Setup::default()
    };
    let stops = Stoppable::start(&guest).stops(FLOOR_PERIOD, TIME, |stop| stop.pages < 64);
    stops.iter().for_each(|stop| pause.add(stop.floor()));
    let mut floor = Samples::default();
    floor.push(pause.p50() + link.p50());

    let of = |arm: Arm| &arms[arm.index()];
    let bare = of(Arm::Bare).p50();
    let added = |arm: Arm| beyond(of(arm), bare);
    let distribution = |arm: &Arm| (arm.name().to_owned(), of(*arm).distribution());
    let mut row = Row::new("delay added to a round trip over one connection", &added(Arm::Protected))
        .floor("the pause's floor, and sending and acknowledging the same bytes", &floor)
        .p50_at_most(600.0)
        .p99_at_most(2000.0)
        .times_floor_at_most(1.5)
        .part("added without TLS", &added(Arm::Plaintext))
        .part("added by dirty logging only", &added(Arm::Logging))
        .part("whole round trip, bare", of(Arm::Bare))
        .part("whole round trip, protected", of(Arm::Protected))
        .part("floor's pause: state ioctls and harvest", &pause)
        .part("floor's link: the epoch's bytes and an answer", &link)
        .detail(format!(
            "the median of the bare guest is taken from each round trip; an epoch is {} long on average and has {} bytes on the link",
            lengths.show_p50(),
            bytes / epochs.max(1)
        ))
        .plot(Plot::Lines(Lines {
            title: "Round trips of one connection (distribution)".into(),
            x: Axis::logarithmic("microseconds"),
            y: Axis::linear("percent"),
            series: Arm::ALL.iter().map(distribution).collect(),
        }))
        .commands(setup.all_commands());
    for (name, setup, times) in &off {
        row = row
            .part(&format!("added with {name}"), &beyond(times, bare))
            .commands(setup.commands(Arm::Protected));
    }
    undisturbed.note(row)
}

/// One arm in one round. The last three are a pair's.
#[derive(Default)]
struct Measured {
    times: Samples,
    epochs: u64,
    bytes: u64,
    link: Samples,
}

fn one(running: &mut Running) -> Measured {
    let stream = running.topology().client.connect(GUEST_KV, STEP);
    let stream = stream.unwrap_or_else(|error| panic!("{error}"));
    ping_pong(&stream, WARM_UP);
    let Some(stage) = running.stage() else {
        return Measured {
            times: ping_pong(&stream, TIME),
            ..Measured::default()
        };
    };
    let count = || {
        let sent = wire::sent(stage.pair.topology.host(Node::A));
        (epoch(stage, Node::A), sent)
    };
    let before = count();
    let times = ping_pong(&stream, TIME);
    let after = count();
    let (epochs, bytes) = (after.0 - before.0, after.1 - before.1);
    let each = usize::try_from(bytes / epochs.max(1)).unwrap_or(usize::MAX);
    Measured {
        times,
        epochs,
        bytes,
        link: over_link(&stage.pair.topology, each.max(1)),
    }
}

/// What is left of each sample without `less`.
fn beyond(samples: &Samples, less: f64) -> Samples {
    samples.map(|us| us - less)
}

/// Round trips for so long.
fn ping_pong(stream: &TcpStream, time: Duration) -> Samples {
    let _pinned = Pinned::to(Side::Other);
    let ping = |request: &mut Vec<u8>| resp::encode(request, &[b"PING"]);
    let answered = round_trips(stream, time, ping);
    let mut times = Samples::default();
    let answered = answered.unwrap_or_else(|error| panic!("ping-pong: {error}"));
    answered.iter().for_each(|time| times.add(*time));
    times
}

/// So many bytes from host a to host b, and an acknowledgement back, each in turn.
fn over_link(topology: &Topology, bytes: usize) -> Samples {
    let measured = || -> Result<Samples, Box<dyn std::error::Error>> {
        let mut address = Node::B.address();
        address.set_port(0);
        let listener = topology.b.enter(|| TcpListener::bind(address))??;
        let mut stream = topology.a.connect(listener.local_addr()?, STEP)?;
        let (mut accepted, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        accepted.set_nodelay(true)?;
        let answering = std::thread::spawn(move || {
            let _pinned = Pinned::to(Side::Other);
            let mut buffer = vec![0; bytes];
            // The end of the stream is the end of the work.
            while accepted.read_exact(&mut buffer).is_ok() {
                if accepted.write_all(&[1; ACKNOWLEDGEMENT]).is_err() {
                    break;
                }
            }
        });
        let _pinned = Pinned::to(Side::Guest);
        let (epoch, mut answer) = (vec![1; bytes], [0; ACKNOWLEDGEMENT]);
        let mut times = Samples::default();
        for _ in 0..LINK_ROUND_TRIPS {
            let begun = Instant::now();
            stream.write_all(&epoch)?;
            stream.read_exact(&mut answer)?;
            times.add(begun.elapsed());
        }
        drop(stream);
        answering.join().map_err(|_| "the answering end panicked")?;
        Ok(times)
    };
    measured().unwrap_or_else(|error| panic!("link: {error}"))
}
