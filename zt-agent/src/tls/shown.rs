// SPDX-License-Identifier: Apache-2.0
//! What is shown: a chain that leads to an authority, and that its key is there. Of the certificates that somebody shows only
//! those count that the chain needs; what else is among them changes nothing.

use std::collections::BTreeSet;

use rustls::pki_types::{CertificateDer, TrustAnchor, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, SignatureScheme};
use sha2::{Digest as _, Sha256};
use webpki::{EndEntityCert, KeyUsage};

use super::identity::{IdentityError, ends, peer};
use super::provider;
use crate::spiffe_id::SpiffeId;

/// Signature schemes that are made and taken, the best first.
const SCHEMES: [SignatureScheme; 6] = [
    SignatureScheme::ED25519,
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::ECDSA_NISTP384_SHA384,
    SignatureScheme::RSA_PSS_SHA256,
    SignatureScheme::RSA_PSS_SHA384,
    SignatureScheme::RSA_PSS_SHA512,
];

/// Why what somebody shows is not believed.
#[derive(Debug, thiserror::Error)]
pub enum ShownError {
    /// There is no certificate.
    #[error("it has no certificate")]
    Empty,
    /// The chain does not lead to an authority, or it has ended.
    #[error("its certificate is not believed: {0}")]
    Chain(webpki::Error),
    /// It is nobody's.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// It was not signed by the certificate's key.
    #[error("what it signed does not verify")]
    Signature,
    /// The key cannot sign.
    #[error("its key cannot sign: {0}")]
    Key(rustls::Error),
}

/// What somebody shows a chain as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum As {
    /// As who calls, or as who lives somewhere.
    Client,
    /// As who is called.
    Server,
}

/// The numbers of authorities.
pub type Authorities = BTreeSet<u64>;

/// The number of none: what no authority has vouched for.
pub const NO_AUTHORITY: u64 = 0;

/// Who has shown a chain, and what that rests on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// Whom the chain is about.
    pub id: SpiffeId,
    /// When the first of the certificates that it needs ends, Unix seconds.
    pub expires: i64,
    /// The number of the authority that it leads to, the same in all agents; never [`NO_AUTHORITY`].
    pub authority: u64,
}

/// The number of an authority: the first bytes of the SHA-256 of its name and key.
pub(super) fn number(anchor: &TrustAnchor<'_>) -> u64 {
    let mut digest = Sha256::new();
    digest.update(&anchor.subject);
    digest.update(&anchor.subject_public_key_info);
    let digest = digest.finalize();
    let number = digest.first_chunk().map_or(1, |bytes| u64::from_be_bytes(*bytes));
    number.max(1)
}

/// Whom a chain is about, its own certificate first, if it leads to one of `roots` at that time.
pub(super) fn believed(
    roots: &RootCertStore,
    chain: &[CertificateDer<'_>],
    shown_as: As,
    now: UnixTime,
) -> Result<Shown, ShownError> {
    let (own, others) = chain.split_first().ok_or(ShownError::Empty)?;
    let algorithms = provider().signature_verification_algorithms.all;
    let usage = match shown_as {
        As::Client => KeyUsage::client_auth(),
        As::Server => KeyUsage::server_auth(),
    };
    let parsed = EndEntityCert::try_from(own).map_err(ShownError::Chain)?;
    let path = parsed
        .verify_for_usage(algorithms, &roots.roots, others, now, usage, None, None)
        .map_err(ShownError::Chain)?;
    let needed = path
        .intermediate_certificates()
        .map(|certificate| ends(&certificate.der()));
    let peer = peer(own)?;
    Ok(Shown {
        expires: needed.fold(peer.expires, i64::min),
        authority: number(path.anchor()),
        id: peer.id,
    })
}

/// Signs `message` with the key of a certificate.
pub fn sign(with: &CertifiedKey, message: &[u8]) -> Result<(SignatureScheme, Vec<u8>), ShownError> {
    let no_scheme = || ShownError::Key(rustls::Error::General("it has no scheme of TLS 1.3".to_owned()));
    let signer = with.key.choose_scheme(&SCHEMES).ok_or_else(no_scheme)?;
    let signature = signer.sign(message).map_err(ShownError::Key)?;
    Ok((signer.scheme(), signature))
}

/// Whether the key of a certificate signed `message`.
pub fn verify(
    certificate: &CertificateDer<'_>,
    scheme: SignatureScheme,
    message: &[u8],
    signature: &[u8],
) -> Result<(), ShownError> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).map_err(|_| ShownError::Signature)?;
    let algorithms = provider().signature_verification_algorithms;
    let known = algorithms.mapping.iter();
    let mut known = known.filter(|(known, _)| *known == scheme && SCHEMES.contains(known));
    let algorithm = known.next().and_then(|(_, algorithms)| algorithms.first());
    let key = &parsed.tbs_certificate.subject_pki.subject_public_key.data;
    algorithm
        .and_then(|algorithm| algorithm.verify_signature(key, message, signature).ok())
        .ok_or(ShownError::Signature)
}
