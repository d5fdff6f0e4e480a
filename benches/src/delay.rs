//! What the output gate adds to a round trip.

use std::io::{BufReader, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use evertwin::lab::pair::PairConfig;
use evertwin::lab::resp;
use evertwin::lab::topology::{GUEST_KV, Node, TAP};
use evertwin_tests::lab::{STEP, TestLab};
use evertwin_tests::stage::Stage;

use crate::report::{Row, Samples, Target, show};

const WARM_UP: usize = 200;
const ROUND_TRIPS: usize = 3000;
const CMDLINE: &str = "workload=kv ip=10.77.0.2/24";

/// Measures it.
#[must_use]
pub fn run() -> Row {
    let bare = bare();
    let protected = protected();
    let mut added = Samples::default();
    for time in &protected {
        added.add(time.saturating_sub(median(&bare)));
    }
    let mut floor = Samples::default();
    bare.iter().for_each(|time| floor.add(*time));
    let whole = show(median(&protected).as_secs_f64() * 1e6);
    Row::new(
        "round trip added by the output gate",
        &added,
        ("the same round trip without protection", &floor),
        Target::Within(Duration::from_millis(4)),
        vec![format!("whole protected round trip: p50 {whole}")],
    )
}

fn median(times: &[Duration]) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort();
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

fn bare() -> Vec<Duration> {
    let lab = TestLab::new();
    let net = format!("tap={TAP},mac={}", evertwin::lab::pair::GUEST_MAC);
    let mut process = lab.evertwin(
        "bare",
        [
            "run",
            "--kernel",
            "pico",
            "--cmdline",
            CMDLINE,
            "--memory",
            "128M",
            "--net",
            &net,
        ],
    );
    process
        .wait_for_console("ready", STEP)
        .unwrap_or_else(|error| panic!("{error}"));
    let stream = lab
        .topology
        .client
        .connect(GUEST_KV, STEP)
        .unwrap_or_else(|error| panic!("{error}"));
    ping_pong(stream)
}

fn protected() -> Vec<Duration> {
    let config = PairConfig {
        cmdline: CMDLINE.into(),
        disk: None,
        ..PairConfig::default()
    };
    let mut stage = Stage::protected(&config);
    let stream = stage
        .pair
        .topology
        .client
        .connect(GUEST_KV, STEP)
        .unwrap_or_else(|error| panic!("{error}"));
    let times = ping_pong(stream);
    assert!(stage.twin(Node::A).is_running(), "the primary ended");
    times
}

fn ping_pong(mut stream: TcpStream) -> Vec<Duration> {
    let connection = |error: std::io::Error| -> ! { panic!("ping-pong: {error}") };
    stream.set_nodelay(true).unwrap_or_else(|e| connection(e));
    stream
        .set_read_timeout(Some(STEP))
        .unwrap_or_else(|e| connection(e));
    let mut answers = BufReader::new(stream.try_clone().unwrap_or_else(|e| connection(e)));
    let mut request = Vec::new();
    resp::encode(&mut request, &[b"PING"]);
    let mut times = Vec::with_capacity(ROUND_TRIPS);
    for round in 0..WARM_UP + ROUND_TRIPS {
        let begun = Instant::now();
        stream.write_all(&request).unwrap_or_else(|e| connection(e));
        resp::read(&mut answers).unwrap_or_else(|e| connection(e));
        if round >= WARM_UP {
            times.push(begun.elapsed());
        }
    }
    times
}
