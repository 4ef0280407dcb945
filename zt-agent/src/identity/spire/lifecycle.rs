// SPDX-License-Identifier: Apache-2.0
//! The life of certificates as HIP-54 wants it: an SVID for one hour, with a key on the curve P-256. One that is otherwise
//! is believed all the same, and told of: what is stolen with it is of use for longer, or weaker, than anybody meant.

use x509_parser::certificate::X509Certificate;

/// Longest validity of an SVID in seconds: an hour, and what SPIRE puts before it for clocks that are slow.
const LONGEST: i64 = 3600 + 60;
/// Object identifiers of a public key on an elliptic curve, and of the curve P-256 (RFC 5480).
const ELLIPTIC: &str = "1.2.840.10045.2.1";
const P256: &str = "1.2.840.10045.3.1.7";

/// In what an SVID is otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Outside {
    /// It is valid for longer.
    Lifetime,
    /// Its key is of another kind.
    Key,
}

impl Outside {
    /// All of them.
    pub(super) const ALL: [Self; 2] = [Self::Lifetime, Self::Key];

    /// The label in metrics.
    pub(super) const fn cause(self) -> &'static str {
        match self {
            Self::Lifetime => "lifetime",
            Self::Key => "key",
        }
    }

    /// What to do about it.
    pub(super) const fn remedy(self) -> &'static str {
        match self {
            Self::Lifetime => {
                "it is valid for more than an hour: set default_x509_svid_ttl of the SPIRE server, and the ttl of its entry, to 1h"
            }
            Self::Key => {
                "its key is not on P-256: set workload_x509_svid_key_type of the SPIRE agent to ec-p256"
            }
        }
    }
}

/// In what this certificate of a workload is otherwise.
pub(super) fn outside(certificate: &X509Certificate<'_>) -> Vec<Outside> {
    let validity = certificate.validity();
    let seconds = validity
        .not_after
        .timestamp()
        .saturating_sub(validity.not_before.timestamp());
    let algorithm = &certificate.public_key().algorithm;
    let curve = algorithm
        .parameters
        .as_ref()
        .and_then(|parameters| parameters.as_oid().ok());
    let p256 = algorithm.algorithm.to_id_string() == ELLIPTIC
        && curve.is_some_and(|curve| curve.to_id_string() == P256);
    let found = [(Outside::Lifetime, seconds > LONGEST), (Outside::Key, !p256)];
    found
        .into_iter()
        .filter_map(|(outside, is)| is.then_some(outside))
        .collect()
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519};
    use time::{Duration, OffsetDateTime};
    use x509_parser::parse_x509_certificate;

    use super::*;

    fn of(seconds: i64, algorithm: &'static rcgen::SignatureAlgorithm) -> Vec<Outside> {
        let key = KeyPair::generate_for(algorithm).expect("a key");
        let mut params = CertificateParams::default();
        params.not_before = OffsetDateTime::now_utc() - Duration::seconds(10);
        params.not_after = params.not_before + Duration::seconds(seconds);
        let certificate = params.self_signed(&key).expect("signed");
        let (_, parsed) = parse_x509_certificate(certificate.der()).expect("a certificate");
        outside(&parsed)
    }

    #[test]
    fn an_hour_and_p256_are_inside() {
        // SPIRE's own: ten seconds back, one hour on.
        assert_eq!(of(3610, &PKCS_ECDSA_P256_SHA256), []);
        assert_eq!(of(60, &PKCS_ECDSA_P256_SHA256), []);
        assert_eq!(of(2 * 3600, &PKCS_ECDSA_P256_SHA256), [Outside::Lifetime]);
        assert_eq!(of(3600, &PKCS_ECDSA_P384_SHA384), [Outside::Key]);
        assert_eq!(of(86_400, &PKCS_ED25519), Outside::ALL);
    }
}
