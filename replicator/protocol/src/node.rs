//! Names of twins.

use std::fmt;
use std::str::FromStr;

/// Longest name of a twin in bytes.
pub const NODE_NAME_MAX: usize = 16;

/// Name of a twin: 1 to 16 of the characters `a-z`, `0-9` and `-`, not starting with `-`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId([u8; NODE_NAME_MAX]);

/// A name that no twin can have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "node name {0:?} is not valid: use 1 to 16 of the characters a-z, 0-9 and -, not starting with -"
)]
pub struct NodeNameError(String);

impl NodeId {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        let len = self.0.iter().position(|byte| *byte == 0);
        let name = &self.0[..len.unwrap_or(NODE_NAME_MAX)];
        // Only ASCII gets into a name, so this never falls back.
        std::str::from_utf8(name).unwrap_or_default()
    }
}

impl FromStr for NodeId {
    type Err = NodeNameError;

    fn from_str(name: &str) -> Result<Self, NodeNameError> {
        let valid = |byte: &u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
        let bytes = name.as_bytes();
        let sized = (1..=NODE_NAME_MAX).contains(&bytes.len());
        if !sized || bytes[0] == b'-' || !bytes.iter().all(valid) {
            let shown = name.chars().take(32).collect();
            return Err(NodeNameError(shown));
        }
        let mut id = [0; NODE_NAME_MAX];
        id[..bytes.len()].copy_from_slice(bytes);
        Ok(Self(id))
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
