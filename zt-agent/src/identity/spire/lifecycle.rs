// SPDX-License-Identifier: Apache-2.0
//! The life of certificates as HIP-54 wants it: an SVID for one hour, the authority that signed it for a day, with keys on the
//! curve P-256. One that is otherwise is believed all the same, and told of: what is stolen with it is of use for longer, or
//! weaker, than anybody meant.

use x509_parser::certificate::X509Certificate;

/// Longest validity of an SVID in seconds: an hour, and what SPIRE puts before it for clocks that are slow.
const LONGEST: i64 = 3600 + 60;
/// That of an authority: a day, and the same.
const LONGEST_AUTHORITY: i64 = 24 * 3600 + 60;
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
    /// An authority between it and the root is valid for longer.
    AuthorityLifetime,
    /// The key of such an authority is of another kind.
    AuthorityKey,
}

impl Outside {
    /// All of them.
    pub(super) const ALL: [Self; 4] = [
        Self::Lifetime,
        Self::Key,
        Self::AuthorityLifetime,
        Self::AuthorityKey,
    ];

    /// The label in metrics.
    pub(super) const fn cause(self) -> &'static str {
        match self {
            Self::Lifetime => "lifetime",
            Self::Key => "key",
            Self::AuthorityLifetime => "authority_lifetime",
            Self::AuthorityKey => "authority_key",
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
            Self::AuthorityLifetime => {
                "an authority that it rests on is valid for more than a day: set ca_ttl of the SPIRE server to 24h"
            }
            Self::AuthorityKey => {
                "the key of an authority that it rests on is not on P-256: set ca_key_type of the SPIRE server to ec-p256"
            }
        }
    }
}

/// In what a chain is otherwise: the workload's own certificate, and then the authorities that it rests on. A root may be
/// among them; it is renewed by hand, and neither is looked at.
pub(super) fn outside(chain: &[X509Certificate<'_>]) -> Vec<Outside> {
    let Some((own, authorities)) = chain.split_first() else {
        return Vec::new();
    };
    let (lifetime, key) = otherwise(own, LONGEST);
    let authorities = authorities.iter().filter(|each| each.subject() != each.issuer());
    let (authority_lifetime, authority_key) = authorities
        .map(|authority| otherwise(authority, LONGEST_AUTHORITY))
        .fold((false, false), |all, each| (all.0 | each.0, all.1 | each.1));
    let found = [lifetime, key, authority_lifetime, authority_key];
    let all = Outside::ALL.into_iter().zip(found);
    all.filter_map(|(outside, is)| is.then_some(outside)).collect()
}

/// Whether a certificate is valid for longer than so many seconds, and whether its key is of another kind.
fn otherwise(certificate: &X509Certificate<'_>, longest: i64) -> (bool, bool) {
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
    (seconds > longest, !p256)
}

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, PKCS_ECDSA_P256_SHA256,
        PKCS_ECDSA_P384_SHA384, PKCS_ED25519, SignatureAlgorithm,
    };
    use time::{Duration, OffsetDateTime};
    use x509_parser::parse_x509_certificate;

    use super::*;

    const DAY: i64 = 86_400;

    fn params(name: &str, seconds: i64) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_before = OffsetDateTime::now_utc() - Duration::seconds(10);
        params.not_after = params.not_before + Duration::seconds(seconds);
        params
    }

    /// In what a chain is otherwise: of a workload, and of an authority between it and a root that is there for a year.
    fn of(
        own: (i64, &'static SignatureAlgorithm),
        authority: (i64, &'static SignatureAlgorithm),
    ) -> Vec<Outside> {
        let key = |algorithm| KeyPair::generate_for(algorithm).expect("a key");
        let ca = |name, seconds| {
            let mut params = params(name, seconds);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params
        };
        let (root_key, root) = (key(&PKCS_ECDSA_P384_SHA384), ca("root", 365 * DAY));
        let root_der = root.self_signed(&root_key).expect("signed");
        let root = Issuer::new(root, root_key);
        let (between_key, between) = (key(authority.1), ca("between", authority.0));
        let between_der = between.signed_by(&between_key, &root).expect("signed");
        let between = Issuer::new(between, between_key);
        let own_der = params("own", own.0)
            .signed_by(&key(own.1), &between)
            .expect("signed");
        let chain = [own_der.der(), between_der.der(), root_der.der()];
        let chain = chain.map(|der| parse_x509_certificate(der).expect("a certificate").1);
        outside(&chain)
    }

    #[test]
    fn an_hour_a_day_and_p256_are_inside() {
        // SPIRE's own: ten seconds back, and one hour or one day on.
        let (p256, p384) = (&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384);
        let good = (DAY + 10, p256);
        assert_eq!(of((3610, p256), good), []);
        assert_eq!(of((60, p256), good), []);
        assert_eq!(of((2 * 3600, p256), good), [Outside::Lifetime]);
        assert_eq!(of((3600, p384), good), [Outside::Key]);
        assert_eq!(of((3600, p256), (2 * DAY, p256)), [Outside::AuthorityLifetime]);
        assert_eq!(of((3600, p256), (DAY, p384)), [Outside::AuthorityKey]);
        assert_eq!(of((DAY, &PKCS_ED25519), (2 * DAY, p384)), Outside::ALL);
    }
}
