//! Interfaces of this host whose carrier matters to the guest.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use evertwin_replicator::Uplink;
use rustix::net::{AddressFamily, SocketType, netdevice, socket};

use crate::config::{NetConfig, OnLostCarrier};

/// An uplink can't be watched.
#[derive(Debug, thiserror::Error)]
pub enum UplinkError {
    /// There is no such interface.
    #[error(
        "there is no interface {name} on this host, which is to be the uplink of the card on {tap}: correct `uplink` in [[net]] \
         (`ip link` lists the interfaces), or create it first"
    )]
    Missing {
        /// Name of the interface.
        name: String,
        /// TAP of the card.
        tap: String,
    },
    /// The system does not say.
    #[error(
        "uplink {name} can't be looked at: {source}; check the limit on open files and `ip link show {name}`"
    )]
    Unknown {
        /// Name of the interface.
        name: String,
        /// What it said.
        source: io::Error,
    },
}

/// The uplinks of a VM's cards, in the network namespace of this process.
pub(crate) struct Uplinks {
    watched: Vec<Watched>,
}

struct Watched {
    name: String,
    hands_over: bool,
    /// Any socket of the namespace can be asked.
    socket: Arc<OwnedFd>,
}

impl Uplinks {
    /// Finds them, each once.
    ///
    /// # Errors
    /// One of them is not there.
    pub(crate) fn find(nets: &[NetConfig]) -> Result<Self, UplinkError> {
        let mut found = Self {
            watched: Vec::new(),
        };
        for net in nets {
            let Some(uplink) = &net.uplink else {
                continue;
            };
            let name = &uplink.name;
            let hands_over = uplink.on_lost_carrier == OnLostCarrier::Switchover;
            let known = found.watched.iter_mut().find(|other| other.name == *name);
            if let Some(known) = known {
                known.hands_over |= hands_over;
                continue;
            }
            let unknown = |source: rustix::io::Errno| UplinkError::Unknown {
                name: name.clone(),
                source: source.into(),
            };
            let socket = socket(AddressFamily::INET, SocketType::DGRAM, None).map_err(unknown)?;
            match netdevice::name_to_index(&socket, name) {
                Ok(_) => {}
                Err(rustix::io::Errno::NODEV) => {
                    return Err(UplinkError::Missing {
                        name: name.clone(),
                        tap: net.tap.clone(),
                    });
                }
                Err(error) => return Err(unknown(error)),
            }
            found.watched.push(Watched {
                name: name.clone(),
                hands_over,
                socket: Arc::new(socket),
            });
        }
        Ok(found)
    }

    /// The same for one run of a twin.
    pub(crate) fn for_run(&self) -> Vec<Uplink> {
        let uplink = |watched: &Watched| {
            let (name, socket) = (watched.name.clone(), Arc::clone(&watched.socket));
            Uplink {
                name: watched.name.clone(),
                hands_over: watched.hands_over,
                has_carrier: Box::new(move || has_carrier(&socket, &name)),
            }
        };
        self.watched.iter().map(uplink).collect()
    }
}

/// Whether an interface is there, is up and has carrier. The kernel answers at once, without the lock that changes of interfaces take. A card that
/// is no virtual one may have been without carrier for up to a second before the kernel says so.
fn has_carrier(socket: &OwnedFd, name: &str) -> bool {
    // SAFETY: all zeroes are a valid `ifreq`: it has integers, arrays and unions of them.
    #[allow(unsafe_code)]
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The configuration has no longer names, and the last byte stays zero.
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name[..room].iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    // SAFETY: the descriptor is open, and SIOCGIFFLAGS reads and writes one `ifreq`.
    #[allow(unsafe_code)]
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &mut request) };
    // SAFETY: whichever part of the union was written, its first bytes are a number.
    #[allow(unsafe_code)]
    let flags = libc::c_int::from(unsafe { request.ifr_ifru.ifru_flags });
    let needed = libc::IFF_UP | libc::IFF_RUNNING;
    // An interface that is gone gives an error.
    result == 0 && flags & needed == needed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::UplinkConfig;

    fn card(name: &str, on_lost_carrier: OnLostCarrier) -> NetConfig {
        NetConfig {
            tap: "tap7".to_owned(),
            mac: [2, 0, 0, 0, 0, 1],
            uplink: Some(UplinkConfig {
                name: name.to_owned(),
                on_lost_carrier,
            }),
        }
    }

    #[test]
    fn an_uplink_that_is_not_there_is_named() {
        let none = Uplinks::find(&[card("et-none0", OnLostCarrier::Switchover)]);
        let error = none.err().map(|error| error.to_string());
        assert_eq!(
            error.as_deref(),
            Some(
                "there is no interface et-none0 on this host, which is to be the uplink of the card on tap7: correct `uplink` \
                 in [[net]] (`ip link` lists the interfaces), or create it first"
            )
        );
    }

    #[test]
    fn an_uplink_of_several_cards_is_watched_once() {
        let policies = [OnLostCarrier::Ignore, OnLostCarrier::Switchover];
        let cards = policies.map(|policy| card("lo", policy));
        let uplinks = Uplinks::find(&cards).unwrap().for_run();
        assert_eq!(uplinks.len(), 1);
        assert!(uplinks[0].hands_over);
        let only = Uplinks::find(&cards[..1]).unwrap().for_run();
        assert!(!only[0].hands_over);
        // Without such an interface there is no carrier, whatever there was before.
        let socket = socket(AddressFamily::INET, SocketType::DGRAM, None).unwrap();
        assert!(!has_carrier(&socket, "et-none0"));
    }
}
