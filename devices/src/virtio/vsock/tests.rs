use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

use tempfile::TempDir;

use super::super::Device;
use super::super::feature::{EVENT_IDX, TRANSPORT, VERSION_1};
use super::super::testing::{self, DATA, Driver, readable, reg, writable};
use super::connection::BUF_ALLOC;
use super::greeting::MAX_GREETINGS;
use super::muxer::{MAX_CONNECTIONS, MAX_RESETS};
use super::packet::{HOST_CID, TYPE_STREAM, op, shutdown};
use super::*;

mod connections;
mod hostile;
mod replicated;

const ALL: u64 = TRANSPORT | FEATURE_STREAM;
const CID: u32 = 7;
/// No operation.
const NOTHING: [u16; 0] = [];
/// Where the guest's buffers for packets are, and how large and how many.
const BUFFERS: u64 = DATA + 0x10_0000;
const BUFFER_BYTES: u32 = 4096;
const BUFFER_COUNT: usize = 32;

/// A guest, and the host's directory with its socket.
struct Guest {
    driver: Driver<Vsock>,
    gate: Arc<OutputGate>,
    dir: Arc<TempDir>,
    /// Where the buffer of each head is.
    buffers: [u64; 64],
    /// Room the guest has per connection, and what it took of it.
    alloc: u32,
    taken: u32,
}

fn vsock(dir: &TempDir) -> (Vsock, Arc<OutputGate>) {
    let gate = OutputGate::new(1 << 20).unwrap();
    let path = SocketPath::new(&dir.path().join("vm.vsock")).unwrap();
    let vsock = Vsock::new(CID, path, Arc::clone(&gate)).unwrap();
    (vsock, gate)
}

impl Guest {
    fn new() -> Self {
        Self::with(ALL)
    }

    fn with(features: u64) -> Self {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let (vsock, gate) = vsock(&dir);
        let mut guest = Self {
            driver: Driver::up(testing::memory(), vsock, features, 64),
            gate,
            dir,
            buffers: [0; 64],
            alloc: 1 << 18,
            taken: 0,
        };
        guest.offer_buffers();
        guest
    }

    /// The same guest's twin, on a host of its own, before anything was restored.
    fn twin(&self) -> Self {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let (vsock, gate) = vsock(&dir);
        let mut driver = Driver::new(testing::copy(&self.driver.mem), vsock);
        driver.take_over(&self.driver);
        Self {
            driver,
            gate,
            dir,
            ..*self
        }
    }

    fn offer_buffers(&mut self) {
        for number in 0..BUFFER_COUNT as u64 {
            self.offer_buffer(BUFFERS + u64::from(BUFFER_BYTES) * number);
        }
        self.driver.kick(RX);
        self.driver.turn();
    }

    fn offer_buffer(&mut self, at: u64) {
        let head = self.driver.offer(RX, &[writable(at, BUFFER_BYTES)]);
        self.buffers[usize::from(head)] = at;
    }

    fn header(&self, op: u16, host_port: u32, guest_port: u32) -> Header {
        Header {
            src_cid: CID.into(),
            dst_cid: HOST_CID,
            src_port: guest_port,
            dst_port: host_port,
            kind: TYPE_STREAM,
            op,
            buf_alloc: self.alloc,
            fwd_cnt: self.taken,
            ..Header::default()
        }
    }

    fn send(&mut self, op: u16, host_port: u32, guest_port: u32) {
        self.send_raw(self.header(op, host_port, guest_port), &[]);
    }

    fn write(&mut self, host_port: u32, guest_port: u32, payload: &[u8]) {
        let header = Header {
            len: payload.len() as u32,
            ..self.header(op::RW, host_port, guest_port)
        };
        self.send_raw(header, payload);
    }

    fn shut(&mut self, host_port: u32, guest_port: u32, flags: u32) {
        let header = Header {
            flags,
            ..self.header(op::SHUTDOWN, host_port, guest_port)
        };
        self.send_raw(header, &[]);
    }

    fn send_raw(&mut self, header: Header, payload: &[u8]) {
        self.driver.fill(DATA, &header.to_bytes());
        self.driver.fill(DATA + 0x1000, payload);
        let pieces = [
            readable(DATA, HEADER_BYTES as u32),
            readable(DATA + 0x1000, payload.len() as u32),
        ];
        let pieces = if payload.is_empty() {
            &pieces[..1]
        } else {
            &pieces
        };
        self.driver.offer(TX, pieces);
        self.driver.kick(TX);
        self.driver.turn();
        self.driver.returned(TX);
    }

    /// What has come for the guest; it gives its buffers back.
    fn packets(&mut self) -> Vec<(Header, Vec<u8>)> {
        let mut packets = Vec::new();
        loop {
            self.driver.turn();
            let returned = self.driver.returned(RX);
            if returned.is_empty() {
                return packets;
            }
            for (head, length) in returned {
                let at = self.buffers[head as usize];
                let bytes = self.driver.bytes(at, length as usize);
                let (header, payload) = bytes.split_first_chunk().unwrap();
                let header = Header::parse(header);
                assert_eq!((header.src_cid, header.dst_cid), (HOST_CID, CID.into()));
                assert_eq!(header.len as usize, payload.len());
                packets.push((header, payload.to_vec()));
                self.offer_buffer(at);
            }
            self.driver.kick(RX);
        }
    }

    /// The one packet that has come.
    fn packet(&mut self) -> (Header, Vec<u8>) {
        let mut packets = self.packets();
        assert_eq!(packets.len(), 1, "{packets:?}");
        packets.remove(0)
    }

    fn ops(&mut self) -> Vec<u16> {
        self.packets().iter().map(|(header, _)| header.op).collect()
    }

    /// What has come, put together: all of it data.
    fn data(&mut self) -> Vec<u8> {
        let packets = self.packets();
        assert!(packets.iter().all(|(header, _)| header.op == op::RW));
        packets
            .into_iter()
            .flat_map(|(_, payload)| payload)
            .collect()
    }

    fn path(&self, suffix: &str) -> std::path::PathBuf {
        self.dir.path().join(format!("vm.vsock{suffix}"))
    }

    /// A program that asks for a port of the guest.
    fn program(&self, greeting: &str) -> UnixStream {
        let mut program = UnixStream::connect(self.path("")).unwrap();
        program.set_nonblocking(true).unwrap();
        program.write_all(greeting.as_bytes()).unwrap();
        program
    }

    /// A program that is connected to the guest's port 5000, and its own port.
    fn connected(&mut self) -> (UnixStream, u32) {
        let mut program = self.program("CONNECT 5000\n");
        let (request, _) = self.packet();
        assert_eq!((request.op, request.dst_port), (op::REQUEST, 5000));
        assert_eq!((request.kind, request.buf_alloc), (TYPE_STREAM, BUF_ALLOC));
        self.send(op::RESPONSE, request.src_port, 5000);
        let port = request.src_port;
        assert_eq!(heard(&mut program), format!("OK {port}\n").as_bytes());
        (program, port)
    }

    /// A service of the host, and a connection to it from the guest's port 4000.
    fn served(&mut self) -> (UnixListener, UnixStream) {
        let service = UnixListener::bind(self.path("_1234")).unwrap();
        self.send(op::REQUEST, 1234, 4000);
        assert_eq!(self.packet().0.op, op::RESPONSE);
        let (program, _) = service.accept().unwrap();
        program.set_nonblocking(true).unwrap();
        (service, program)
    }

    fn connections(&self) -> usize {
        self.driver.device().backend().muxer.connections()
    }

    fn counters(&self) -> VsockCounters {
        self.driver.device().backend().counters()
    }
}

/// What a program has to read, up to its socket's end if that is near.
fn heard(program: &mut UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    match program.read_to_end(&mut bytes) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
    }
    bytes
}

/// Whether the other end of a program's socket is closed, with all data read.
fn closed(program: &mut UnixStream) -> bool {
    match program.read(&mut [0; 16]) {
        Ok(count) => count == 0,
        Err(error) => error.kind() != ErrorKind::WouldBlock,
    }
}

#[test]
fn the_registers_say_what_it_is() {
    let guest = Guest::new();
    assert_eq!(guest.driver.get(0x08), 19);
    assert_eq!(guest.driver.config(0, 8), u64::from(CID).to_le_bytes());
    assert_eq!(guest.driver.config(8, 4), [0; 4]);
    let identity = guest.driver.device().identity();
    assert_eq!(identity.to_string(), "vsock, cid 7");
}

#[test]
fn nothing_is_made_where_nothing_can_be() {
    let gate = OutputGate::new(1 << 20).unwrap();
    let path = SocketPath::new(std::path::Path::new("/nonexistent/vm.vsock")).unwrap();
    let error = Vsock::new(CID, path, gate).err().unwrap();
    assert!(error.to_string().contains("/nonexistent"), "{error}");
}

#[test]
fn the_socket_is_there_while_the_driver_is() {
    let dir = tempfile::tempdir().unwrap();
    let (vsock, _gate) = vsock(&dir);
    let path = dir.path().join("vm.vsock");
    let mut driver = Driver::new(testing::memory(), vsock);
    assert!(!path.exists());
    driver.start(ALL, 64);
    assert!(path.exists());
    driver.set(reg::STATUS, 0);
    driver.turn();
    assert!(!path.exists());
    driver.start(ALL, 64);
    assert!(path.exists());
    drop(driver);
    assert!(!path.exists());
}

#[test]
fn a_guest_runs_without_its_socket() {
    let dir = tempfile::tempdir().unwrap();
    let other = UnixListener::bind(dir.path().join("vm.vsock")).unwrap();
    let (vsock, gate) = vsock(&dir);
    let mut guest = Guest {
        driver: Driver::up(testing::memory(), vsock, ALL, 64),
        gate,
        dir: Arc::new(dir),
        buffers: [0; 64],
        alloc: 1 << 18,
        taken: 0,
    };
    guest.offer_buffers();
    let (_service, mut program) = guest.served();
    guest.write(1234, 4000, b"hello");
    assert_eq!(heard(&mut program), b"hello");
    drop(guest.driver);
    assert!(guest.dir.path().join("vm.vsock").exists());
    drop(other);
}
