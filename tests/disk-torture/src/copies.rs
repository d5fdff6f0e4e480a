//! The copies of disks that primaries make, as their logs tell of them, and whether each was of the right kind.

use evertwin::lab::events::Line;
use evertwin::lab::topology::Node;

/// What a primary says of each disk, at each sync.
const COPY: &str = "disk copy";

/// What it says when its standby is whole and named.
const PROTECTED: &str = "protected";

/// The copies so far.
#[derive(Debug, Default)]
pub(crate) struct Copies {
    /// Of what had changed only.
    pub delta: u64,
    /// Of everything.
    pub full: u64,
    /// Of what an interrupted one had left.
    pub resumed: u64,
    /// What was copied since this was last taken, in words.
    pub told: Vec<String>,
    /// What is wrong about them.
    pub complaints: Vec<String>,
    harmed: [Option<Harm>; 2],
}

/// What happened to a disk that was written to behind its twin's back.
#[derive(Clone, Copy, Debug)]
struct Harm {
    /// It was overwritten by a full copy since.
    full: bool,
}

impl Copies {
    /// The disk of this node was changed while its twin was down.
    pub(crate) fn harm(&mut self, node: Node) {
        self.harmed[node as usize] = Some(Harm { full: false });
    }

    /// Takes a line of a twin's log.
    pub(crate) fn hear(&mut self, node: Node, line: &Line) {
        let of = node.peer();
        match line.message().as_deref() {
            Some(COPY) => {
                let kind = line.field("copy");
                let kind = kind.as_ref().and_then(|kind| kind.as_str()).unwrap_or("no");
                match kind {
                    "delta" => self.delta += 1,
                    "full" => self.full += 1,
                    "resumed" => self.resumed += 1,
                    _ => self
                        .complaints
                        .push(format!("no kind of copy: {}", line.text)),
                }
                let bytes = line.field("bytes").and_then(|bytes| bytes.as_u64());
                let name = of.name();
                self.told
                    .push(format!("{kind}->{name}:{}", bytes.unwrap_or(0)));
                self.judge(of, Some(kind));
            }
            Some(PROTECTED) => self.judge(of, None),
            _ => {}
        }
    }

    /// A disk that was changed behind its twin's back must not be trusted: it gets a full copy, and nothing else
    /// but what an interruption of that leaves before it has made a standby of it. `kind` is that of a copy; none: the standby is whole now.
    fn judge(&mut self, of: Node, kind: Option<&str>) {
        let Some(harm) = &mut self.harmed[of as usize] else {
            return;
        };
        let name = of.name();
        match kind {
            Some("full") => harm.full = true,
            Some("resumed") if harm.full => {}
            Some(kind) => self.complaints.push(format!(
                "{name}'s disk was changed behind its back, and then got a {kind} copy"
            )),
            None => {
                // A twin that tells of no copies at all can't be judged.
                if !harm.full && self.delta + self.full + self.resumed > 0 {
                    self.complaints.push(format!(
                        "{name}'s disk was changed behind its back, and then got no full copy"
                    ));
                }
                self.harmed[of as usize] = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn tell(copies: &mut Copies, node: Node, text: &str) {
        let (at, text) = (Instant::now(), text.to_owned());
        copies.hear(node, &Line { at, text });
    }

    const FULL: &str = r#"{"message":"disk copy","disk":0,"copy":"full","bytes":7}"#;
    const DELTA: &str = r#"{"message":"disk copy","disk":0,"copy":"delta","bytes":3}"#;
    const RESUMED: &str = r#"{"message":"disk copy","disk":0,"copy":"resumed","bytes":5}"#;
    const WHOLE: &str = r#"{"message":"protected","generation":2}"#;

    #[test]
    fn a_harmed_disk_gets_a_full_copy() {
        let mut copies = Copies::default();
        copies.harm(Node::B);
        for line in [FULL, WHOLE, DELTA, WHOLE] {
            tell(&mut copies, Node::A, line);
        }
        tell(&mut copies, Node::B, DELTA);
        assert_eq!((copies.full, copies.delta), (1, 2));
        assert_eq!(copies.told[0], "full->b:7");
        assert!(copies.complaints.is_empty(), "{:?}", copies.complaints);

        copies.harm(Node::B);
        tell(&mut copies, Node::A, DELTA);
        assert_eq!(copies.complaints.len(), 1);
        copies.harm(Node::A);
        tell(&mut copies, Node::B, WHOLE);
        assert_eq!(copies.complaints.len(), 2);
    }

    #[test]
    fn a_harmed_disk_is_not_what_a_copy_goes_on_with() {
        let mut copies = Copies::default();
        copies.harm(Node::B);
        for line in [FULL, RESUMED, WHOLE, RESUMED] {
            tell(&mut copies, Node::A, line);
        }
        assert_eq!((copies.full, copies.resumed), (1, 2));
        assert!(copies.complaints.is_empty(), "{:?}", copies.complaints);
        copies.harm(Node::B);
        tell(&mut copies, Node::A, RESUMED);
        assert_eq!(copies.complaints.len(), 1);
    }

    #[test]
    fn twins_that_tell_of_no_copies_are_not_judged() {
        let mut copies = Copies::default();
        copies.harm(Node::B);
        tell(&mut copies, Node::A, WHOLE);
        assert!(copies.complaints.is_empty() && copies.harmed[1].is_none());
    }
}
