//! A standby whose disk fails tries it again until it works: its guest is elsewhere, and wants to be protected again.

use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use evertwin_replicator::Error;
use evertwin_replicator::control::{TwinStatus, control};

use super::{Outcome, RunError, Stop, protected, wait_for_any};
use crate::config::ReplicationConfig;
use crate::control::{Desk, serve};
use crate::machine::Machine;
use crate::uplink::Uplinks;

/// Time until the first attempt; it doubles with each that fails.
const FIRST: Duration = Duration::from_secs(1);
/// The longest time between two.
const LONGEST: Duration = Duration::from_secs(60);

/// Runs a twin until it ends by anything else than its disk's failure. `make` makes its machine anew, with its disks brought to a whole epoch.
///
/// # Errors
/// Those of the run. A machine that can't be made again is a failure of its disk as well: the first one could be made.
pub(super) fn run(
    machine: Machine,
    make: impl Fn() -> Result<Machine, RunError>,
    vm: &str,
    replication: &ReplicationConfig,
    uplinks: &Uplinks,
    stop: &Stop,
) -> Result<Outcome, RunError> {
    let no_event = RunError::host("make the control's event");
    let (controller, mut end) = control().map_err(&no_event)?;
    let desk = Desk::new(controller);
    let _serving = match serve(&replication.control, vm, &desk) {
        Ok(serving) => Some(serving),
        Err(error) => {
            let path = replication.control.display();
            tracing::warn!(%path, %error, "this twin can't be controlled: set `control` to another path");
            None
        }
    };
    let mut made: Result<_, RunError> = Ok(machine);
    let mut failure = None;
    let mut delay = FIRST;
    loop {
        let began = Instant::now();
        let why = match made {
            Err(error) => error.to_string(),
            Ok(machine) => {
                let failure = failure.take();
                match protected(machine, vm, replication, uplinks, stop, end, failure) {
                    Err(RunError::Replicator(Error::StandbyDisk(why))) => why,
                    ended => return ended,
                }
            }
        };
        if began.elapsed() > LONGEST {
            delay = FIRST;
        }
        let retry_s = delay.as_secs();
        tracing::error!(
            why,
            retry_s,
            "a disk fails here: this standby tries it again"
        );
        desk.leave_note(
            status(replication, &why),
            "a disk fails here, and is tried again: see `evertwin status`",
        );
        if wait_for_any(&[stop.as_fd()], Some(delay))? {
            return Ok(Outcome::Stopped);
        }
        delay = (delay * 2).min(LONGEST);
        failure = Some(why);
        made = make();
        let (controller, next) = control().map_err(&no_event)?;
        end = next;
        if made.is_ok() {
            desk.hand_to(controller);
        }
    }
}

/// What an operator is told meanwhile.
fn status(replication: &ReplicationConfig, why: &str) -> TwinStatus {
    TwinStatus {
        node: replication.node.clone(),
        peer: replication.peer.clone(),
        role: "disk-failed".to_owned(),
        protection: match replication.lease {
            None => "ft",
            Some(_) => "ha",
        }
        .to_owned(),
        generation: 0,
        link: None,
        epoch: 0,
        sync: None,
        lease: None,
        disk_failure: Some(why.to_owned()),
        peer_disk_failure: None,
        uplinks: Vec::new(),
        peer_uplinks: None,
        kept_out: None,
        scrub: None,
    }
}
