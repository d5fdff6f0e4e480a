//! What the guest says on its console, whichever twin prints it.

use std::time::Instant;

use evertwin::lab::events::Line;
use evertwin::lab::topology::Node;

use crate::pattern::{BLOCKS, blocks_of_round};

/// What a guest has said last.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Said {
    /// The newest round whose writes are on its disk.
    pub round: u64,
    /// It writes nothing for a while.
    pub quiet: bool,
    /// When it was read.
    pub at: Instant,
}

/// All that was said.
#[derive(Debug)]
pub(crate) struct Guest {
    /// The newest round that was announced of each block: none may be from an older one.
    pub floor: Vec<u64>,
    /// Rounds announced.
    pub rounds: u64,
    /// What was said last.
    pub last: Option<Said>,
    /// Which twin booted the guest, since this was last taken.
    pub booted: Option<Node>,
    /// Blocks that the guest itself found wrong.
    pub errors: u64,
    /// Lines that must not be there.
    pub complaints: Vec<String>,
}

impl Guest {
    pub(crate) fn new() -> Self {
        Self {
            floor: vec![0; BLOCKS as usize],
            rounds: 0,
            last: None,
            booted: None,
            errors: 0,
            complaints: Vec::new(),
        }
    }

    /// Takes a line of a twin's console. A failover may tear a line in two, so parts of lines are passed over.
    pub(crate) fn hear(&mut self, node: Node, line: &Line) {
        let text = line.text.trim_end();
        if text.contains("WARNING") || text.contains("PANIC") {
            let name = node.name();
            self.complaints.push(format!("the guest on {name}: {text}"));
        } else if text.starts_with("pico: ready ") {
            self.booted = Some(node);
        } else if let Some((round, errors, quiet)) = parse(text) {
            for block in blocks_of_round(round) {
                if let Some(floor) = self.floor.get_mut(block as usize) {
                    *floor = round.max(*floor);
                }
            }
            self.rounds += u64::from(!quiet);
            self.errors = self.errors.max(errors);
            let at = line.at;
            // The end of what a dead twin said may be read last.
            if self.last.is_none_or(|last| last.at <= at) {
                self.last = Some(Said { round, quiet, at });
            }
        }
    }
}

/// An announcement: round, errors, and whether a pause begins. Its last word shows that it is whole.
fn parse(text: &str) -> Option<(u64, u64, bool)> {
    let mut words = text.strip_prefix("pico: bursts: ")?.split(' ');
    let round = words.next()?.strip_prefix("round=")?.parse().ok()?;
    let errors = words.next()?.strip_prefix("errors=")?.parse().ok()?;
    match (words.next()?, words.next()) {
        ("quiet", None) => Some((round, errors, true)),
        ("busy", None) => Some((round, errors, false)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn torn_lines_say_nothing() {
        assert_eq!(
            parse("pico: bursts: round=17 errors=0 busy"),
            Some((17, 0, false))
        );
        assert_eq!(
            parse("pico: bursts: round=17 errors=2 quiet"),
            Some((17, 2, true))
        );
        for torn in [
            "pico: bursts: round=17 errors=0 qui",
            "pico: bursts: round=1",
            "7 errors=0 busy",
            "",
        ] {
            assert_eq!(parse(torn), None);
        }
    }

    #[test]
    fn announced_rounds_raise_the_floor() {
        let mut guest = Guest::new();
        let mut hear = |text: &str| {
            let at = Instant::now();
            guest.hear(
                Node::A,
                &Line {
                    at,
                    text: text.to_owned(),
                },
            );
        };
        hear("pico: ready workload=bursts blocks=2048 first=1");
        hear("pico: bursts: round=20 errors=0 busy");
        hear("pico: bursts: round=10 errors=0 busy");
        hear("pico: WARNING disk: a flush failed");
        assert_eq!((guest.booted, guest.rounds), (Some(Node::A), 2));
        assert_eq!(guest.complaints.len(), 1);
        assert!(blocks_of_round(20).all(|block| guest.floor[block as usize] == 20));
        assert!(blocks_of_round(10).all(|block| guest.floor[block as usize] >= 10));
        let untouched = guest.floor.iter().filter(|floor| **floor == 0).count();
        assert!(untouched >= BLOCKS as usize - 128);
    }
}
