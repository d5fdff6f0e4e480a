//! One cycle: a blow, the way back to a protected pair, and a look at both disks.

use std::time::{Duration, Instant};

use evertwin::lab::topology::Node;
use fastrand::Rng;

use crate::blow::{Blow, up_to};
use crate::error::TortureError;
use crate::judge;
use crate::rot;
use crate::site::{BUSY, NODES, Site};
use crate::tamper::Tamper;

/// The longest way back to a protected pair. Syncs fail and are repeated while a busy disk takes seconds to flush.
const BACK: Duration = Duration::from_secs(60);

/// How long the survivor of a blow may take to go on alone, before its peer returns anyway.
const TO_SOLO: Duration = Duration::from_secs(5);

/// How often the twins may exchange their roles unasked, as on a busy machine, before that is a failure.
const UNASKED: u32 = 3;

/// How long the guest may take to write a round.
const TO_ROUND: Duration = Duration::from_secs(10);

/// Time between two looks at what is waited for.
pub(crate) const TICK: Duration = Duration::from_millis(10);

/// A sync of this guest and this disk takes about as long: a second blow comes within.
const SYNC: Duration = Duration::from_millis(600);

/// The longest that a twin stays away.
const AWAY: Duration = Duration::from_secs(1);

/// What is planned for a cycle, and how far it has come.
pub(crate) struct Cycle {
    first: Blow,
    second: Option<Blow>,
    /// Before all that, the standby's disk changes by itself, and is repaired.
    rots: bool,
    tamper: Option<Tamper>,
    /// A dead twin does not return before the other goes on alone, and not for this long.
    away: Option<Duration>,
    /// How long it took from the blow to a protected pair.
    pub protected: Duration,
    /// What was done, in words.
    pub told: Vec<String>,
}

impl Cycle {
    pub(crate) fn new(random: &mut Rng) -> Self {
        let ways = [Tamper::Overwrite, Tamper::Replace, Tamper::Beside];
        let tamper = (random.u8(0..10) < 3)
            .then(|| random.choice(ways))
            .flatten();
        Self {
            first: Blow::first(random),
            second: (random.u8(0..10) < 3).then(|| Blow::second(random)),
            away: (tamper.is_some() || random.u8(0..10) < 6).then(|| up_to(random, AWAY)),
            tamper,
            rots: random.u8(0..10) < 3,
            protected: Duration::ZERO,
            told: Vec::new(),
        }
    }

    /// Does it to a protected pair, or, the first time, to one that is not started yet. The primary afterwards.
    pub(crate) fn run(
        &mut self,
        site: &mut Site,
        primary: Option<Node>,
        random: &mut Rng,
    ) -> Result<Node, TortureError> {
        let mut since = Instant::now();
        if let Some(primary) = primary {
            if self.rots {
                self.told.push(rot::rot(site, primary, random)?);
            }
            lead(site, primary, random)?;
            since = Instant::now();
            self.told.push(self.first.to_string());
            self.first.strike(site, primary, random)?;
        } else {
            self.told.push("first-start".to_owned());
            self.tamper = None;
        }
        let mut primary = self.bring_back(site, random)?;
        self.protected = since.elapsed();
        for _ in 0..UNASKED {
            if judge::compare(site, primary)? {
                return Ok(primary);
            }
            self.told.push("roles changed unasked".to_owned());
            primary = self.bring_back(site, random)?;
        }
        Err(TortureError::Unsteady)
    }

    /// Starts what is dead until the pair is protected.
    fn bring_back(&mut self, site: &mut Site, random: &mut Rng) -> Result<Node, TortureError> {
        let mut until = Instant::now() + BACK;
        loop {
            let mut both = NODES;
            random.shuffle(&mut both);
            for node in both {
                if !site.is_running(node)? {
                    self.return_twin(site, node, random)?;
                }
            }
            judge::hear(site)?;
            let roles = site.roles();
            let syncing = |node: &Node| roles[*node as usize] == "syncing";
            if let Some(primary) = NODES.into_iter().find(syncing)
                && let Some(second) = self.second.take()
            {
                std::thread::sleep(up_to(random, SYNC));
                self.told.push(format!("then {second}"));
                second.strike(site, primary, random)?;
                until = Instant::now() + BACK;
                continue;
            }
            if let Some(primary) = site.protected_by(&roles) {
                return Ok(primary);
            }
            if Instant::now() > until {
                let [a, b] = roles;
                let after = BACK;
                return Err(TortureError::NotProtected { a, b, after });
            }
            std::thread::sleep(TICK);
        }
    }

    /// Starts a twin that is down. If its peer goes on alone, its own disk may be changed before: the arbiter's record
    /// then names the peer only, so this disk has nothing that counts until it is a copy again.
    fn return_twin(
        &mut self,
        site: &mut Site,
        node: Node,
        random: &mut Rng,
    ) -> Result<(), TortureError> {
        let peer = node.peer();
        if let Some(away) = self.away
            && goes_on_alone(site, peer)?
        {
            std::thread::sleep(away);
            judge::hear(site)?;
            judge::acknowledged(site, peer)?;
            if let Some(tamper) = self.tamper.take() {
                let done = tamper
                    .perform(&site.image(node), random)
                    .map_err(TortureError::io("changing a disk that is not in use"))?;
                self.told.push(format!("{}: {done}", node.name()));
                if tamper.harms_image() {
                    site.copies.harm(node);
                }
            }
        }
        site.start(node)
    }
}

/// Waits until a twin runs the guest alone; false if it does not run, or needs its peer for that.
fn goes_on_alone(site: &mut Site, node: Node) -> Result<bool, TortureError> {
    let until = Instant::now() + TO_SOLO;
    while Instant::now() < until && site.is_running(node)? {
        match site.roles()[node as usize].as_str() {
            "solo" => return Ok(true),
            "starting" => return Ok(false),
            _ => std::thread::sleep(TICK),
        }
    }
    Ok(false)
}

/// Waits for the moment of a blow: any, one in a burst, or the one at which a round is announced, when its epoch must
/// have committed (I1).
fn lead(site: &mut Site, primary: Node, random: &mut Rng) -> Result<(), TortureError> {
    let moment = random.u8(0..4);
    let later = up_to(random, BUSY);
    if moment > 0 && !site.wait_for_round(primary, TO_ROUND) {
        judge::hear(site)?;
        return Err(TortureError::Silent {
            what: "written a round",
            after: TO_ROUND,
        });
    }
    if moment < 2 {
        std::thread::sleep(later);
    }
    Ok(())
}
