//! What epoll events carry: which descriptor they are about.

use rustix::event::epoll::EventData;

use super::connection::Key;

/// No connection has this port of the guest (`VMADDR_PORT_ANY`): events with it are about the
/// muxer's own descriptors.
pub(super) const NO_PORT: u32 = u32::MAX;

/// Names one of the muxer's own descriptors.
pub(super) fn own(id: u32) -> EventData {
    join(Key {
        host_port: id,
        guest_port: NO_PORT,
    })
}

/// Names a connection's socket.
pub(super) fn join(key: Key) -> EventData {
    EventData::new_u64(u64::from(key.host_port) << 32 | u64::from(key.guest_port))
}

/// What is named; with [`NO_PORT`] it is not a connection.
pub(super) fn split(data: EventData) -> Key {
    let data = data.u64();
    Key {
        host_port: (data >> 32) as u32,
        guest_port: data as u32,
    }
}
