//! `evertwin-bench [NAME...]`: measures the figures that matter, all of them or those named.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use evertwin_benches::host::Host;
use evertwin_benches::report::{Row, print_row, print_table};
use evertwin_benches::{logging, page};
use serde::Serialize;

mod rows;

use rows::{Bench, ROWS};

const PLACE: &str = "target/bench";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some((first, guest)) = arguments.split_first()
        && first == logging::ARGUMENT
    {
        let Err(error) = logging::serve(guest);
        eprintln!("evertwin-bench: {error}");
        return ExitCode::FAILURE;
    }
    if arguments.iter().any(|name| name == "--list") {
        ROWS.iter()
            .for_each(|row| println!("{:<24} {}", row.name, row.about));
        return ExitCode::SUCCESS;
    }
    let known = |name: &String| ROWS.iter().any(|row| row.name == name);
    if let Some(unknown) = arguments.iter().find(|name| !known(name)) {
        eprintln!("evertwin-bench: there is no row `{unknown}`; --list names them all");
        return ExitCode::FAILURE;
    }
    let host = Host::of_this();
    for (name, value) in host.lines() {
        println!("{name:<10} {value}");
    }
    let wanted =
        |row: &&Bench| arguments.is_empty() || arguments.iter().any(|name| name == row.name);
    let mut rows = Vec::new();
    for bench in ROWS.iter().filter(wanted) {
        eprintln!("measuring {} ...", bench.name);
        let row = measure(bench);
        print_row(&row);
        rows.push(row);
        // After each row: whoever ends this early has what there is.
        if let Err(error) = write_report(&host, &rows) {
            eprintln!("evertwin-bench: {PLACE}: {error}");
            return ExitCode::FAILURE;
        }
    }
    print_table(&rows);
    let reached = rows.iter().filter(|row| row.reached()).count();
    println!("bench: rows={} reached={reached}", rows.len());
    match rows.iter().any(|row| row.failure.is_some()) {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    }
}

/// A row, failed if its measurement panics: the others' are none the worse for it.
fn measure(bench: &Bench) -> Row {
    let measured = catch_unwind(AssertUnwindSafe(bench.run));
    let mut row = measured.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        Row::failed(bench.about, text.unwrap_or("a panic without words"))
    });
    bench.name.clone_into(&mut row.name);
    row
}

/// What programs read.
#[derive(Serialize)]
struct Report<'a> {
    host: &'a Host,
    rows: Vec<Judged<'a>>,
}

/// A row with its verdict.
#[derive(Serialize)]
struct Judged<'a> {
    #[serde(flatten)]
    row: &'a Row,
    ratio: Option<f64>,
    reached: bool,
}

fn write_report(host: &Host, rows: &[Row]) -> std::io::Result<()> {
    let judged = rows.iter().map(|row| Judged {
        row,
        ratio: row.ratio(),
        reached: row.reached(),
    });
    let report = Report {
        host,
        rows: judged.collect(),
    };
    std::fs::create_dir_all(PLACE)?;
    let json = serde_json::to_vec_pretty(&report)?;
    std::fs::write(format!("{PLACE}/report.json"), json)?;
    std::fs::write(format!("{PLACE}/report.html"), page::html(host, rows))
}
