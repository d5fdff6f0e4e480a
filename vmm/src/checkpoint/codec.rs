//! How state is written down. The only place that knows bincode.

use std::io::Write;

use super::{CheckpointError, VmState};

/// Most bytes a state may take; far above any real one (about 10 KiB per vCPU and 2 KiB per
/// device), far below what could hurt.
const MAX_STATE_BYTES: usize = 16 << 20;

/// First bytes of every state: a magic and the format's version.
const HEADER: [u8; 6] = *b"EVST\x01\x00";

fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<MAX_STATE_BYTES>()
}

/// Replaces `into` with the bytes of `state`.
///
/// # Errors
/// A state above [`MAX_STATE_BYTES`].
pub fn encode(state: &VmState, into: &mut Vec<u8>) -> Result<(), CheckpointError> {
    into.clear();
    into.write_all(&HEADER)
        .map_err(|e| CheckpointError::Encode(e.to_string()))?;
    bincode::serde::encode_into_std_write(state, into, config())
        .map(|_| ())
        .map_err(|e| CheckpointError::Encode(e.to_string()))
}

/// Reads a state back.
///
/// # Errors
/// Bytes that are not exactly one state of this version.
pub fn decode(bytes: &[u8]) -> Result<VmState, CheckpointError> {
    let body = bytes
        .strip_prefix(&HEADER)
        .ok_or_else(|| CheckpointError::Decode("wrong header".into()))?;
    if body.len() > MAX_STATE_BYTES {
        return Err(CheckpointError::Decode(format!("{} bytes", body.len())));
    }
    let (state, used) = bincode::serde::decode_from_slice(body, config())
        .map_err(|e| CheckpointError::Decode(e.to_string()))?;
    if used != body.len() {
        return Err(CheckpointError::Decode("bytes left over".into()));
    }
    Ok(state)
}
