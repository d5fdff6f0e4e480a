//! A guest is only ever slowed for the sake of a sync, and never stopped by that.

use evertwin_protocol::Role;

use super::{Invariant, Verdict, demand};

/// What is taken of a guest's time, in percent, by a twin that has done all that it had to do.
pub(crate) fn check_speed(role: Role, slowed: u8) -> Verdict {
    demand(
        slowed == 0 || role == Role::Syncing && slowed < 100,
        Invariant::GuestSpeed,
        || format!("{slowed} % of the guest's time is taken from it, while {role:?}"),
    )
}
