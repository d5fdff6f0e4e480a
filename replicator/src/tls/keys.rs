//! A node's keys: read from files, checked against each other, and made ready for use.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use evertwin_protocol::NodeId;
use rustls::client::danger::ServerCertVerifier;
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{
    CertificateError, ClientConfig, Error, InconsistentKeys, RootCertStore, ServerConfig,
};

use super::TlsError;
use super::peer::PeerVerifier;
use super::session::Session;

/// Name of the file with the certificate of the pair's CA.
pub const AUTHORITY_FILE: &str = "ca.crt";

/// Name of the file with the node's own certificate.
pub const CERTIFICATE_FILE: &str = "node.crt";

/// Name of the file with the node's private key.
pub const KEY_FILE: &str = "node.key";

/// More than any of the files needs, in bytes.
const MOST_BYTES: u64 = 64 * 1024;

/// Time before a certificate's end in which a twin that starts warns of it.
const WARN_BEFORE: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// The DNS name that stands in the certificate of a node. Any name of a node gives a valid one.
#[must_use]
pub fn certificate_name(node: NodeId) -> String {
    format!("{node}-node.evertwin")
}

/// What one twin needs to prove who it is, and to tell its peer from anybody else.
#[derive(Debug, Clone)]
pub struct Keys {
    peer: ServerName<'static>,
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

/// Keys that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// A file can't be read.
    #[error(
        "can't read {path}: {source}: make keys with `evertwin keys`, and copy this node's to this host"
    )]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A file that holds something else.
    #[error(
        "{path} holds no {what} in PEM form: copy the file again, or make new keys with `evertwin keys`"
    )]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What should be in it.
        what: &'static str,
    },
    /// The private key is another one's.
    #[error("{key} is not the key of {certificate}: copy both files of this node again")]
    Mismatch {
        /// File of the key.
        key: PathBuf,
        /// File of the certificate.
        certificate: PathBuf,
    },
    /// The peer would not take the certificate.
    #[error("{path} can't be used as the certificate of node {node}: {reason}")]
    Certificate {
        /// The file.
        path: PathBuf,
        /// The node.
        node: NodeId,
        /// What is wrong with it, and what to do.
        reason: String,
    },
    /// Anything else, by the engine's words.
    #[error("the keys in {directory} can't be used: {reason}")]
    Unusable {
        /// Where they are.
        directory: PathBuf,
        /// The engine's words.
        reason: String,
    },
}

/// Something about keys that work, but should be looked after.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeysWarning {
    /// Others than the owner may read the private key.
    #[error("{path} can be read by others than its owner: chmod 600 {path}")]
    Exposed {
        /// The file.
        path: PathBuf,
    },
    /// The certificate ends soon.
    #[error("{path} expires in {days} days: renew it with `evertwin keys --renew`")]
    Expiring {
        /// The file.
        path: PathBuf,
        /// Whole days left.
        days: u64,
    },
}

impl Keys {
    /// Reads [`AUTHORITY_FILE`], [`CERTIFICATE_FILE`] and [`KEY_FILE`] in `directory`: the keys by which `node` knows
    /// `peer`, and what should be told about them.
    ///
    /// # Errors
    /// A file that is missing or malformed, a certificate that is not the node's own, has expired or is not from this
    /// CA, and a key of another certificate.
    pub fn load(
        directory: &Path,
        node: NodeId,
        peer: NodeId,
    ) -> Result<(Self, Vec<KeysWarning>), KeysError> {
        let files = Files::read(directory)?;
        let provider = Arc::new(provider());
        let mut warnings = Vec::new();
        if files.exposed {
            let path = directory.join(KEY_FILE);
            warnings.push(KeysWarning::Exposed { path });
        }
        let path = directory.join(CERTIFICATE_FILE);
        let own = files.own_certificate(node, provider.clone())?;
        if let Err(error) = own.check(UnixTime::now()) {
            let reason = own_fault(error);
            return Err(KeysError::Certificate { path, node, reason });
        }
        if let Some(days) = own.days_left() {
            warnings.push(KeysWarning::Expiring { path, days });
        }
        Ok((Self::unchecked(files, peer, provider)?, warnings))
    }

    /// The same, without a look at what the peer will see.
    pub(super) fn unchecked(
        files: Files,
        peer: NodeId,
        provider: Arc<CryptoProvider>,
    ) -> Result<Self, KeysError> {
        let peer = files.named(server_name(peer))?;
        let roots = files.roots()?;
        let chain = vec![files.certificate.clone()];

        let client = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13]);
        let client = files.named(client)?.with_root_certificates(roots.clone());
        let client = client.with_client_auth_cert(chain.clone(), files.key.clone_key());
        let mut client = files.named(client)?;
        // A link is made anew with a whole handshake: nothing of an old one is taken up again.
        client.resumption = Resumption::disabled();
        client.enable_sni = false;

        let clients = WebPkiClientVerifier::builder_with_provider(roots, provider.clone());
        let clients = PeerVerifier {
            chain: files.named(clients.build().map_err(general))?,
            peer: peer.clone(),
        };
        let server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13]);
        let server = files.named(server)?;
        let server = server.with_client_cert_verifier(Arc::new(clients));
        let mut server = files.named(server.with_single_cert(chain, files.key.clone_key()))?;
        server.send_tls13_tickets = 0;
        Ok(Self {
            peer,
            client: Arc::new(client),
            server: Arc::new(server),
        })
    }

    /// For a connection that this twin has dialed.
    pub(super) fn client(&self) -> Result<Session, TlsError> {
        Session::client(self.client.clone(), self.peer.clone())
    }

    /// For a connection that this twin has accepted.
    pub(super) fn server(&self) -> Result<Session, TlsError> {
        Session::server(self.server.clone())
    }
}

/// AES with short keys first: nothing is known to break it, and the link is to be fast.
pub(super) fn provider() -> CryptoProvider {
    use ring::cipher_suite::{
        TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
    };
    CryptoProvider {
        cipher_suites: vec![
            TLS13_AES_128_GCM_SHA256,
            TLS13_AES_256_GCM_SHA384,
            TLS13_CHACHA20_POLY1305_SHA256,
        ],
        ..ring::default_provider()
    }
}

fn server_name(node: NodeId) -> Result<ServerName<'static>, Error> {
    ServerName::try_from(certificate_name(node)).map_err(general)
}

fn general(error: impl ToString) -> Error {
    Error::General(error.to_string())
}

/// The files of a node, read.
pub(super) struct Files {
    directory: PathBuf,
    authority: CertificateDer<'static>,
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
    exposed: bool,
}

impl Files {
    pub(super) fn read(directory: &Path) -> Result<Self, KeysError> {
        let (authority, _) = read_pem(directory.join(AUTHORITY_FILE), "certificate")?;
        let (certificate, _) = read_pem(directory.join(CERTIFICATE_FILE), "certificate")?;
        let (key, mode) = read_pem(directory.join(KEY_FILE), "private key")?;
        Ok(Self {
            directory: directory.into(),
            authority,
            certificate,
            key,
            exposed: mode & 0o077 != 0,
        })
    }

    pub(super) fn roots(&self) -> Result<Arc<RootCertStore>, KeysError> {
        let mut roots = RootCertStore::empty();
        let added = roots.add(self.authority.clone());
        added.map_err(|_| KeysError::Malformed {
            path: self.directory.join(AUTHORITY_FILE),
            what: "certificate of a CA",
        })?;
        Ok(Arc::new(roots))
    }

    fn own_certificate(
        &self,
        node: NodeId,
        provider: Arc<CryptoProvider>,
    ) -> Result<OwnCertificate<'_>, KeysError> {
        let verifier = WebPkiServerVerifier::builder_with_provider(self.roots()?, provider);
        Ok(OwnCertificate {
            verifier: self.named(verifier.build().map_err(general))?,
            name: self.named(server_name(node))?,
            certificate: &self.certificate,
        })
    }

    /// Tells whose fault an error is.
    fn named<T>(&self, result: Result<T, Error>) -> Result<T, KeysError> {
        result.map_err(|error| match error {
            Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => KeysError::Mismatch {
                key: self.directory.join(KEY_FILE),
                certificate: self.directory.join(CERTIFICATE_FILE),
            },
            other => KeysError::Unusable {
                directory: self.directory.clone(),
                reason: other.to_string(),
            },
        })
    }
}

/// The first such item of a file, and the file's permissions.
fn read_pem<T: PemObject>(path: PathBuf, what: &'static str) -> Result<(T, u32), KeysError> {
    let read = || -> io::Result<(Vec<u8>, u32)> {
        let file = File::open(&path)?;
        let mode = file.metadata()?.permissions().mode();
        let mut bytes = Vec::new();
        file.take(MOST_BYTES).read_to_end(&mut bytes)?;
        Ok((bytes, mode))
    };
    let (bytes, mode) = match read() {
        Ok(read) => read,
        Err(source) => return Err(KeysError::Unreadable { path, source }),
    };
    match T::from_pem_slice(&bytes) {
        Ok(item) => Ok((item, mode)),
        Err(_) => Err(KeysError::Malformed { path, what }),
    }
}

/// This node's certificate as its peer will see it.
struct OwnCertificate<'a> {
    verifier: Arc<WebPkiServerVerifier>,
    name: ServerName<'static>,
    certificate: &'a CertificateDer<'static>,
}

impl OwnCertificate<'_> {
    fn check(&self, now: UnixTime) -> Result<(), Error> {
        let checked = self
            .verifier
            .verify_server_cert(self.certificate, &[], &self.name, &[], now);
        checked.map(drop)
    }

    /// Whole days until it ends, if these are few.
    fn days_left(&self) -> Option<u64> {
        let now = UnixTime::now().as_secs();
        let later = UnixTime::since_unix_epoch(Duration::from_secs(now) + WARN_BEFORE);
        match self.check(later) {
            Err(Error::InvalidCertificate(CertificateError::ExpiredContext {
                not_after, ..
            })) => Some(not_after.as_secs().saturating_sub(now) / (24 * 60 * 60)),
            _ => None,
        }
    }
}

/// What is wrong with this node's own certificate.
fn own_fault(error: Error) -> String {
    match TlsError::from(error) {
        TlsError::Authority => {
            format!("it is not from the CA in {AUTHORITY_FILE}: copy this node's files again")
        }
        TlsError::Name => "it names another node: give each host the keys of its own node".into(),
        TlsError::Expired => {
            "it has expired: check this host's clock, or renew it with `evertwin keys --renew`"
                .into()
        }
        other => other.to_string(),
    }
}
