//! Whether a VM whose level is none may be started here: its file still says who else might have its guest (I2).

use evertwin_replicator::NodeId;
use evertwin_replicator::arbiter::{Arbiter, EtcdArbiter, FileArbiter, Notes, Record};

use super::RunError;
use crate::config::{ArbiterConfig, ConfigError, ReplicationConfig};

/// Refuses to start the guest beside another one: the arbiter's record must not let the other host have it.
///
/// # Errors
/// [`RunError::NotAlone`], or the arbiter can't be asked.
pub fn check_alone(vm: &str, replication: &ReplicationConfig) -> Result<(), RunError> {
    let node = replication.node.parse::<NodeId>();
    let node = node.map_err(|error| ConfigError::Value(error.to_string()))?;
    let record = match &replication.arbiter {
        None => return Ok(()),
        Some(ArbiterConfig::Manual(path)) => Notes::new(path).read(),
        Some(ArbiterConfig::File(path)) => FileArbiter::new(path).read(),
        Some(ArbiterConfig::Etcd(endpoints)) => EtcdArbiter::new(endpoints.clone(), vm).read(),
    };
    match record {
        Ok(None) => Ok(()),
        Ok(Some(Record {
            releaser,
            standby: None,
            ..
        })) if releaser == node => Ok(()),
        Ok(Some(_)) => Err(RunError::NotAlone {
            node: replication.node.clone(),
            peer: replication.peer.clone(),
        }),
        Err(error) => Err(RunError::Unasked(error)),
    }
}
