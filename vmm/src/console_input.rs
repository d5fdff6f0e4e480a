//! Keys typed at the terminal, on their way to the guest's serial port.

use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use evertwin_devices::power::PowerButton;
use evertwin_devices::serial::Serial;

use crate::machine::lock;
use crate::run::AskStop;
use crate::terminal::{EscapeKeys, Typed};

/// Reads standard input on the device thread.
pub(crate) struct ConsoleInput {
    serial: Arc<Mutex<Serial>>,
    stop: AskStop,
    power_button: Arc<PowerButton>,
    keys: EscapeKeys,
}

impl ConsoleInput {
    pub(crate) fn new(
        serial: Arc<Mutex<Serial>>,
        stop: AskStop,
        power_button: Arc<PowerButton>,
    ) -> Self {
        Self {
            serial,
            stop,
            power_button,
            keys: EscapeKeys::default(),
        }
    }

    fn stdin_events() -> Events {
        Events::new_raw(std::io::stdin().as_raw_fd(), EventSet::IN)
    }
}

impl MutEventSubscriber for ConsoleInput {
    fn process(&mut self, _events: Events, ops: &mut EventOps<'_>) {
        let mut buffer = [0; 256];
        match rustix::io::read(rustix::stdio::stdin(), &mut buffer) {
            Ok(0) | Err(_) => {
                // The end of the input is not the end of the guest.
                if let Err(error) = ops.remove(Self::stdin_events()) {
                    tracing::debug!(?error, "standard input can't be let go");
                }
            }
            Ok(count) => match self.keys.feed(&buffer[..count]) {
                Typed::Quit => self.stop.ask(),
                Typed::PowerButton => self.power_button.press(),
                Typed::Input(bytes) => {
                    lock(&self.serial).enqueue(&bytes);
                }
            },
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        // Fails for regular files and /dev/null, which have nothing to wait for.
        if let Err(error) = ops.add(Self::stdin_events()) {
            tracing::debug!(?error, "standard input is not used");
        }
    }
}
