//! A standby whose disks are slower than what its primary sends: it takes no more until they have caught up, and says that it lives. Its
//! primary has to wait for acknowledgements then, and its guest for its disks.

use std::time::{Duration, Instant};

use evertwin_protocol::Input;

use super::Driver;
use crate::config::Error;
use crate::network::Place;

/// How long a guest's output may wait for the standby's disks, in timeouts. After that it is better off without that standby.
const PATIENCE: u32 = 4;

/// The link from which nothing is taken.
#[derive(Debug, Clone, Copy)]
pub(super) struct Behind {
    link: u64,
    since: Instant,
}

impl Driver<'_> {
    /// Whether frames of this connection have to wait for the disks; if so, [`Self::catch_up`] takes them.
    pub(super) fn falls_behind(&mut self, connection: u64) -> bool {
        let greeted = self
            .network
            .get(connection)
            .is_some_and(|peer| peer.verified);
        let linked = self.network.place(connection) == Some(Place::Link);
        if !(greeted && linked && self.machine.is_behind()) {
            return false;
        }
        self.behind = Some(Behind {
            link: connection,
            since: Instant::now(),
        });
        true
    }

    /// Takes the frames that wait, if the disks have caught up.
    pub(super) fn catch_up(&mut self) -> Result<(), Error> {
        let Some(Behind { link, .. }) = self.behind.filter(|_| !self.machine.is_behind()) else {
            return Ok(());
        };
        self.behind = None;
        if let Some(connection) = self.network.get(link) {
            connection.was_left_alone();
        }
        self.take_frames(link)
    }

    /// Nothing is heard of a peer that nobody listens to. It is taken for alive meanwhile: should it be dead, its guest would have to
    /// wait for these disks anyway. To be called at least once in a timeout.
    ///
    /// # Errors
    /// The disks are too slow. Whoever has begun the run can begin another when they have caught up.
    pub(super) fn listen_later(&mut self) -> Result<(), Error> {
        let Some(Behind { since, .. }) = self.behind else {
            return Ok(());
        };
        if since.elapsed() < self.patience_with_disks() {
            self.inputs.push_back(Input::Heard);
            return self.drain();
        }
        let waited = since.elapsed().as_millis();
        Err(self.leave_for_disk(format!(
            "the disks are too slow for what the guest writes: nothing was taken for {waited} ms"
        )))
    }

    /// A lease is not extended meanwhile, so where there is one nobody may wait for long.
    fn patience_with_disks(&self) -> Duration {
        match self.config.lease {
            Some(_) => self.config.timeout,
            None => self.config.timeout * PATIENCE,
        }
    }
}
