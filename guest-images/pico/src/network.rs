//! The TCP/IP stack over the network device.

use alloc::vec;
use core::net::Ipv4Addr;

use pico::command_line::CommandLine;
use smoltcp::iface::{Config, Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::phy::{Device, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol,
    HardwareAddress, IpAddress, IpCidr,
};

use crate::hardware::clock;
use crate::virtio::net::NetDevice;

/// smoltcp's shortest retransmission timeout and a little more: see
/// [`Network::announce`].
const RETRANSMISSION_NS: u64 = 1_100_000_000;
/// A connection whose peer acknowledges nothing for this long is given up.
const PEER_TIMEOUT: Duration = Duration::from_secs(120);

/// Interface, sockets and device.
pub(crate) struct Network {
    device: NetDevice,
    interface: Interface,
    /// All sockets; workloads reach theirs by handle.
    pub(crate) sockets: SocketSet<'static>,
    address: Ipv4Addr,
    /// How far the stack's clock is ahead of the guest's, in nanoseconds.
    ahead_ns: u64,
}

impl Network {
    /// Brings the interface up with `ip=` (address/prefix) and `gw=` of the command line.
    pub(crate) fn start(mut device: NetDevice, line: CommandLine<'_>) -> Self {
        let text = line
            .value("ip")
            .unwrap_or_else(|| panic!("no ip=: use ip=10.77.0.2/24"));
        let (address, prefix) = parse_cidr(text)
            .unwrap_or_else(|| panic!("ip={text}: use an address and prefix, as 10.77.0.2/24"));
        let ethernet = EthernetAddress(device.mac());
        let mut config = Config::new(HardwareAddress::Ethernet(ethernet));
        config.random_seed = pico::pattern::mix(clock::now() ^ u64::from(address.to_bits()));
        let mut interface = Interface::new(config, &mut device, instant(clock::now()));
        interface.update_ip_addrs(|addresses| {
            // The list is empty, and has room for one at least.
            let _ = addresses.push(IpCidr::new(IpAddress::Ipv4(address), prefix));
        });
        if let Some(text) = line.value("gw") {
            let gateway = text
                .parse()
                .unwrap_or_else(|_| panic!("gw={text}: use an address"));
            let _ = interface.routes_mut().add_default_ipv4_route(gateway);
        }
        let sockets = SocketSet::new(vec![]);
        let mut network = Self {
            device,
            interface,
            sockets,
            address,
            ahead_ns: 0,
        };
        network.announce_address();
        network.device.flush();
        network
    }

    /// The guest's address.
    pub(crate) fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Names the port that the workload's sockets listen on.
    pub(crate) fn serve(&mut self, port: u16) {
        self.device.admission().port = port;
    }

    /// Adds a TCP socket with buffers of this size in each direction.
    pub(crate) fn add_socket(&mut self, buffer: usize) -> SocketHandle {
        let receive = SocketBuffer::new(vec![0; buffer]);
        let transmit = SocketBuffer::new(vec![0; buffer]);
        let mut socket = Socket::new(receive, transmit);
        socket.set_nagle_enabled(false);
        socket.set_timeout(Some(PEER_TIMEOUT));
        self.sockets.add(socket)
    }

    /// Takes the interrupt that `wake` may hold, and does what came in and what is due.
    /// True: sockets may have changed.
    pub(crate) fn poll(&mut self, wake: u32) -> bool {
        if self.device.take_interrupt(wake) {
            self.announce();
        }
        self.update_admission();
        let now = instant(clock::now() + self.ahead_ns);
        let result = self
            .interface
            .poll(now, &mut self.device, &mut self.sockets);
        self.device.flush();
        result == PollResult::SocketStateChanged
    }

    fn update_admission(&mut self) {
        let admission = self.device.admission();
        admission.half_open.clear();
        admission.listening = 0;
        for (_, socket) in self.sockets.iter() {
            let smoltcp::socket::Socket::Tcp(socket) = socket;
            match (socket.state(), socket.remote_endpoint()) {
                (State::Listen, _) => admission.listening += 1,
                (State::SynReceived, Some(remote)) => {
                    let IpAddress::Ipv4(address) = remote.addr;
                    admission.half_open.push((address.octets(), remote.port));
                }
                _ => {}
            }
        }
    }

    /// Before sleeping. `Err`: there is work, look again. `Ok`: sleep, at most until
    /// this moment.
    pub(crate) fn prepare_sleep(&mut self) -> Result<Option<u64>, ()> {
        let now = clock::now();
        let ahead = instant(now + self.ahead_ns);
        let due = self.interface.poll_at(ahead, &self.sockets);
        if !self.device.prepare_sleep() {
            self.device.awake();
            return Err(());
        }
        Ok(due.map(|due| now + (due - ahead.min(due)).total_micros() * 1000))
    }

    /// After sleeping.
    pub(crate) fn awake(&mut self) {
        self.device.awake();
    }

    /// The guest may have moved to another host: tells the network where it is now, and
    /// sends again what is not acknowledged, as the old host may have taken it along. The
    /// stack's clock is set ahead for that, which makes retransmissions due.
    fn announce(&mut self) {
        self.announce_address();
        self.ahead_ns += RETRANSMISSION_NS;
        self.device.acknowledge_announcement();
    }

    /// A gratuitous ARP request (RFC 5227, 3).
    fn announce_address(&mut self) {
        let source = EthernetAddress(self.device.mac());
        let announcement = ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Request,
            source_hardware_addr: source,
            source_protocol_addr: self.address,
            target_hardware_addr: EthernetAddress([0; 6]),
            target_protocol_addr: self.address,
        };
        // No free buffer: the host is not taking frames, and would not see this one.
        let Some(token) = self.device.transmit(Instant::ZERO) else {
            return;
        };
        let header = EthernetFrame::<&[u8]>::header_len();
        token.consume(header + announcement.buffer_len(), |buffer| {
            let mut frame = EthernetFrame::new_unchecked(buffer);
            frame.set_src_addr(source);
            frame.set_dst_addr(EthernetAddress::BROADCAST);
            frame.set_ethertype(EthernetProtocol::Arp);
            announcement.emit(&mut ArpPacket::new_unchecked(frame.payload_mut()));
        });
    }
}

fn instant(nanoseconds: u64) -> Instant {
    Instant::from_micros((nanoseconds / 1000) as i64)
}

fn parse_cidr(text: &str) -> Option<(Ipv4Addr, u8)> {
    let (address, prefix) = text.split_once('/')?;
    let prefix = prefix
        .parse()
        .ok()
        .filter(|prefix| (1..=32).contains(prefix))?;
    Some((address.parse().ok()?, prefix))
}
