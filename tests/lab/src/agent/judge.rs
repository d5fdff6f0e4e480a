//! The judging client as a process of the client's host: it reads orders and tells what it sees, line by line.

use std::io::{self, BufRead as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use evertwin::lab::client::{Load, LoadOptions, Progress};
use serde_json::{Value, json};

/// How often the judge tells what it has seen.
const REPORT_EVERY: Duration = Duration::from_millis(200);

/// Loads the key-value server at `to` over one connection until it is told `finish`, and tells the verdict.
///
/// # Errors
/// If the server can't be reached.
pub fn judge(to: SocketAddr, options: LoadOptions) -> io::Result<bool> {
    let stream = TcpStream::connect_timeout(&to, options.patience)?;
    let load = Load::start(stream, options).map_err(io::Error::other)?;
    let (send_order, orders) = crossbeam_channel::bounded(1);
    std::thread::spawn(move || {
        for line in io::stdin().lock().lines() {
            if line.is_ok_and(|line| line == "finish") {
                let _ = send_order.send(());
                return;
            }
        }
    });
    while orders.recv_timeout(REPORT_EVERY).is_err() {
        tell(&report("progress", &load.progress()))?;
    }
    let verdict = load.finish();
    let mut line = report("verdict", &verdict.progress);
    line["clean"] = verdict.is_clean().into();
    line["read_back"] = verdict.read_back.into();
    line["summary"] = verdict.summary().into();
    tell(&line)?;
    Ok(verdict.is_clean())
}

fn report(message: &str, progress: &Progress) -> Value {
    json!({
        "message": message,
        "acked": progress.acked,
        "lost": progress.lost,
        "duplicated": progress.duplicated,
        "longest_gap_ms": progress.longest_gap.as_millis() as u64,
        "complaints": progress.complaints,
        "broken": progress.broken,
    })
}

fn tell(line: &Value) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}
