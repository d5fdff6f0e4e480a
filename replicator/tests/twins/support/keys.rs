//! A CA and what it signs, good or not.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    date_time_ymd,
};

/// A CA of its own.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new([]).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let certificate = params.self_signed(&key).expect("a certificate").pem();
        Self {
            issuer: Issuer::new(params, key),
            certificate,
        }
    }

    /// Writes the keys of a node into a directory.
    pub(crate) fn certify(&self, node: &str, directory: &Path) {
        self.certify_for(3650, node, directory);
    }

    /// The same, valid for so many days and an hour from now on.
    pub(crate) fn certify_for(&self, days: i64, node: &str, directory: &Path) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = now.expect("a clock that was set").as_secs();
        let left = days * 24 * 60 * 60 + 60 * 60;
        let end = Duration::from_secs(now.saturating_add_signed(left));
        let key = KeyPair::generate().expect("a key");
        let name = format!("{node}-node.evertwin");
        let mut params = CertificateParams::new([name]).expect("a valid name");
        params.not_before = date_time_ymd(1970, 1, 1);
        params.not_after = params.not_before + end;
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        std::fs::create_dir_all(directory).expect("a directory");
        for (name, text) in [
            ("ca.crt", &self.certificate),
            ("node.crt", &certificate.pem()),
            ("node.key", &key.serialize_pem()),
        ] {
            let mut options = std::fs::OpenOptions::new();
            options.write(true).create(true).truncate(true).mode(0o600);
            let mut file = options.open(directory.join(name)).expect("a new file");
            file.write_all(text.as_bytes()).expect("a few bytes");
        }
    }
}
