//! Security of the link: TLS 1.3, in which both twins show a certificate of the pair's own CA.
//!
//! The engine is rustls. It sees bytes only: the sockets are the driver's, and so are the buffers.

mod error;
mod keys;
mod peer;
mod session;
#[cfg(test)]
mod tests;

pub use error::TlsError;
pub use keys::{
    AUTHORITY_FILE, CERTIFICATE_FILE, KEY_FILE, Keys, KeysError, KeysWarning, certificate_name,
};
pub(crate) use session::Session;
#[cfg(test)]
pub(crate) use tests::pair as good_keys;

/// How the link to the peer is protected.
#[derive(Debug, Clone)]
pub enum Security {
    /// By TLS, with these keys.
    Tls(Keys),
    /// Not at all: only taken for an address on the loopback.
    Plaintext,
}

impl Security {
    /// The engine for a new connection, if it needs one.
    pub(crate) fn session(&self, dials: bool) -> Result<Option<Session>, TlsError> {
        match self {
            Self::Tls(keys) if dials => keys.client().map(Some),
            Self::Tls(keys) => keys.server().map(Some),
            Self::Plaintext => Ok(None),
        }
    }
}
