//! What an operator asks for, and which state obeys.

use crate::context::Context;
use crate::event::{Command, Refusal};
use crate::state::State;

/// Obeys the command, or says why not.
pub(crate) fn operate(cx: &mut Context, state: State, command: Command) -> State {
    match (state, command) {
        (State::Protected(state), Command::Switchover) => state.hand_over(cx, command, false),
        (State::Protected(state), Command::Leave) => state.hand_over(cx, command, true),
        (State::HandingOver(state), Command::Leave) => state.leave_then(),
        (State::HandingOver(state), Command::Promote) => state.promote_by_hand(cx),
        (State::Holding(state), Command::Promote) => state.promote_by_hand(cx),
        (State::Standby(state), Command::Promote) => state.promote_by_hand(cx),
        (State::Standby(_), Command::Leave) => cx.leave(),
        (State::Starting(state), Command::Leave) if state.waits() => cx.leave(),
        (State::Starting(state), Command::Promote) => state.promote_by_hand(cx),
        (state, command) => {
            cx.refuse(command, refusal(&state, command));
            state
        }
    }
}

fn refusal(state: &State, command: Command) -> Refusal {
    match (state, command) {
        (State::Solo(_) | State::Syncing(_) | State::Protected(_), Command::Promote) => {
            Refusal::HasTheRight
        }
        (
            State::Solo(_) | State::Syncing(_) | State::Holding(_) | State::Interrupted(_),
            Command::Switchover | Command::Leave,
        ) => Refusal::NotProtected,
        (State::Starting(_) | State::Standby(_), Command::Switchover) => Refusal::NotPrimary,
        (State::Promoting(_), Command::Promote) => Refusal::ArbiterDecides,
        (State::Promoting(_), Command::Switchover) => Refusal::NotPrimary,
        _ => Refusal::Busy,
    }
}
