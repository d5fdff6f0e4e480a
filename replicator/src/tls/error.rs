//! What can be wrong with a secured link, in words for people.

use rustls::{AlertDescription, CertificateError, Error};

/// Why a connection is not, or no longer, a secured link to the peer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TlsError {
    /// What listens or dials there is something else.
    #[error("the peer does not speak TLS: check the address and what listens there")]
    NotTls,
    /// A twin, but one without keys.
    #[error(
        "the peer speaks Evertwin's protocol in plaintext: give both twins keys (made by `evertwin keys`), or both plaintext = true"
    )]
    Plaintext,
    /// The peer shows no certificate at all.
    #[error("the peer shows no certificate: it needs keys made by `evertwin keys`")]
    NoCertificate,
    /// Signed by somebody else.
    #[error(
        "the peer's certificate is not from this pair's CA: make the keys of both nodes with one ca.key (`evertwin keys`), and copy them to the hosts again"
    )]
    Authority,
    /// Of this pair, but of another node.
    #[error(
        "the peer's certificate is not that of the node that is expected here: give each host the keys of its own node"
    )]
    Name,
    /// Its time is over.
    #[error(
        "the peer's certificate has expired: check the clocks of both hosts, or renew it with `evertwin keys --renew`"
    )]
    Expired,
    /// The peer does not take what this twin showed.
    #[error("the peer does not accept this twin: {0}")]
    Refused(&'static str),
    /// Bytes that the peer did not send like this.
    #[error("a record was changed on its way, or forged")]
    Forged,
    /// Anything else.
    #[error("TLS failed: {0}")]
    Other(String),
}

impl TlsError {
    /// A mistake of the set-up, which trying again does not mend.
    pub(crate) fn is_lasting(&self) -> bool {
        !matches!(self, Self::Forged | Self::Other(_))
    }

    pub(super) fn other(what: impl ToString) -> Self {
        Self::Other(what.to_string())
    }
}

impl From<Error> for TlsError {
    fn from(error: Error) -> Self {
        match error {
            Error::NoCertificatesPresented => Self::NoCertificate,
            Error::InvalidCertificate(error) => match error {
                CertificateError::UnknownIssuer | CertificateError::BadSignature => Self::Authority,
                CertificateError::NotValidForName
                | CertificateError::NotValidForNameContext { .. } => Self::Name,
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                    Self::Expired
                }
                other => Self::other(other),
            },
            Error::AlertReceived(alert) => match alert {
                AlertDescription::UnknownCA | AlertDescription::DecryptError => Self::Refused(
                    "its certificate is not from the peer's CA: make the keys of both nodes with one ca.key (`evertwin keys`), and copy them to the hosts again",
                ),
                AlertDescription::BadCertificate => Self::Refused(
                    "its certificate is not that of the node that the peer expects: give each host the keys of its own node",
                ),
                AlertDescription::CertificateExpired => Self::Refused(
                    "its certificate has expired: check the clocks of both hosts, or renew it with `evertwin keys --renew`",
                ),
                AlertDescription::CertificateRequired => {
                    Self::Refused("it shows no certificate: it needs keys made by `evertwin keys`")
                }
                other => Self::Other(format!("the peer broke off with the alert {other:?}")),
            },
            Error::DecryptError => Self::Forged,
            other => Self::other(other),
        }
    }
}
