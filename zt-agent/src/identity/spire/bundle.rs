// SPDX-License-Identifier: Apache-2.0
//! Whom SPIRE says to believe: the authorities of this node's trust domain.

use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use spire_api::pb::spire::api::agent::delegatedidentity::v1::SubscribeToX509BundlesResponse;
use x509_parser::parse_x509_certificate;

use crate::tls;

/// Most authorities of a bundle that are looked at. A trust domain has one or two at a time.
const MOST: usize = 64;

/// Why SPIRE's answer holds no bundle that could be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// The trust domain of this node is not in it.
    #[error("SPIRE knows no bundle of the trust domain `{0}`: `trustDomain` must be the SPIRE agent's")]
    Absent(String),
    /// It is there twice, under both of its names.
    #[error("SPIRE names the bundle of `{0}` twice")]
    Twice(String),
    /// Something in it is no certificate.
    #[error("the bundle of `{0}` cannot be read")]
    Unreadable(String),
    /// It has no authorities, or too many.
    #[error("the bundle of `{domain}` has {found} authorities; at least 1 and at most {MOST} are believed")]
    Number {
        /// The trust domain.
        domain: String,
        /// How many.
        found: usize,
    },
    /// No chain could be verified with it.
    #[error("the bundle of `{domain}` cannot be used: {message}")]
    Unusable {
        /// The trust domain.
        domain: String,
        /// What the verifier says.
        message: String,
    },
}

/// The authorities of one trust domain, ready to verify with.
#[derive(Clone, Debug)]
pub(super) struct Bundle {
    pub(super) verifier: Arc<dyn ClientCertVerifier>,
}

impl Bundle {
    /// The bundle of `domain` in an answer of SPIRE.
    pub(super) fn of(answer: &SubscribeToX509BundlesResponse, domain: &str) -> Result<Self, BundleError> {
        // The protocol has bare names, the SPIRE agent sends IDs.
        let id = format!("spiffe://{domain}");
        let bundles = &answer.ca_certificates;
        let der = match (bundles.get(&id), bundles.get(domain)) {
            (None, None) => return Err(BundleError::Absent(domain.to_owned())),
            (Some(_), Some(_)) => return Err(BundleError::Twice(domain.to_owned())),
            (Some(der), None) | (None, Some(der)) => der,
        };
        Self::from_der(der, domain)
    }

    /// Certificates in DER, one after the other.
    fn from_der(mut der: &[u8], domain: &str) -> Result<Self, BundleError> {
        let unusable = |message: String| BundleError::Unusable {
            domain: domain.to_owned(),
            message,
        };
        let mut roots = RootCertStore::empty();
        while !der.is_empty() && roots.len() <= MOST {
            let (rest, _) =
                parse_x509_certificate(der).map_err(|_| BundleError::Unreadable(domain.to_owned()))?;
            let one = der.get(..der.len() - rest.len()).unwrap_or_default();
            roots
                .add(CertificateDer::from(one))
                .map_err(|error| unusable(error.to_string()))?;
            der = rest;
        }
        if roots.is_empty() || roots.len() > MOST {
            return Err(BundleError::Number {
                domain: domain.to_owned(),
                found: roots.len(),
            });
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), tls::provider())
            .build()
            .map_err(|error| unusable(error.to_string()))?;
        Ok(Self { verifier })
    }
}
