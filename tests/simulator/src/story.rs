//! What guests have done, once for all twins: a tree of moments, each with the one before it.
//!
//! A guest's state is one number, its last moment, and everything that its memory and its
//! disk must hold follows from there. No machine's bookkeeping is involved.

/// Pages of guest memory.
pub(crate) const PAGES: usize = 16;

/// Blocks of the guest's disk.
pub(crate) const BLOCKS: usize = 4;

/// One thing that a guest did. 0 is none.
pub(crate) type Moment = u32;

/// Contents of memory: the moment at which each page was written last.
pub(crate) type Memory = [Moment; PAGES];

/// Contents of a disk: the moment at which each block was written last.
pub(crate) type Blocks = [Moment; BLOCKS];

#[derive(Clone, Copy, Debug, Default)]
struct Node {
    parent: Moment,
    /// Moments since the guest was booted.
    depth: u32,
    /// The pages written, one bit each.
    pages: u16,
    write: Option<Write>,
    /// The guest's own clock, in its microseconds.
    clock: u64,
}

/// A block that was written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Write {
    pub(crate) block: u8,
    /// The client is told only when the block is flushed.
    pub(crate) durable: bool,
    /// What the block held before.
    pub(crate) before: Moment,
}

/// All moments of all guests of a run.
#[derive(Debug)]
pub(crate) struct Story {
    nodes: Vec<Node>,
    /// What each boot found on the disk.
    boots: Vec<(Moment, Blocks)>,
}

impl Story {
    pub(crate) fn new() -> Self {
        Self {
            nodes: vec![Node::default()],
            boots: Vec::new(),
        }
    }

    /// A guest starts from its kernel: all memory is as the boot left it.
    pub(crate) fn boot(&mut self, disk: Blocks) -> Moment {
        let boot = self.push(Node {
            pages: u16::MAX,
            ..Node::default()
        });
        self.boots.push((boot, disk));
        boot
    }

    /// The guest goes on.
    pub(crate) fn step(
        &mut self,
        parent: Moment,
        pages: u16,
        write: Option<Write>,
        clock: u64,
    ) -> Moment {
        let depth = self.node(parent).depth + 1;
        self.push(Node {
            parent,
            depth,
            pages,
            write,
            clock,
        })
    }

    fn push(&mut self, node: Node) -> Moment {
        self.nodes.push(node);
        (self.nodes.len() - 1) as Moment
    }

    fn node(&self, moment: Moment) -> Node {
        self.nodes[moment as usize]
    }

    /// The guest's clock at this moment.
    pub(crate) fn clock(&self, moment: Moment) -> u64 {
        self.node(moment).clock
    }

    pub(crate) fn write(&self, moment: Moment) -> Option<Write> {
        self.node(moment).write
    }

    /// Is `earlier` part of the history of `later`, or the same?
    pub(crate) fn continues(&self, earlier: Moment, later: Moment) -> bool {
        let depth = self.node(earlier).depth;
        let mut at = later;
        // A moment's number is greater than that of all before it.
        while at > earlier && self.node(at).depth > depth {
            at = self.node(at).parent;
        }
        at == earlier
    }

    /// What memory must hold.
    pub(crate) fn memory(&self, at: Moment) -> Memory {
        let mut memory = [0; PAGES];
        let mut missing = u16::MAX;
        let mut moment = at;
        while missing != 0 && moment != 0 {
            let node = self.node(moment);
            let mut found = missing & node.pages;
            missing &= !found;
            while found != 0 {
                memory[found.trailing_zeros() as usize] = moment;
                found &= found - 1;
            }
            moment = node.parent;
        }
        memory
    }

    /// What the disk must hold.
    pub(crate) fn disk(&self, at: Moment) -> Blocks {
        let mut disk: [Option<Moment>; BLOCKS] = [None; BLOCKS];
        let mut moment = at;
        while self.node(moment).parent != 0 && disk.contains(&None) {
            if let Some(write) = self.node(moment).write {
                disk[usize::from(write.block)].get_or_insert(moment);
            }
            moment = self.node(moment).parent;
        }
        let booted = self.boots.iter().find(|(boot, _)| *boot == moment);
        let found = booted.map_or([0; BLOCKS], |(_, disk)| *disk);
        std::array::from_fn(|block| disk[block].unwrap_or(found[block]))
    }

    /// Does a block that holds `content` hold what was written at `written`, or something that
    /// was written over it?
    pub(crate) fn covers(&self, content: Moment, written: Moment) -> bool {
        let mut at = content;
        while at > written {
            at = self.node(at).write.map_or(0, |write| write.before);
        }
        at == written
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(block: u8, before: Moment) -> Option<Write> {
        Some(Write {
            block,
            durable: true,
            before,
        })
    }

    #[test]
    fn contents_follow_from_the_history_alone() {
        let mut story = Story::new();
        let boot = story.boot([0, 0, 7, 0]);
        let first = story.step(boot, 0b01, write(0, 0), 1);
        let second = story.step(first, 0b11, None, 2);
        let other = story.step(first, 0b10, write(0, first), 2);
        assert_eq!(story.memory(second)[..3], [second, second, boot]);
        assert_eq!(story.memory(other)[..3], [first, other, boot]);
        assert_eq!(story.disk(second), [first, 0, 7, 0]);
        assert_eq!(story.disk(other), [other, 0, 7, 0]);
    }

    #[test]
    fn two_histories_are_told_apart() {
        let mut story = Story::new();
        let boot = story.boot([0; BLOCKS]);
        let one = story.step(boot, 1, None, 1);
        let two = story.step(boot, 1, None, 1);
        let again = story.boot([0; BLOCKS]);
        assert!(story.continues(boot, two) && story.continues(one, one));
        assert!(!story.continues(one, two) && !story.continues(two, one));
        assert!(!story.continues(boot, again));
    }

    #[test]
    fn a_block_covers_what_it_was_written_over() {
        let mut story = Story::new();
        let boot = story.boot([0; BLOCKS]);
        let one = story.step(boot, 1, write(1, 0), 1);
        let other = story.step(boot, 1, write(1, 0), 1);
        let two = story.step(one, 1, write(1, one), 1);
        assert!(story.covers(two, one) && story.covers(two, 0));
        assert!(!story.covers(two, other) && !story.covers(0, one));
    }
}
