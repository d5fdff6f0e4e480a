//! The world outside, which must never see two stories.

/// What was seen of the guest since it was last booted from its kernel.
#[derive(Default)]
pub(crate) struct Outside {
    seen: Vec<u64>,
}

impl Outside {
    /// A cold start: a new story, told by its first token.
    pub(crate) fn begin(&mut self, token: u64) {
        self.seen = vec![token];
    }

    /// Output left. Tokens are unique, so two histories that share one share all before it.
    pub(crate) fn see(&mut self, seed: u64, history: &[u64]) {
        let common = history.len().min(self.seen.len());
        assert_eq!(
            history[common - 1],
            self.seen[common - 1],
            "seed {seed}: output of another story than was seen before (I1, I2)"
        );
        self.seen.extend_from_slice(&history[common..]);
    }

    /// A guest is about to go on from `history`: everything seen must be part of it.
    pub(crate) fn check_continues(&self, seed: u64, history: &[u64]) {
        let seen = self.seen.len();
        let part = seen <= history.len() && history[seen - 1] == self.seen[seen - 1];
        assert!(
            part,
            "seed {seed}: output left before its epoch committed (I1)"
        );
    }
}
