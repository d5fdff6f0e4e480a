//! What pico does, chosen by `workload=` on the command line.

mod bursts;
mod cpu;
mod dirty;
mod disk;
mod echo;
mod io;
mod kv;
mod listeners;

use pico::command_line::CommandLine;

use crate::hardware::console::say;
use crate::hardware::interrupts;
use crate::network::Network;
use crate::virtio::{self, Devices};

/// Guest time between two progress reports on the console.
const REPORT_NS: u64 = 1_000_000_000;
/// TCP port of `kv` and `echo` without `port=`.
const DEFAULT_PORT: u64 = 6379;

/// Runs the chosen workload for ever.
pub(crate) fn run(line: CommandLine<'_>) -> ! {
    let devices = virtio::discover(line);
    match line.value("workload") {
        Some("kv") => kv::run(line, devices),
        Some("echo") => echo::run(line, start_network(line, devices)),
        Some("bursts") => bursts::run(line, devices),
        Some("io") => io::run(line, devices),
        Some("disk") => disk::run(line, devices),
        Some("dirty") => dirty::run(line),
        Some("cpu") => cpu::run(line),
        Some("idle") | None => idle(line, devices),
        Some(other) => {
            panic!("workload={other}: use kv, dirty, echo, cpu, disk, bursts, io or idle")
        }
    }
}

/// Answers pings, if there is a network; nothing else.
fn idle(line: CommandLine<'_>, devices: Devices) -> ! {
    if devices.net.is_none() || line.value("ip").is_none() {
        say!("ready workload=idle");
        loop {
            interrupts::take_wake();
            interrupts::sleep();
        }
    }
    let mut network = start_network(line, devices);
    say!("ready workload=idle ip={}", network.address());
    loop {
        let wake = interrupts::take_wake();
        network.poll(wake);
        sleep(&mut network);
    }
}

fn start_network(line: CommandLine<'_>, devices: Devices) -> Network {
    let device = devices
        .net
        .unwrap_or_else(|| panic!("no network device: use --net"));
    Network::start(device, line)
}

/// Sleeps until an interrupt or the stack's next deadline, unless there is work.
fn sleep(network: &mut Network) {
    if let Ok(deadline) = network.prepare_sleep() {
        interrupts::sleep_until(deadline);
        network.awake();
    }
}

/// A number from the command line within bounds, or its default.
fn number(line: CommandLine<'_>, key: &'static str, default: u64, most: u64) -> u64 {
    match line.number(key) {
        Ok(None) => default,
        Ok(Some(value)) if (1..=most).contains(&value) => value,
        Ok(Some(value)) => panic!("{key}={value}: use 1 to {most}"),
        Err(value) => panic!("{key}={value}: use a number from 1 to {most}"),
    }
}
