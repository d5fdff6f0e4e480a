//! Faults that the core can be given on purpose.

/// A deliberate fault, one that a tired developer could make.
///
/// Only a build with the feature `seeded-bugs` can have one: everywhere else
/// [`crate::Config`] has no place for it and every question for it is a constant `false`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
// Only exported under the feature.
#[cfg_attr(not(feature = "seeded-bugs"), allow(unreachable_pub))]
pub enum Bug {
    /// I1: an epoch's output leaves when the epoch is shipped, not when it is acknowledged.
    ReleaseOnShip,
    /// I4: output leaves on an acknowledgement alone, while the naming is still open.
    ReleaseBeforeNamed,
    /// I4: the gate stays open when the first epoch is captured.
    GateStaysOpen,
    /// I4: the standby is named before it has acknowledged an epoch.
    NameBeforeAck,
    /// I4: a naming without an answer counts as made.
    NamingFailedIsWon,
    /// I2: a primary that loses its link releases alone without a swap.
    SoloOnLinkLoss,
    /// I4: the gate opens when the standby's striking off is asked for, not when it is done.
    OpenBeforeStrike,
    /// I2: a striking off without an answer counts as done.
    StrikeFailedIsWon,
    /// I2: a record that has vanished counts as the right to release alone.
    VanishedIsSolo,
    /// I2: a primary whose right is gone goes on alone.
    LoserReleases,
    /// I2: the standby is struck off without a new generation.
    ReuseGeneration,
    /// I4: output is released alone while a late naming may still take effect.
    SoloUnderLateNaming,
    /// I4: the next sync has the generation of one whose standby may still be promoted.
    SameGenerationSync,
    /// I5: the buffers of an epoch are given up when it is shipped.
    DropHarvestEarly,
    /// I5: what the last sync round found is not made dirty again.
    ForgetHarvest,
    /// I5: a sync round's harvest is followed by the next without being sent.
    UnsentHarvest,
    /// I3: an epoch is taken though the one before it is missing.
    SkipEpoch,
    /// I3: every second epoch is acknowledged, but not applied.
    AckWithoutApply,
    /// I3: a standby with parts of a sync only asks to be promoted.
    PromoteParts,
    /// I2: a promotion without an answer counts as won.
    PromoteFailedIsWon,
    /// I4: a standby that is not named promotes itself.
    PromoteUnnamed,
    /// I4: a standby that is not named yet forgets its epoch, with a swap still on its way.
    ForgetEpochUnnamed,
    /// I4: a restarted primary boots though the standby may hold newer state.
    BootBesideNewer,
    /// I2: a restarted twin takes the right that its peer has.
    ClaimPeersRight,
    /// I2: a guest is booted under a claim without an answer.
    BootUnclaimed,
    /// I1: messages of an older generation are taken.
    StaleGeneration,
    /// Liveness: a starting twin that saw no record, or one of the past, does not look again.
    WaitsUnread,
    /// I2: who is told that its primary is dead goes on without asking.
    DeadIsWon,
    /// I2: a first claim that finds its own record counts as won, though an earlier life made it.
    FirstClaimIsMine,
    /// I2: of two cold twins without an arbiter the one with the older note boots, too.
    OlderNoteBoots,
    /// Liveness: without an arbiter, a standby that was not told that it is named never goes on.
    UnnamedWaits,
    /// Liveness: a sync begins under a right that is older than what the peer noted.
    OlderSync,
    /// I3: a guest goes on while it is handed over.
    GuestRunsOn,
    /// I2: a guest that was not taken over goes on without a swap.
    TakeBackUnasked,
    /// I4: a guest that was taken over speaks before its old host is its standby.
    TakeOverOpens,
    /// Liveness: a standby that is back after its link broke does not get what it lacks.
    ResumeLacking,
    /// I1: a primary that waits for its standby to be back lets output pass meanwhile.
    InterruptedOpens,
    /// Two guests: a primary's guest runs on though its lease is over.
    LeaseIgnored,
    /// Two guests: who wins the right boots the guest at once.
    WinnerBootsAtOnce,
    /// Two guests: a twin that won the right, and was started anew, boots the guest at once.
    RestartBootsAtOnce,
    /// Liveness: a guest that was slowed for the sake of a standby stays so when that is lost.
    StaysSlow,
    /// Liveness: a peer's silence is never noticed.
    SilenceUnnoticed,
    /// Liveness: an arbiter that failed once is not asked again.
    StopsAsking,
}

#[cfg(feature = "seeded-bugs")]
impl Bug {
    /// All of them.
    pub const ALL: [Self; 43] = [
        Self::ReleaseOnShip,
        Self::ReleaseBeforeNamed,
        Self::GateStaysOpen,
        Self::NameBeforeAck,
        Self::NamingFailedIsWon,
        Self::SoloOnLinkLoss,
        Self::OpenBeforeStrike,
        Self::StrikeFailedIsWon,
        Self::VanishedIsSolo,
        Self::LoserReleases,
        Self::ReuseGeneration,
        Self::SoloUnderLateNaming,
        Self::SameGenerationSync,
        Self::DropHarvestEarly,
        Self::ForgetHarvest,
        Self::UnsentHarvest,
        Self::SkipEpoch,
        Self::AckWithoutApply,
        Self::PromoteParts,
        Self::PromoteFailedIsWon,
        Self::PromoteUnnamed,
        Self::ForgetEpochUnnamed,
        Self::BootBesideNewer,
        Self::ClaimPeersRight,
        Self::BootUnclaimed,
        Self::StaleGeneration,
        Self::WaitsUnread,
        Self::DeadIsWon,
        Self::FirstClaimIsMine,
        Self::OlderNoteBoots,
        Self::UnnamedWaits,
        Self::OlderSync,
        Self::GuestRunsOn,
        Self::TakeBackUnasked,
        Self::TakeOverOpens,
        Self::ResumeLacking,
        Self::InterruptedOpens,
        Self::LeaseIgnored,
        Self::WinnerBootsAtOnce,
        Self::RestartBootsAtOnce,
        Self::StaysSlow,
        Self::SilenceUnnoticed,
        Self::StopsAsking,
    ];
}
