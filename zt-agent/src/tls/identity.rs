// SPDX-License-Identifier: Apache-2.0
//! Who a certificate is about (X.509-SVID, section 2: exactly one URI, and that is the SPIFFE ID).

use rustls::pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::parse_x509_certificate;

use crate::spiffe_id::SpiffeId;

/// Why a certificate names nobody.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// It cannot be read.
    #[error("the certificate cannot be read")]
    Unreadable,
    /// It has no URI, or several.
    #[error("the certificate has {0} URIs; an SVID has one, its SPIFFE ID")]
    NotOne(usize),
    /// Its URI is no SPIFFE ID of a workload.
    #[error("the certificate's URI is not the SPIFFE ID of a workload: {0}")]
    NotAnId(String),
}

/// Whom a certificate is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its SPIFFE ID.
    pub id: SpiffeId,
    /// When it ends to be valid, Unix seconds.
    pub expires: i64,
}

/// When a certificate ends, Unix seconds; one that cannot be read is over.
pub(super) fn ends(certificate: &CertificateDer<'_>) -> i64 {
    parse_x509_certificate(certificate).map_or(0, |(_, parsed)| parsed.validity().not_after.timestamp())
}

/// When the first of the certificates of a chain ends, Unix seconds; without any it is over.
pub fn expires(chain: &[CertificateDer<'_>]) -> i64 {
    chain.iter().map(ends).min().unwrap_or(0)
}

/// Whom a certificate is about. Whether it can be trusted is another question.
pub fn peer(certificate: &CertificateDer<'_>) -> Result<Peer, IdentityError> {
    let (_, parsed) = parse_x509_certificate(certificate).map_err(|_| IdentityError::Unreadable)?;
    let names = parsed
        .subject_alternative_name()
        .map_err(|_| IdentityError::Unreadable)?;
    let uris: Vec<&str> = names
        .iter()
        .flat_map(|names| &names.value.general_names)
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        })
        .collect();
    let [uri] = uris[..] else {
        return Err(IdentityError::NotOne(uris.len()));
    };
    let id = SpiffeId::parse(uri).map_err(|error| IdentityError::NotAnId(error.to_string()))?;
    if id.path().is_empty() {
        return Err(IdentityError::NotAnId("it names a trust domain".to_owned()));
    }
    let expires = parsed.validity().not_after.timestamp();
    Ok(Peer { id, expires })
}
