//! `evertwin-bench [NAME...]`: measures the figures that matter, all of them or those named.

use std::process::ExitCode;

use evertwin_benches::report::Row;
use evertwin_benches::{
    blackout, boot, delay, disk, disk_ha, link, memory, pause, resync, stock_boot, switchover,
};

/// A name for the command line, and what it runs.
type Bench = (&'static str, fn() -> Row);

const BENCHES: [Bench; 17] = [
    ("pause", pause::run),
    ("delay", delay::run),
    ("blackout", blackout::run),
    ("switchover", switchover::run),
    ("link-plain", link::plain),
    ("link-tls", link::tls),
    ("disk-random", disk::random_writes),
    ("disk-sequential", disk::sequential_writes),
    ("disk-random-direct", disk::direct_random_writes),
    ("disk-sequential-direct", disk::direct_sequential_writes),
    ("disk-read", disk::sequential_reads),
    ("disk-ha", disk_ha::write),
    ("resync-full", resync::full),
    ("resync-delta", resync::delta),
    ("boot", boot::run),
    ("memory", memory::run),
    ("stock-boot", stock_boot::run),
];

fn main() -> ExitCode {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    if wanted.iter().any(|name| name == "--list") {
        BENCHES.iter().for_each(|(name, _)| println!("{name}"));
        return ExitCode::SUCCESS;
    }
    if let Some(unknown) = wanted.iter().find(|w| BENCHES.iter().all(|(n, _)| n != w)) {
        eprintln!("evertwin-bench: there is no bench `{unknown}`; --list names them all");
        return ExitCode::FAILURE;
    }
    let mut rows = Vec::new();
    for (name, run) in BENCHES {
        if wanted.is_empty() || wanted.iter().any(|w| w == name) {
            eprintln!("measuring {name} ...");
            let row = run();
            row.print();
            rows.push(row);
        }
    }
    if let Err(error) = write_report(&rows) {
        eprintln!("evertwin-bench: target/bench/report.json: {error}");
        return ExitCode::FAILURE;
    }
    let reached = rows.iter().filter(|row| row.reached).count();
    println!("bench: rows={} reached={reached}", rows.len());
    ExitCode::SUCCESS
}

fn write_report(rows: &[Row]) -> std::io::Result<()> {
    std::fs::create_dir_all("target/bench")?;
    std::fs::write("target/bench/report.json", serde_json::to_vec_pretty(rows)?)
}
