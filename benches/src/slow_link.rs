//! What packing is worth on a link that is slower than a processor packs.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use evertwin::config::FastPath;
use evertwin::lab::pair::PairConfig;
use evertwin::lab::topology::REPLICATION;
use evertwin_tests::stage::Stage;

use crate::report::{Demand, Row, Samples, Unit};
use crate::resync::{bring_back, start_primary};
use crate::wire::sent;

/// Of the disk, which is full of log lines.
const BYTES: u64 = 256 << 20;
const MEMORY: &str = "64M";
const MEGABITS: u32 = 1000;
const ROUNDS: usize = 3;
/// Of the time without packing.
const AIM: f64 = 0.5;

/// Measures a full copy, packed and not, in turns.
#[must_use]
pub fn run() -> Row {
    let (mut packed, mut plain) = (Samples::default(), Samples::default());
    let mut bytes = [Samples::of(Unit::Bytes), Samples::of(Unit::Bytes)];
    for _ in 0..ROUNDS {
        for (pack, times) in [(true, &mut packed), (false, &mut plain)] {
            let mut stage = Stage::new(&config(pack));
            write_lines(&stage.lab.path("disk-a.img"));
            let host = stage.pair.topology.a.clone();
            host.limit_outbound(REPLICATION, MEGABITS)
                .unwrap_or_else(|error| panic!("{error}"));
            start_primary(&mut stage);
            times.add(bring_back(&mut stage).time);
            bytes[usize::from(pack)].push(sent(&host) as f64);
        }
    }
    let share = packed.p50() / plain.p50();
    let mb = |samples: &Samples| samples.p50() / 1e6;
    Row::new("full resync of 256 MiB of log lines over 1 Gbit/s", &packed)
        .floor("the same with pack off", &plain)
        .demand(Demand::at_most("packed over not", Unit::Ratio, share, AIM))
        .detail(format!(
            "{:.0} MB on the link, {:.0} without packing; how fast it is is known after 16 MiB",
            mb(&bytes[1]),
            mb(&bytes[0])
        ))
        .commands([format!(
            "tc qdisc replace dev {REPLICATION} root tbf rate {MEGABITS}mbit ...\n# vm.toml:\n{}",
            config(true).to_toml()
        )])
}

fn config(pack: bool) -> PairConfig {
    PairConfig {
        cmdline: "workload=idle".to_owned(),
        memory: MEMORY.to_owned(),
        disk: Some(BYTES),
        fast_path: FastPath {
            pack,
            ..FastPath::default()
        },
        ..PairConfig::default()
    }
}

/// Fills an image with lines as a plant's log has them: most of a line is as in the one before, its readings are not.
fn write_lines(image: &Path) {
    let mut random = fastrand::Rng::with_seed(7);
    let written = File::options().write(true).open(image).and_then(|file| {
        let mut file = BufWriter::with_capacity(1 << 20, file);
        let (mut at, mut ms) = (0, 0_u64);
        while at < BYTES {
            ms += random.u64(1..40);
            let mut line = format!(
                "2026-11-21T10:{:02}:{:02}.{:03}Z pump-{} flow={:.3} pressure={:.3} state=running\n",
                ms / 60_000 % 60,
                ms / 1000 % 60,
                ms % 1000,
                random.u8(1..8),
                random.f64() * 30.0,
                random.f64() * 6.0
            );
            line.truncate(usize::try_from(BYTES - at).unwrap_or(usize::MAX));
            file.write_all(line.as_bytes())?;
            at += line.len() as u64;
        }
        file.flush()
    });
    written.unwrap_or_else(|error| panic!("{}: {error}", image.display()));
}
