//! `make disk-torture`: kills, freezes and cuts off the twins of a pair again and again, changes the disks of those that
//! are down behind their backs, and compares both disks in full after each time. [`judge`] says how.

mod blow;
mod copies;
mod cycle;
mod error;
mod guest;
mod images;
mod judge;
mod pattern;
mod rot;
mod site;
mod tamper;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use evertwin::lab::preflight;
use evertwin::lab::topology::Node;
use fastrand::Rng;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use cycle::Cycle;
use error::TortureError;
use site::Site;

/// Kills, freezes and cuts off the twins of a pair again and again, and compares their disks each time.
#[derive(Debug, Parser)]
struct Cli {
    /// How long; the cycle that is under way then is finished.
    #[arg(long, default_value_t = 15.0)]
    minutes: f64,
    /// Repeats what was left to chance in another run; the machine's own timing is not repeated.
    #[arg(long)]
    seed: Option<u64>,
    /// The monitor under test; without it, that of `make build`.
    #[arg(long, env = "EVERTWIN_BIN")]
    evertwin: Option<PathBuf>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let mut total = Total::default();
    let done = run(&cli, &mut total);
    if let Err(error) = &done {
        println!("disks: {error}");
    }
    println!(
        "disks: cycles={} lost_writes={} mismatched_blocks={} delta={} full={} rotten={} repaired={} resumed={}",
        total.cycles,
        total.lost,
        total.mismatched,
        total.delta,
        total.full,
        total.rotten,
        total.repaired,
        total.resumed
    );
    let good = done.is_ok() && total.cycles > 0 && total.lost == 0 && total.mismatched == 0;
    ExitCode::from(u8::from(!good))
}

fn run(cli: &Cli, total: &mut Total) -> Result<(), TortureError> {
    preflight::gain_namespace_rights()?;
    preflight::check()?;
    let built = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../target/x86_64-unknown-linux-gnu/release/evertwin");
    let evertwin = cli.evertwin.clone().unwrap_or(built);
    let evertwin = evertwin.canonicalize().map_err(TortureError::io(format!(
        "{}: run `make build`",
        evertwin.display()
    )))?;
    let directory = tempfile::Builder::new()
        .prefix("evertwin-disk-torture-")
        .tempdir()
        .map_err(TortureError::io("making a directory"))?;
    end_on_signals(directory.path());
    let seed = cli.seed.unwrap_or_else(|| fastrand::u64(..));
    println!("disks: seed={seed}");
    let length = Duration::try_from_secs_f64(cli.minutes * 60.0).unwrap_or(Duration::MAX);
    // The twins end before their directory goes.
    let tortured = Site::new(&evertwin, directory.path())
        .and_then(|mut site| torture(&mut site, seed, length, total));
    if tortured.is_err() {
        println!("disks: the files are in {}", directory.keep().display());
    }
    tortured
}

/// Cycle after cycle, until the time is over or one goes wrong.
fn torture(
    site: &mut Site,
    seed: u64,
    length: Duration,
    total: &mut Total,
) -> Result<(), TortureError> {
    let began = Instant::now();
    let mut primary = None;
    for number in 0.. {
        // A cycle is the same whatever the ones before it came to need of chance.
        let mut random = Rng::with_seed(seed.wrapping_add(number));
        let mut cycle = Cycle::new(&mut random);
        let since = Instant::now();
        let done = cycle.run(site, primary, &mut random);
        site.listen();
        total.count(site, &done);
        tell(number, &cycle, site, &done, since.elapsed());
        primary = Some(done?);
        total.cycles += number.min(1);
        if began.elapsed() >= length {
            break;
        }
    }
    Ok(())
}

fn tell(
    number: u64,
    cycle: &Cycle,
    site: &mut Site,
    done: &Result<Node, TortureError>,
    took: Duration,
) {
    let copies = std::mem::take(&mut site.copies.told);
    let copies = match copies.is_empty() {
        true => "-".to_owned(),
        false => copies.join(","),
    };
    let primary = match done {
        Ok(primary) => primary.name(),
        Err(_) => "WRONG",
    };
    println!(
        "{number:>4} primary={primary} rounds={} copies={copies} protected_ms={} ms={} {}",
        std::mem::take(&mut site.guest.rounds),
        cycle.protected.as_millis(),
        took.as_millis(),
        cycle.told.join(", ")
    );
}

/// The counts of a run.
#[derive(Default)]
struct Total {
    cycles: u64,
    lost: u64,
    mismatched: u64,
    delta: u64,
    full: u64,
    rotten: u64,
    repaired: u64,
    resumed: u64,
}

impl Total {
    fn count(&mut self, site: &Site, done: &Result<Node, TortureError>) {
        (self.delta, self.full) = (site.copies.delta, site.copies.full);
        self.resumed = site.copies.resumed;
        (self.rotten, self.repaired) = (site.rot.rotten, site.rot.repaired);
        match done {
            Err(TortureError::Lost { count, .. }) => self.lost += count,
            Err(TortureError::Guest { errors, .. }) => self.lost += errors,
            Err(TortureError::Mismatch { count, .. }) => self.mismatched += count,
            _ => {}
        }
    }
}

/// Ends the run when it is interrupted. The twins end with the threads that started them.
fn end_on_signals(directory: &Path) {
    let directory = directory.to_owned();
    let Ok(mut signals) = Signals::new([SIGINT, SIGTERM, SIGHUP]) else {
        return;
    };
    std::thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            eprintln!("disks: interrupted");
            let _ = std::fs::remove_dir_all(directory);
            std::process::exit(128 + signal);
        }
    });
}
