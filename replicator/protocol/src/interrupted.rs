//! Running the guest with a link that broke a moment ago and may be back in another (T37, T38, T40).

use crate::bug::Bug;
use crate::context::Context;
use crate::event::{Action, Report, Status};
use crate::protected::Protected;
use crate::state::{Event, State, out_of_place};
use crate::time::Time;

/// Nothing is captured and nothing leaves. The standby is named still, so that it alone may go on
/// without this twin, and if it is back in time it has all that it acknowledged.
#[derive(Debug)]
pub(crate) struct Interrupted {
    guest: Protected,
    /// When the standby is given up.
    until: Time,
}

impl Interrupted {
    pub(crate) fn begin(cx: &mut Context, guest: Protected) -> State {
        cx.report(Report::Interrupted);
        if cx.config.has(Bug::InterruptedOpens) {
            cx.act(Action::OpenOutput);
        }
        let until = cx.now + cx.config.reconnect;
        State::Interrupted(Self { guest, until })
    }

    pub(crate) fn deadline(&self) -> Time {
        self.until
    }

    pub(crate) fn step(mut self, cx: &mut Context, event: Event) -> State {
        match event {
            Event::GuestExited => return self.guest.leave(cx),
            // A twin that was frozen meanwhile finds its time over, whatever else has come.
            _ if self.until <= cx.now => return self.guest.give_up(cx),
            Event::Peer(Status::Synced { epoch })
                if cx.link.peer_generation() == cx.generation && self.guest.sent(epoch) =>
            {
                return self.guest.resume(cx, epoch);
            }
            Event::PeerDead if !cx.link.is_up() => return self.guest.give_up(cx),
            // It has lost what it held, or has taken over.
            Event::Peer(_) => return self.guest.give_up(cx),
            Event::Captured { .. } | Event::CaptureFailed | Event::Dirty(_) => {
                self.guest.settle(event);
            }
            Event::OutputWaiting => self.guest.output_waits(),
            Event::Message(envelope) => out_of_place(cx, envelope.message),
            _ => {}
        }
        State::Interrupted(self)
    }
}
