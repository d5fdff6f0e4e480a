//! The serial console: a 16550 UART whose output goes through the gate.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io::{self, Write};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vm_superio::serial::NoEvents;
use vm_superio::{Serial as Uart, SerialState as UartState, Trigger};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::bus::BusDevice;
use crate::gate::{OutputGate, SinkId, Submit};

/// First port of COM1; the UART has [`PORTS`] of them.
pub const COM1_PORT: u64 = 0x3f8;
/// Number of ports.
pub const PORTS: u64 = 8;
/// Most input bytes kept for a guest that doesn't read.
pub const INPUT_BACKLOG_BYTES: usize = 4096;

/// Interrupt identification register: set when nothing is pending.
const IIR_NONE: u8 = 1;

struct Irq(Arc<EventFd>);

impl Trigger for Irq {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        // A full event fd counter already carries the interrupt.
        let _ = self.0.write(1);
        Ok(())
    }
}

struct GateWriter {
    gate: Arc<OutputGate>,
    sink: SinkId,
    lost_bytes: u64,
}

impl Write for GateWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A UART can't make its guest wait: what doesn't fit is lost, as on a real line.
        if self.gate.submit(self.sink, bytes) == Submit::Full {
            self.lost_bytes += bytes.len() as u64;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// State of the serial port, as captured with a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialState {
    baud_divisor_low: u8,
    baud_divisor_high: u8,
    interrupt_enable: u8,
    interrupt_identification: u8,
    line_control: u8,
    line_status: u8,
    modem_control: u8,
    modem_status: u8,
    scratch: u8,
    fifo: Vec<u8>,
    backlog: Vec<u8>,
}

/// Why a serial port's state was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SerialRestoreError {
    /// More bytes than the UART's FIFO or the backlog can have.
    #[error("serial state holds {0} input bytes, more than fit: the state is corrupt")]
    TooMuchInput(usize),
}

/// The serial port. A [`BusDevice`] for [`PORTS`] ports.
pub struct Serial {
    uart: Uart<Irq, NoEvents, GateWriter>,
    irq: Arc<EventFd>,
    backlog: VecDeque<u8>,
}

impl Serial {
    /// A serial port whose output goes to `sink` of `gate`.
    pub fn new(gate: Arc<OutputGate>, sink: SinkId) -> io::Result<Self> {
        let irq = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        let out = GateWriter {
            gate,
            sink,
            lost_bytes: 0,
        };
        Ok(Self {
            uart: Uart::new(Irq(Arc::clone(&irq)), out),
            irq,
            backlog: VecDeque::new(),
        })
    }

    /// Written when the port raises its interrupt (edge).
    pub fn irq(&self) -> &EventFd {
        &self.irq
    }

    /// Output bytes lost because the gate was full.
    pub fn lost_bytes(&self) -> u64 {
        self.uart.writer().lost_bytes
    }

    /// Gives input to the guest. Returns how many bytes were taken: fewer than offered when
    /// the guest is behind by [`INPUT_BACKLOG_BYTES`].
    pub fn enqueue(&mut self, input: &[u8]) -> usize {
        let room = INPUT_BACKLOG_BYTES - self.backlog.len();
        let taken = input.len().min(room);
        self.backlog.extend(&input[..taken]);
        self.refill();
        taken
    }

    /// Captures the port's state.
    pub fn save(&self) -> SerialState {
        let UartState {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            in_buffer,
        } = self.uart.state();
        // Not state: the event fd, the way out, and the count of lost bytes.
        let Self {
            uart: _,
            irq: _,
            backlog,
        } = self;
        SerialState {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            fifo: in_buffer,
            backlog: backlog.iter().copied().collect(),
        }
    }

    /// Takes over a captured state. On an error the port is as before.
    pub fn restore(&mut self, state: &SerialState) -> Result<(), SerialRestoreError> {
        let SerialState {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            ref fifo,
            ref backlog,
        } = *state;
        if backlog.len() > INPUT_BACKLOG_BYTES {
            return Err(SerialRestoreError::TooMuchInput(backlog.len()));
        }
        let uart = UartState {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            in_buffer: fifo.clone(),
        };
        let refused = || SerialRestoreError::TooMuchInput(fifo.len());
        let irq = Arc::clone(&self.irq);
        let out = self.uart.writer();
        let out = GateWriter {
            gate: Arc::clone(&out.gate),
            sink: out.sink,
            lost_bytes: out.lost_bytes,
        };
        self.uart = Uart::from_state(&uart, Irq(irq), NoEvents, out).map_err(|_| refused())?;
        self.backlog = backlog.iter().copied().collect();
        Ok(())
    }

    /// Raises the interrupt again after a restore if one is pending (I7): the edge itself
    /// is in no one's state.
    pub fn resume(&mut self) {
        if self.uart.state().interrupt_identification & IIR_NONE == 0 {
            let _ = self.irq.write(1);
        }
        self.refill();
    }

    fn refill(&mut self) {
        let room = self.uart.fifo_capacity().min(self.backlog.len());
        if room == 0 {
            return;
        }
        let (front, _) = self.backlog.as_slices();
        let chunk = front[..front.len().min(room)].to_vec();
        if let Ok(taken) = self.uart.enqueue_raw_bytes(&chunk) {
            self.backlog.drain(..taken);
        }
    }
}

impl BusDevice for Serial {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let ([byte], Ok(offset)) = (data, u8::try_from(offset)) {
            *byte = self.uart.read(offset);
            self.refill();
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let ([byte], Ok(offset)) = (data, u8::try_from(offset)) {
            // Neither the gate's writer nor the interrupt can fail.
            let _ = self.uart.write(offset, *byte);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::Sink;
    use std::sync::Mutex;

    #[derive(Clone, Default)]
    struct Screen(Arc<Mutex<Vec<u8>>>);

    impl Sink for Screen {
        fn emit(&mut self, bytes: &[u8]) {
            crate::lock(&self.0).extend_from_slice(bytes);
        }
        fn is_stream(&self) -> bool {
            true
        }
    }

    const DATA: u64 = 0;
    const IER: u64 = 1;
    const IIR: u64 = 2;

    fn serial() -> (Serial, Arc<OutputGate>, Screen) {
        let gate = OutputGate::new(1 << 16).unwrap();
        let screen = Screen::default();
        let sink = gate.add_sink(Box::new(screen.clone()));
        (Serial::new(gate.clone(), sink).unwrap(), gate, screen)
    }

    fn read(serial: &mut Serial, offset: u64) -> u8 {
        let mut byte = [0];
        serial.read(offset, &mut byte);
        byte[0]
    }

    #[test]
    fn output_goes_through_the_gate() {
        let (mut serial, gate, screen) = serial();
        serial.write(DATA, b"a");
        gate.hold();
        serial.write(DATA, b"b");
        serial.write(DATA, b"c");
        assert_eq!(*crate::lock(&screen.0), b"a");
        gate.seal(1);
        gate.release_through(1);
        assert_eq!(*crate::lock(&screen.0), b"abc");
    }

    #[test]
    fn input_is_bounded_and_comes_in_order() {
        let (mut serial, _, _) = serial();
        let input: Vec<u8> = (0..6000u32).map(|i| i as u8).collect();
        let mut taken = 0;
        loop {
            match serial.enqueue(&input[taken..]) {
                0 => break,
                n => taken += n,
            }
        }
        assert_eq!(taken, INPUT_BACKLOG_BYTES + 64);
        let got: Vec<u8> = (0..taken).map(|_| read(&mut serial, DATA)).collect();
        assert_eq!(got, input[..taken]);
        assert_eq!(serial.enqueue(b"x"), 1);
    }

    #[test]
    fn a_restored_port_goes_on_and_raises_what_is_pending() {
        let (mut old, _, _) = serial();
        old.write(IER, &[1]);
        assert_eq!(old.enqueue(&[9; 100]), 100);
        assert_eq!(old.irq().read().unwrap(), 1);
        let state = old.save();

        let (mut new, _, _) = serial();
        new.restore(&state).unwrap();
        assert_eq!(new.save(), state);
        let _ = new.irq().read();
        new.resume();
        assert_eq!(new.irq().read().unwrap(), 1);
        assert_eq!(read(&mut new, IIR) & 0x0f, 0x04);
        for _ in 0..100 {
            assert_eq!(read(&mut new, DATA), 9);
        }
    }

    #[test]
    fn oversized_state_is_refused() {
        let (mut serial, _, _) = serial();
        let good = serial.save();
        let mut state = good.clone();
        state.fifo = vec![0; 65];
        let refused = Err(SerialRestoreError::TooMuchInput(65));
        assert_eq!(serial.restore(&state), refused);
        let mut state = good.clone();
        state.backlog = vec![0; INPUT_BACKLOG_BYTES + 1];
        assert!(serial.restore(&state).is_err());
        assert_eq!(serial.save(), good);
    }
}
