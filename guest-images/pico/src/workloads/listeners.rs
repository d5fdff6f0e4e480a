//! A TCP server's sockets: each one serves a client after another.

use alloc::vec::Vec;

use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::{Socket, State};

use crate::hardware::heap;
use crate::network::Network;

/// Clients that are served at once.
pub(super) const CLIENTS_MAX: usize = 64;
/// Sockets: beyond those of clients for connections that are still closing while as many
/// new ones come, and for clients that have to be refused.
pub(super) const SOCKETS: usize = 2 * CLIENTS_MAX + 8;
/// Socket buffers, in bytes for each direction: at most, and in small machines.
const BUFFER_MAX: usize = 32 * 1024;
const BUFFER_MIN: usize = 4 * 1024;

/// What has become of a socket since the last look.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Client {
    /// None yet, or none any more: forget what belonged to the last one.
    Absent,
    /// Connected; in its last stages, too.
    Present,
}

/// Adds sockets that all listen on `port`.
pub(super) fn open(network: &mut Network, port: u16) -> Vec<SocketHandle> {
    // An eighth of the heap for all buffers.
    let share = heap::total() / 8 / (2 * SOCKETS);
    let buffer = share.clamp(BUFFER_MIN, BUFFER_MAX);
    let handles: Vec<_> = (0..SOCKETS).map(|_| network.add_socket(buffer)).collect();
    network.serve(port);
    for &handle in &handles {
        look(network.sockets.get_mut(handle), port);
    }
    handles
}

/// Looks at a socket, and lets it listen again when its client has gone.
pub(super) fn look(socket: &mut Socket<'_>, port: u16) -> Client {
    match socket.state() {
        State::Closed | State::TimeWait => {
            // Fails only for a socket in use or for port 0.
            let _ = socket.listen(port);
            Client::Absent
        }
        State::Listen | State::SynReceived => Client::Absent,
        _ => Client::Present,
    }
}
