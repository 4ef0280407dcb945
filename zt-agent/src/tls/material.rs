// SPDX-License-Identifier: Apache-2.0
//! Certificates and keys as they are on disk.

use std::fs;
use std::hash::{Hash, Hasher};
use std::io;
use std::path::Path;

use rustls::RootCertStore;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::Files;

/// Most bytes of one of the files.
const MAX_BYTES: u64 = 1 << 20;

/// Why certificates cannot be used. Nothing of a key is ever part of the words.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{field}: {file} cannot be read: {source}")]
    Read {
        /// The key of the configuration.
        field: &'static str,
        /// The file.
        file: String,
        /// The system's answer.
        source: io::Error,
    },
    /// A file is not what it should be.
    #[error("{field}: {file} has no usable {what}: {source}")]
    Pem {
        /// The key of the configuration.
        field: &'static str,
        /// The file.
        file: String,
        /// What was looked for.
        what: &'static str,
        /// What the reader says.
        source: pem::Error,
    },
    /// A file holds nothing of that kind.
    #[error("{field}: {file} has no certificate")]
    Empty {
        /// The key of the configuration.
        field: &'static str,
        /// The file.
        file: String,
    },
    /// The root certificates cannot be used.
    #[error("api.tls.clientCa: {source}")]
    Roots {
        /// What the verifier says.
        source: rustls::server::VerifierBuilderError,
    },
    /// They do not go together, or not with TLS 1.3.
    #[error("{what} cannot be used: {source}")]
    Unusable {
        /// What.
        what: &'static str,
        /// What the TLS library says.
        source: rustls::Error,
    },
}

/// What a server or a client shows, and whom it believes.
pub struct Material {
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: PrivateKeyDer<'static>,
    pub(super) roots: RootCertStore,
}

impl Material {
    /// Reads the files of a server.
    pub fn read(files: &Files) -> Result<Self, TlsError> {
        Ok(Self {
            chain: certificates("api.tls.cert", &files.cert)?,
            key: key("api.tls.key", &files.key)?,
            roots: roots("api.tls.clientCa", &files.client_ca)?,
        })
    }
}

/// When the first of the certificates in a file ends, Unix seconds.
pub fn expires_in(path: &Path) -> Result<i64, TlsError> {
    Ok(super::expires(&certificates("api.tls", path)?))
}

/// The certificates in a file.
pub(crate) fn certificates(
    field: &'static str,
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let file = path.display().to_string();
    let bytes = bytes(field, path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match found {
        Ok(found) if found.is_empty() => Err(TlsError::Empty { field, file }),
        Ok(found) => Ok(found),
        Err(source) => Err(TlsError::Pem {
            field,
            file,
            what: "certificate",
            source,
        }),
    }
}

/// The private key in a file.
pub(crate) fn key(field: &'static str, path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(&bytes(field, path)?).map_err(|source| TlsError::Pem {
        field,
        file: path.display().to_string(),
        what: "private key",
        source,
    })
}

/// The root certificates in a file.
pub(crate) fn roots(field: &'static str, path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(field, path)? {
        roots
            .add(certificate)
            .map_err(|source| TlsError::Unusable { what: field, source })?;
    }
    Ok(roots)
}

fn bytes(field: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    let failed = |source| TlsError::Read {
        field,
        file: path.display().to_string(),
        source,
    };
    let metadata = fs::metadata(path).map_err(failed)?;
    if !metadata.is_file() || metadata.len() > MAX_BYTES {
        let why = "is not a regular file of at most 1 MiB";
        return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, why)));
    }
    fs::read(path).map_err(failed)
}

/// What three files hold, only to be compared.
pub(super) struct Read([Option<Vec<u8>>; 3]);

impl Read {
    pub(super) fn of(files: &Files) -> Self {
        Self([&files.cert, &files.key, &files.client_ca].map(|path| bytes("", path).ok()))
    }
}

impl Hash for Read {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}
