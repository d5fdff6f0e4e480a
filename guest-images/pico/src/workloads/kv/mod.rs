//! `workload=kv`: a server for Redis clients. With `log=vda` every write is on the disk
//! before it is answered.

mod connection;
mod log;

use alloc::vec::Vec;

use pico::command_line::CommandLine;
use pico::kv::commands::Server;
use pico::kv::store::Store;
use smoltcp::socket::tcp::Socket;

use self::connection::{Connection, Shared};
use self::log::Log;
use super::listeners::{self, CLIENTS_MAX, Client};
use super::{DEFAULT_PORT, number, sleep, start_network};
use crate::hardware::console::say;
use crate::hardware::{clock, heap, interrupts};
use crate::virtio::Devices;

pub(super) fn run(line: CommandLine<'_>, mut devices: Devices) -> ! {
    let port = number(line, "port", DEFAULT_PORT, u64::from(u16::MAX)) as u16;
    let mut log = match line.value("log") {
        None => None,
        Some("vda") => {
            Some(Log::open(devices.block.take().unwrap_or_else(|| {
                panic!("log=vda: no block device, use --disk")
            })))
        }
        Some(other) => panic!("log={other}: use vda"),
    };
    // Three eighths of the heap: clients may take as much, sockets an eighth.
    let on_disk = log.as_ref().map_or(usize::MAX, Log::store_limit);
    let mut store = Store::new((heap::total() / 8 * 3).min(on_disk));
    if let Some(log) = &mut log {
        log.replay(&mut store);
    }
    let mut network = start_network(line, devices);
    let handles = listeners::open(&mut network, port);
    let mut connections: Vec<_> = handles
        .into_iter()
        .map(|handle| (handle, Connection::default()))
        .collect();
    say!("ready workload=kv ip={} port={port}", network.address());

    let started = clock::now();
    let mut server = Server {
        clients_max: CLIENTS_MAX,
        port,
        append_only: log.is_some(),
        ..Server::default()
    };
    loop {
        let wake = interrupts::take_wake();
        let mut progress = network.poll(wake);
        if let Some(log) = &mut log {
            log.poll(wake);
        }
        server.uptime_s = (clock::now() - started) / 1_000_000_000;
        // Those who are here first: some may leave, and make room for new ones.
        for newcomers in [false, true] {
            for (handle, connection) in &mut connections {
                let socket: &mut Socket<'_> = network.sockets.get_mut(*handle);
                if listeners::look(socket, port) == Client::Absent {
                    connection.reset(&mut server);
                } else if connection.is_known() != newcomers {
                    let log = log.as_mut();
                    let shared = Shared {
                        store: &mut store,
                        log,
                        server: &mut server,
                    };
                    progress |= connection.advance(socket, shared);
                }
            }
        }
        // What the clients of this round wrote is one batch.
        if let Some(log) = &mut log {
            log.start_batch(&store);
        }
        if progress {
            network.poll(0);
            continue;
        }
        if log.as_mut().is_none_or(Log::prepare_sleep) {
            sleep(&mut network);
        }
    }
}
