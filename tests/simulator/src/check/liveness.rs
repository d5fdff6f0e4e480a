//! Once all is well, the pair must be protected again.

/// Signs of protection since the last look, as an operator would see them.
#[derive(Debug, Default)]
pub(crate) struct Liveness {
    released: [u64; 2],
    applied: [u64; 2],
    /// Has said that it may take over.
    ready: [bool; 2],
}

impl Liveness {
    /// Output has left on an acknowledgement.
    pub(crate) fn released(&mut self, host: usize) {
        self.released[host] += 1;
    }

    /// A standby has taken an epoch.
    pub(crate) fn applied(&mut self, host: usize) {
        self.applied[host] += 1;
    }

    /// A standby says that it may take over.
    pub(crate) fn ready(&mut self, host: usize) {
        self.ready[host] = true;
    }

    /// A twin starts, or a sync of it.
    pub(crate) fn begins(&mut self, host: usize) {
        self.ready[host] = false;
    }

    /// Which host's guest is protected by the other, if so; looks from here on.
    pub(crate) fn protected(&mut self) -> Option<usize> {
        let released = std::mem::take(&mut self.released);
        let applied = std::mem::take(&mut self.applied);
        (0..2).find(|host| {
            let peer = 1 - host;
            released[*host] > 0 && applied[peer] > 0 && self.ready[peer]
        })
    }
}
