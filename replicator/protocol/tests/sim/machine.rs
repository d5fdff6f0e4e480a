//! A machine whose guest is the list of what it has done.

use std::collections::VecDeque;

#[derive(Default)]
pub(crate) struct Machine {
    pub(crate) running: bool,
    pub(crate) tracking: bool,
    pub(crate) open: bool,
    /// What a standby would promote.
    pub(crate) applied: Option<Vec<u64>>,
    history: Vec<u64>,
    /// Output that is held: its epoch once sealed, and the length of the history behind it.
    held: VecDeque<(Option<u64>, usize)>,
    captured: Vec<(u64, Vec<u64>)>,
    /// Lengths of the histories behind the output that has left.
    emitted: Vec<usize>,
}

impl Machine {
    pub(crate) fn boot(&mut self, token: u64) {
        self.running = true;
        self.history = vec![token];
    }

    /// True when output starts to wait for the epoch's end.
    pub(crate) fn step(&mut self, token: u64) -> bool {
        if !self.running {
            return false;
        }
        self.history.push(token);
        if self.open {
            self.emitted.push(self.history.len());
            return false;
        }
        let first = self.held.back().is_none_or(|(epoch, _)| epoch.is_some());
        self.held.push_back((None, self.history.len()));
        first
    }

    pub(crate) fn open_output(&mut self) {
        self.open = true;
        self.release_if(|_| true);
    }

    pub(crate) fn release(&mut self, through: u64) {
        self.release_if(|epoch| epoch.is_some_and(|epoch| epoch <= through));
    }

    fn release_if(&mut self, may: impl Fn(Option<u64>) -> bool) {
        while let Some((_, len)) = self.held.pop_front_if(|(epoch, _)| may(*epoch)) {
            self.emitted.push(len);
        }
    }

    /// Gives the histories behind the output that has left.
    pub(crate) fn drain_emitted(&mut self) -> impl Iterator<Item = &[u64]> {
        let history = &self.history;
        self.emitted.drain(..).map(move |len| &history[..len])
    }

    pub(crate) fn capture(&mut self, epoch: u64) {
        for entry in &mut self.held {
            entry.0.get_or_insert(epoch);
        }
        self.captured.push((epoch, self.history.clone()));
    }

    /// The guest stays where it is, as an epoch that is held.
    pub(crate) fn stay(&mut self) {
        self.running = false;
        self.applied = Some(self.history.clone());
    }

    pub(crate) fn drop_output(&mut self) {
        self.held.clear();
    }

    pub(crate) fn captured(&self, epoch: u64) -> Vec<u64> {
        let found = self.captured.iter().rev().find(|entry| entry.0 == epoch);
        found.expect("only captured epochs are shipped").1.clone()
    }

    pub(crate) fn committed(&mut self, through: u64) {
        self.captured.retain(|(epoch, _)| *epoch > through);
    }

    pub(crate) fn promote(&mut self) {
        self.history = self.applied.take().expect("checked before");
        self.running = true;
    }

    pub(crate) fn fence(&mut self) {
        self.running = false;
        self.held.clear();
    }
}
