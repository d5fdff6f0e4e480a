//! The look-out for two twins that both think that the guest is theirs (I2).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use evertwin::lab::topology::Node;
use evertwin_replicator::arbiter::{Arbiter as _, FileArbiter};
use serde_json::Value;

use crate::site::role;

/// Time between two looks at the arbiter's record.
const LOOK: Duration = Duration::from_millis(5);

/// Looks at the record for each look at the twins.
const LOOKS: u32 = 4;

/// Says of a twin that it releases output, or is about to.
const SPEAKS: [&str; 3] = ["solo", "syncing", "protected"];

/// What a twin says in its log once a right to release is its.
const CLAIMS: [&str; 5] = [
    "guest running",
    "solo",
    "protected",
    "promoted",
    "not handed over: the guest goes on here",
];

/// Who had the right of each generation.
#[derive(Default)]
struct Releasers(BTreeMap<u64, String>);

impl Releasers {
    /// Notes one; complains about a second of the same generation.
    fn note(&mut self, generation: u64, releaser: &str, source: &str) -> Option<String> {
        let known = self
            .0
            .entry(generation)
            .or_insert_with(|| releaser.to_owned());
        (known != releaser).then(|| {
            format!("{source}: {known} and {releaser} both released under generation {generation}")
        })
    }
}

/// Looks at a pair from a thread of its own.
pub(crate) struct Watch {
    stop: Arc<AtomicBool>,
    directory: PathBuf,
    looker: JoinHandle<Vec<String>>,
}

impl Watch {
    /// Starts to look at the pair whose files are in `directory`.
    pub(crate) fn start(directory: &Path) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, of) = (Arc::clone(&stop), directory.to_owned());
        Self {
            stop,
            directory: directory.to_owned(),
            looker: std::thread::spawn(move || look(&of, &stopped)),
        }
    }

    /// Ends the look-out; what speaks for two histories.
    pub(crate) fn finish(self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        let lost = |_| vec!["the look-out failed".to_owned()];
        let mut splits = self.looker.join().unwrap_or_else(lost);
        splits.extend(claimed_twice(&self.directory));
        splits.dedup();
        splits
    }
}

fn look(directory: &Path, stop: &AtomicBool) -> Vec<String> {
    let mut arbiter = FileArbiter::new(directory.join("arbiter"));
    let mut releasers = Releasers::default();
    let mut newest = 0;
    let mut splits = Vec::new();
    let speaks = |node| SPEAKS.contains(&role(directory, node).as_str());
    for turn in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        if let Ok(Some(record)) = arbiter.read() {
            let (generation, releaser) = (record.generation, record.releaser.to_string());
            splits.extend(releasers.note(generation, &releaser, "the arbiter's record"));
            if generation < newest {
                splits.push(format!(
                    "the arbiter's record went back from {newest} to {generation}"
                ));
            }
            newest = newest.max(generation);
        }
        // The roles may be exchanged between two questions, but not twice.
        if turn % LOOKS == 0 && speaks(Node::A) && speaks(Node::B) && speaks(Node::A) {
            splits.push("both twins say that they speak for the guest".to_owned());
        }
        std::thread::sleep(LOOK);
    }
    splits
}

/// What the twins themselves have said, over all their starts.
fn claimed_twice(directory: &Path) -> Vec<String> {
    let mut releasers = Releasers::default();
    let mut splits = Vec::new();
    for node in [Node::A, Node::B] {
        let name = node.name();
        // A twin that was never started has no log.
        let log = std::fs::read(directory.join(format!("{name}.log"))).unwrap_or_default();
        for line in String::from_utf8_lossy(&log).lines() {
            let Ok(line) = serde_json::from_str::<Value>(line) else {
                continue;
            };
            let claims = line["message"]
                .as_str()
                .is_some_and(|said| CLAIMS.contains(&said));
            if let (true, Some(generation)) = (claims, line["generation"].as_u64()) {
                splits.extend(releasers.note(generation, name, "the logs"));
            }
        }
    }
    splits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_releasers_of_a_generation_are_found_in_the_logs() {
        let directory = tempfile::tempdir().unwrap();
        let write = |node: &str, lines: &[(&str, u64)]| {
            let text: String = lines
                .iter()
                .map(|(said, generation)| {
                    format!("{{\"message\":\"{said}\",\"generation\":{generation}}}\n")
                })
                .collect();
            std::fs::write(directory.path().join(format!("{node}.log")), text).unwrap();
        };
        write(
            "a",
            &[("guest running", 1), ("protected", 1), ("standby ready", 2)],
        );
        write("b", &[("standby ready", 1), ("promoted", 2), ("solo", 2)]);
        assert_eq!(claimed_twice(directory.path()), Vec::<String>::new());
        write("a", &[("guest running", 1), ("solo", 2)]);
        assert_eq!(claimed_twice(directory.path()).len(), 2);
    }
}
