//! `workload=echo`: sends back what clients send.

use pico::command_line::CommandLine;
use smoltcp::socket::tcp::Socket;

use super::listeners::{self, Client};
use super::{DEFAULT_PORT, number, sleep};
use crate::hardware::console::say;
use crate::hardware::interrupts;
use crate::network::Network;

pub(super) fn run(line: CommandLine<'_>, mut network: Network) -> ! {
    let port = number(line, "port", DEFAULT_PORT, u64::from(u16::MAX)) as u16;
    let handles = listeners::open(&mut network, port);
    say!("ready workload=echo ip={} port={port}", network.address());
    loop {
        let wake = interrupts::take_wake();
        network.poll(wake);
        let mut moved = false;
        for &handle in &handles {
            let socket: &mut Socket<'_> = network.sockets.get_mut(handle);
            if listeners::look(socket, port) == Client::Present {
                moved |= echo(socket);
            }
        }
        if moved {
            network.poll(0);
        }
        sleep(&mut network);
    }
}

/// True: bytes were moved, or the connection was closed.
fn echo(socket: &mut Socket<'_>) -> bool {
    let mut buffer = [0; 2048];
    let mut moved = false;
    while socket.can_recv() && socket.can_send() {
        let room = buffer
            .len()
            .min(socket.send_capacity() - socket.send_queue());
        match socket.recv_slice(&mut buffer[..room]) {
            Ok(length) if length > 0 => {
                // There is room for all of it.
                let _ = socket.send_slice(&buffer[..length]);
                moved = true;
            }
            _ => break,
        }
    }
    if !socket.may_recv() && socket.may_send() && !socket.can_recv() {
        socket.close();
        moved = true;
    }
    moved
}
