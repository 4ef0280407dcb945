// SPDX-License-Identifier: Apache-2.0
//! From what SPIRE answers to an identity: which of several SVIDs counts, and whether it can be believed.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use rustls::CertificateError;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::sign::CertifiedKey;
use sha2::{Digest as _, Sha256};
use spire_api::pb::spire::api::agent::delegatedidentity::v1::SubscribeToX509sviDsResponse;
use spire_api::pb::spire::api::types::X509svid;
use x509_parser::parse_x509_certificate;

use super::bundle::Bundle;
use super::lifecycle::{self, Outside};
use crate::spiffe_id::SpiffeId;
use crate::tls::{self, IdentityError};

/// The hint of the entry whose SVID counts where a workload has several.
pub const HINT: &str = "zt";
/// Most certificates of a chain. SPIRE sends one or two.
const LONGEST_CHAIN: usize = 16;

/// Why an SVID is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It has no certificate, or too many.
    #[error("the SVID has {0} certificates; at least 1 and at most {LONGEST_CHAIN} are looked at")]
    Chain(usize),
    /// A certificate of its chain cannot be read.
    #[error("a certificate of the SVID's chain cannot be read")]
    Unreadable,
    /// Its certificate does not name one workload.
    #[error("{0}")]
    Identity(#[from] IdentityError),
    /// It is of another trust domain.
    #[error("`{id}` is not in the trust domain `{domain}` (`trustDomain` in the configuration)")]
    TrustDomain {
        /// The identity.
        id: SpiffeId,
        /// This node's trust domain.
        domain: String,
    },
    /// SPIRE says another ID than the certificate.
    #[error("SPIRE calls it `{said}`, its certificate `{id}`")]
    Mismatch {
        /// The identity in the certificate.
        id: SpiffeId,
        /// What stands beside it.
        said: String,
    },
    /// It is no longer valid.
    #[error("the SVID of `{0}` has expired")]
    Expired(SpiffeId),
    /// Its chain does not lead to an authority of the bundle, or something else is wrong with it.
    #[error("the SVID of `{id}` does not verify against the bundle of its trust domain: {message}")]
    Untrusted {
        /// The identity.
        id: SpiffeId,
        /// What the verifier says.
        message: String,
    },
}

impl Refusal {
    /// The label in metrics.
    pub const fn cause(&self) -> &'static str {
        match self {
            Self::Chain(_) | Self::Unreadable => "unreadable",
            Self::Identity(_) | Self::Mismatch { .. } => "not_one_identity",
            Self::TrustDomain { .. } => "trust_domain",
            Self::Expired(_) => "expired",
            Self::Untrusted { .. } => "untrusted",
        }
    }
}

/// An SVID that was verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Svid {
    /// Whose it is.
    pub(super) id: SpiffeId,
    /// When it, or something that it rests on, ends to be valid; Unix seconds.
    pub(super) expires: i64,
    /// Tells one certificate from the next.
    pub(super) digest: [u8; 32],
    /// In what it is not as the specification wants SVIDs to be.
    pub(super) outside: Vec<Outside>,
}

/// What is kept of an answer.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    /// The SVID that counts.
    pub(super) svid: X509svid,
    /// What shows it to other nodes, where that is wanted.
    pub(super) shows: Option<Arc<CertifiedKey>>,
}

/// The SVID that counts: the first one with the hint [`HINT`], else the first one. SPIRE sends them in the order of their
/// entries' ids. It is in memory of its own: what came is one buffer with the private keys, and goes here. Its own key is
/// kept only where other nodes are to be shown it.
pub(super) fn kept(answer: SubscribeToX509sviDsResponse, shows: bool) -> Option<Kept> {
    let svids = answer.x509_svids.into_iter();
    let mut svids = svids.filter_map(|with| Some((with.x509_svid?, with.x509_svid_key)));
    let first = svids.next()?;
    let (mut svid, key) = if first.0.hint == HINT {
        first
    } else {
        svids.find(|(svid, _)| svid.hint == HINT).unwrap_or(first)
    };
    for der in &mut svid.cert_chain {
        *der = Bytes::copy_from_slice(der);
    }
    let chain = svid.cert_chain.iter().map(|der| der.to_vec().into());
    let certified = shows.then(|| tls::certified(chain.collect(), &key)).flatten();
    Some(Kept {
        shows: certified.map(Arc::new),
        svid,
    })
}

/// Whether an SVID can be believed at `now`, and whose it is.
pub(super) fn verify(
    svid: &X509svid,
    bundle: &Bundle,
    domain: &str,
    now: SystemTime,
) -> Result<Svid, Refusal> {
    let count = svid.cert_chain.len();
    if !(1..=LONGEST_CHAIN).contains(&count) {
        return Err(Refusal::Chain(count));
    }
    let chain: Vec<CertificateDer<'_>> = svid
        .cert_chain
        .iter()
        .map(|der| CertificateDer::from(&der[..]))
        .collect();
    let Some((leaf, intermediates)) = chain.split_first() else {
        return Err(Refusal::Chain(0));
    };
    let id = tls::peer(leaf)?.id;
    if id.trust_domain() != domain {
        return Err(Refusal::TrustDomain {
            id,
            domain: domain.to_owned(),
        });
    }
    if let Some(said) = &svid.id {
        let said = format!("spiffe://{}{}", said.trust_domain, said.path);
        if said != id.as_str() {
            return Err(Refusal::Mismatch { id, said });
        }
    }
    let since = now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let time = UnixTime::since_unix_epoch(since);
    let verified = bundle.verifier.verify_client_cert(leaf, intermediates, time);
    if let Err(error) = verified {
        return Err(match error {
            rustls::Error::InvalidCertificate(
                CertificateError::Expired | CertificateError::ExpiredContext { .. },
            ) => Refusal::Expired(id),
            error => Refusal::Untrusted {
                id,
                message: error.to_string(),
            },
        });
    }
    let parsed = chain
        .iter()
        .map(|der| parse_x509_certificate(der).map(|(_, parsed)| parsed));
    let parsed: Vec<_> = parsed
        .collect::<Result<_, _>>()
        .map_err(|_| Refusal::Unreadable)?;
    let ends = parsed.iter().map(|each| each.validity().not_after.timestamp());
    Ok(Svid {
        id,
        expires: ends.min().unwrap_or(i64::MAX),
        digest: Sha256::digest(leaf).into(),
        outside: lifecycle::outside(&parsed),
    })
}

#[cfg(test)]
mod tests {
    use spire_api::pb::spire::api::agent::delegatedidentity::v1::X509svidWithKey;

    use super::*;

    #[test]
    fn the_buffer_with_the_keys_is_not_kept() {
        let buffer = Bytes::from(b"chain and key".to_vec());
        let svid = X509svid {
            cert_chain: vec![buffer.slice(..5)],
            ..X509svid::default()
        };
        let answer = SubscribeToX509sviDsResponse {
            x509_svids: vec![X509svidWithKey {
                x509_svid: Some(svid),
                x509_svid_key: buffer.slice(10..),
            }],
            federates_with: Vec::new(),
        };
        let kept = kept(answer, false).expect("an SVID");
        assert_eq!(&kept.svid.cert_chain[0][..], b"chain");
        assert!(buffer.is_unique(), "nobody else has it");
    }
}
