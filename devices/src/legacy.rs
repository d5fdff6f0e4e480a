//! The few legacy ports a microVM needs: keyboard controller reset, pvpanic, POST code.

use std::io;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::bus::BusDevice;

/// Port of the keyboard controller's command register.
pub const I8042_COMMAND_PORT: u64 = 0x64;
/// Port of the pvpanic device.
pub const PVPANIC_PORT: u64 = 0x505;
/// Port of the POST (power-on self-test) code display.
pub const POST_CODE_PORT: u64 = 0x80;

/// Keyboard controller command that pulses the reset line.
const I8042_RESET: u8 = 0xfe;
/// pvpanic: the guest has panicked.
const PVPANIC_PANICKED: u8 = 1 << 0;
/// pvpanic: the guest asks to be shut down.
const PVPANIC_SHUTDOWN: u8 = 1 << 2;

/// How a guest ended itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[repr(u8)]
pub enum GuestExit {
    /// It pulsed the reset line.
    Reset = 1,
    /// It asked to be shut down.
    Shutdown = 2,
    /// Its kernel panicked.
    Panicked = 3,
}

impl GuestExit {
    fn from_code(code: u8) -> Option<Self> {
        [Self::Reset, Self::Shutdown, Self::Panicked]
            .into_iter()
            .find(|exit| *exit as u8 == code)
    }
}

/// Carries a guest's exit from a vCPU thread to whoever waits for it. The first one wins.
#[derive(Debug)]
pub struct ExitSignal {
    event: EventFd,
    code: AtomicU8,
}

impl ExitSignal {
    /// A signal that has not fired.
    pub fn new() -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            event: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            code: AtomicU8::new(0),
        }))
    }

    /// Readable once the guest has ended itself.
    pub fn event(&self) -> &EventFd {
        &self.event
    }

    /// How the guest ended, if it has.
    pub fn get(&self) -> Option<GuestExit> {
        GuestExit::from_code(self.code.load(Ordering::Acquire))
    }

    /// Forgets an exit that has been dealt with, so that the next one is reported.
    pub fn rearm(&self) {
        // Empty if nothing was raised.
        let _ = self.event.read();
        self.code.store(0, Ordering::Release);
    }

    /// Reports an exit; later reports change nothing.
    pub fn raise(&self, exit: GuestExit) {
        let first = self
            .code
            .compare_exchange(0, exit as u8, Ordering::AcqRel, Ordering::Acquire)
            .is_ok();
        if first && let Err(error) = self.event.write(1) {
            tracing::error!(%error, "guest exit could not be signalled");
        }
    }
}

/// The reset line behind the keyboard controller; reads tell an idle controller.
pub struct I8042Reset(pub Arc<ExitSignal>);

impl BusDevice for I8042Reset {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        if data.first() == Some(&I8042_RESET) {
            self.0.raise(GuestExit::Reset);
        }
    }
}

/// The pvpanic device: reads give the events it knows, writes report them.
pub struct PvPanic(pub Arc<ExitSignal>);

impl BusDevice for PvPanic {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(first) = data.first_mut() {
            *first = PVPANIC_PANICKED | PVPANIC_SHUTDOWN;
        }
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        let events = data.first().copied().unwrap_or(0);
        if events & PVPANIC_PANICKED != 0 {
            self.0.raise(GuestExit::Panicked);
        } else if events & PVPANIC_SHUTDOWN != 0 {
            self.0.raise(GuestExit::Shutdown);
        }
    }
}

/// The POST code port: remembers when the guest first wrote to it, which is how the
/// time to the guest's first instruction is measured.
#[derive(Default)]
pub struct PostCode(Arc<OnceLock<Instant>>);

impl PostCode {
    /// Filled in at the first write.
    pub fn first_write(&self) -> Arc<OnceLock<Instant>> {
        Arc::clone(&self.0)
    }
}

impl BusDevice for PostCode {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, _offset: u64, _data: &[u8]) {
        self.0.get_or_init(Instant::now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reset_needs_the_reset_command() {
        let exit = ExitSignal::new().unwrap();
        let mut port = I8042Reset(exit.clone());
        port.write(0, &[0xd1]);
        port.write(0, &[]);
        assert_eq!(exit.get(), None);
        assert!(exit.event().read().is_err());
        port.write(0, &[0xfe]);
        assert_eq!(exit.get(), Some(GuestExit::Reset));
        assert_eq!(exit.event().read().unwrap(), 1);
    }

    #[test]
    fn first_exit_wins() {
        let exit = ExitSignal::new().unwrap();
        let mut panic = PvPanic(exit.clone());
        let mut supported = [0xff; 2];
        panic.read(0, &mut supported);
        assert_eq!(supported, [0b101, 0]);
        panic.write(0, &[0b010]);
        assert_eq!(exit.get(), None);
        panic.write(0, &[0b101]);
        assert_eq!(exit.get(), Some(GuestExit::Panicked));
        I8042Reset(exit.clone()).write(0, &[0xfe]);
        assert_eq!(exit.get(), Some(GuestExit::Panicked));
        exit.rearm();
        assert_eq!(exit.get(), None);
        assert!(exit.event().read().is_err());
        I8042Reset(exit.clone()).write(0, &[0xfe]);
        assert_eq!(exit.get(), Some(GuestExit::Reset));

        let exit = ExitSignal::new().unwrap();
        PvPanic(exit.clone()).write(0, &[0b100]);
        assert_eq!(exit.get(), Some(GuestExit::Shutdown));
    }

    #[test]
    fn post_code_keeps_the_first_instant() {
        let mut port = PostCode::default();
        let first = port.first_write();
        assert!(first.get().is_none());
        port.write(0, &[1]);
        let seen = *first.get().unwrap();
        port.write(0, &[2]);
        assert_eq!(*first.get().unwrap(), seen);
    }
}
