//! `evertwin keys`: a CA for one pair of twins, and the keys of its nodes.

use std::fs::{self, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use evertwin_replicator::NodeId;
use evertwin_replicator::tls::{
    AUTHORITY_FILE, CERTIFICATE_FILE, KEY_FILE, Keys, certificate_name,
};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};

/// Name of the file with the CA's private key. It is for the place where keys are made only.
pub const AUTHORITY_KEY_FILE: &str = "ca.key";

/// How long a node's certificate is valid: ten years.
const VALIDITY: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// Why no keys were made.
#[derive(Debug, thiserror::Error)]
pub enum MakeKeysError {
    /// The node has keys.
    #[error("{path} is there already: --renew replaces the keys of the nodes that are named")]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// Half of a CA can sign nothing.
    #[error(
        "{present} is there, but {missing} is not: bring both together, or begin in another directory"
    )]
    HalfAuthority {
        /// What is there.
        present: PathBuf,
        /// What is not.
        missing: PathBuf,
    },
    /// A file or directory can't be used.
    #[error("can't {what} {path}: {source}")]
    File {
        /// What was tried.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The CA's key is none.
    #[error("{path} holds no private key that can sign: {reason}")]
    AuthorityKey {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: rcgen::Error,
    },
    /// Keys or certificates can't be made.
    #[error("no certificate could be made: {0}")]
    Making(#[from] rcgen::Error),
    /// What was made does not work.
    #[error("what was made can't be used: {0}; do ca.crt and ca.key belong together?")]
    Unusable(evertwin_replicator::tls::KeysError),
}

impl MakeKeysError {
    fn file<E: Into<io::Error>>(what: &'static str, path: &Path) -> impl FnOnce(E) -> Self {
        let path = path.to_owned();
        move |error| Self::File {
            what,
            path,
            source: error.into(),
        }
    }
}

/// Makes the keys of `nodes`, each in a directory of its own in `directory`, with the CA there; without one, a CA is
/// made first. Nothing is changed when anything is wrong.
///
/// # Errors
/// Keys that are there already, unless they are to be renewed; files that can't be read or written.
pub fn make(directory: &Path, nodes: &[NodeId], renew: bool) -> Result<(), MakeKeysError> {
    for node in nodes {
        for name in [CERTIFICATE_FILE, KEY_FILE] {
            let path = node_directory(directory, *node).join(name);
            if !renew && path.exists() {
                return Err(MakeKeysError::Exists { path });
            }
        }
    }
    make_directory(directory)?;
    let authority = Authority::in_directory(directory)?;
    // All is made and tried in a place of its own: what is there already works until the end.
    let staged = tempfile::Builder::new()
        .prefix(".new-")
        .tempdir_in(directory)
        .map_err(MakeKeysError::file("make a directory in", directory))?;
    for node in nodes {
        authority.certify(*node, &node_directory(staged.path(), *node))?;
    }
    authority.save(directory)?;
    for node in nodes {
        let (from, to) = (
            node_directory(staged.path(), *node),
            node_directory(directory, *node),
        );
        make_directory(&to)?;
        for name in [AUTHORITY_FILE, CERTIFICATE_FILE, KEY_FILE] {
            let path = to.join(name);
            fs::rename(from.join(name), &path).map_err(MakeKeysError::file("write", &path))?;
        }
    }
    Ok(())
}

/// What to do with keys that were just made.
pub fn advice(directory: &Path, nodes: &[NodeId]) -> String {
    let shown = directory.display();
    let mut text = String::new();
    for node in nodes {
        text += &format!("for host {node}:  copy {shown}/{node} to it, readable by nobody else\n");
    }
    text += &format!(
        "in vm.toml:  [replication] gets keys = \"{shown}/{{node}}\", or where you copied them to\n\
         keep here:   {shown}/{AUTHORITY_KEY_FILE}, which can make keys that the twins trust; no host needs it\n"
    );
    text
}

fn node_directory(directory: &Path, node: NodeId) -> PathBuf {
    directory.join(node.as_str())
}

/// Who signs a pair's certificates.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
    is_new: bool,
}

impl Authority {
    fn in_directory(directory: &Path) -> Result<Self, MakeKeysError> {
        let (key, certificate) = (
            directory.join(AUTHORITY_KEY_FILE),
            directory.join(AUTHORITY_FILE),
        );
        match (key.exists(), certificate.exists()) {
            (false, false) => Self::new(),
            (true, true) => Self::load(&key, &certificate),
            (true, false) => Err(MakeKeysError::HalfAuthority {
                present: key,
                missing: certificate,
            }),
            (false, true) => Err(MakeKeysError::HalfAuthority {
                present: certificate,
                missing: key,
            }),
        }
    }

    fn new() -> Result<Self, MakeKeysError> {
        let key = KeyPair::generate()?;
        let params = authority_params(&key)?;
        Ok(Self {
            certificate: params.self_signed(&key)?.pem(),
            issuer: Issuer::new(params, key),
            is_new: true,
        })
    }

    fn load(key_path: &Path, certificate_path: &Path) -> Result<Self, MakeKeysError> {
        let read =
            |path: &Path| fs::read_to_string(path).map_err(MakeKeysError::file("read", path));
        let key =
            KeyPair::from_pem(&read(key_path)?).map_err(|reason| MakeKeysError::AuthorityKey {
                path: key_path.into(),
                reason,
            })?;
        Ok(Self {
            certificate: read(certificate_path)?,
            issuer: Issuer::new(authority_params(&key)?, key),
            is_new: false,
        })
    }

    fn save(&self, directory: &Path) -> Result<(), MakeKeysError> {
        if !self.is_new {
            return Ok(());
        }
        let key = self.issuer.key().serialize_pem();
        write(&directory.join(AUTHORITY_KEY_FILE), &key, 0o600)?;
        write(&directory.join(AUTHORITY_FILE), &self.certificate, 0o644)
    }

    /// Makes the keys of a node in a directory, and tries them.
    fn certify(&self, node: NodeId, directory: &Path) -> Result<(), MakeKeysError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new([certificate_name(node)])?;
        params.distinguished_name = Default::default();
        let title = format!("Evertwin node {node}");
        params.distinguished_name.push(DnType::CommonName, title);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        // Either twin may be the one that dials.
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let epoch = date_time_ymd(1970, 1, 1);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        // A host whose clock has not been set yet must find its peer, too.
        params.not_before = epoch;
        params.not_after = epoch + now.unwrap_or_default() + VALIDITY;
        let certificate = params.signed_by(&key, &self.issuer)?;
        make_directory(directory)?;
        write(&directory.join(AUTHORITY_FILE), &self.certificate, 0o644)?;
        write(&directory.join(CERTIFICATE_FILE), &certificate.pem(), 0o644)?;
        write(&directory.join(KEY_FILE), &key.serialize_pem(), 0o600)?;
        Keys::load(directory, node, node).map_err(MakeKeysError::Unusable)?;
        Ok(())
    }
}

/// Only what is told by the key: with it, a CA is known again.
fn authority_params(key: &KeyPair) -> Result<CertificateParams, MakeKeysError> {
    let mut params = CertificateParams::new([])?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let id = params.key_identifier(key);
    let id: String = id
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    params.distinguished_name = Default::default();
    let title = format!("Evertwin CA {id}");
    params.distinguished_name.push(DnType::CommonName, title);
    Ok(params)
}

fn make_directory(path: &Path) -> Result<(), MakeKeysError> {
    fs::create_dir_all(path).map_err(MakeKeysError::file("make the directory", path))
}

/// Writes a file that is not there yet; nobody can open it with wider permissions even for a moment.
fn write(path: &Path, text: &str, mode: u32) -> Result<(), MakeKeysError> {
    let place = path.parent().unwrap_or(Path::new("."));
    let written = || -> io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(place)?;
        file.write_all(text.as_bytes())?;
        file.as_file()
            .set_permissions(Permissions::from_mode(mode))?;
        file.as_file().sync_all()?;
        file.persist_noclobber(path)?;
        Ok(())
    };
    written().map_err(MakeKeysError::file("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(names: &[&str]) -> Vec<NodeId> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    fn load(directory: &Path, node: &str, peer: &str) -> Result<(), String> {
        let (node, peer) = (node.parse().unwrap(), peer.parse().unwrap());
        let loaded = Keys::load(&node_directory(directory, node), node, peer);
        loaded
            .map(|(_, warnings)| assert!(warnings.is_empty(), "{warnings:?}"))
            .map_err(|error| error.to_string())
    }

    fn mode(path: PathBuf) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn keys_are_usable_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let keys = dir.path().join("keys");
        // All that a node's name may be made of.
        let longest = "0-very-long-nam-";
        make(&keys, &nodes(&["a", longest]), false).unwrap();
        load(&keys, "a", longest).unwrap();
        load(&keys, longest, "a").unwrap();
        for private in ["ca.key", "a/node.key"] {
            assert_eq!(mode(keys.join(private)), 0o600, "{private}");
        }
        assert_eq!(mode(keys.join("a/node.crt")), 0o644);
        let left: Vec<_> = fs::read_dir(&keys).unwrap().flatten().collect();
        assert_eq!(left.len(), 4, "{left:?}");
        let text = advice(&keys, &nodes(&["a"]));
        assert!(text.contains("keys/a") && text.contains("ca.key"), "{text}");
    }

    #[test]
    fn nothing_is_overwritten_unless_it_is_to_be_renewed() {
        let dir = tempfile::tempdir().unwrap();
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
        make(dir.path(), &nodes(&["a"]), false).unwrap();
        let before = (read("ca.crt"), read("a/node.crt"), read("a/node.key"));
        // Another node is no reason to touch the first; the first is none to add another.
        let error = make(dir.path(), &nodes(&["b", "a"]), false).unwrap_err();
        assert!(error.to_string().contains("a/node.crt"), "{error}");
        assert!(!dir.path().join("b").exists());
        make(dir.path(), &nodes(&["b"]), false).unwrap();
        assert_eq!(
            before,
            (read("ca.crt"), read("a/node.crt"), read("a/node.key"))
        );
        make(dir.path(), &nodes(&["a"]), true).unwrap();
        assert_eq!(before.0, read("ca.crt"));
        assert!(before.1 != read("a/node.crt") && before.2 != read("a/node.key"));
        load(dir.path(), "a", "b").unwrap();
        load(dir.path(), "b", "a").unwrap();
    }

    #[test]
    fn a_ca_that_is_not_whole_signs_nothing() {
        let dir = tempfile::tempdir().unwrap();
        make(dir.path(), &nodes(&["a"]), false).unwrap();
        let key = dir.path().join("ca.key");
        let kept = fs::read_to_string(&key).unwrap();
        let attempt = || {
            let made = make(dir.path(), &nodes(&["b"]), false);
            assert!(!dir.path().join("b").exists());
            made.unwrap_err().to_string()
        };
        fs::remove_file(&key).unwrap();
        assert!(attempt().contains("ca.key is not"));
        fs::write(&key, "no key").unwrap();
        assert!(attempt().contains("ca.key holds no private key"));
        fs::write(&key, KeyPair::generate().unwrap().serialize_pem()).unwrap();
        assert!(attempt().contains("belong together"));
        fs::write(&key, kept).unwrap();
        fs::remove_file(dir.path().join("ca.crt")).unwrap();
        assert!(attempt().contains("ca.crt is not"));
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let error = make(&file, &nodes(&["a"]), false).unwrap_err();
        assert!(error.to_string().contains("file"), "{error}");
    }
}
