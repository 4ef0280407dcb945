// SPDX-License-Identifier: Apache-2.0
//! Real authorities, made for the occasion, and what is read of their certificates.

use std::fs;
use std::time::Duration;

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, IsCa, Issuer, KeyPair, SanType, date_time_ymd,
};
use rustls::RootCertStore;
use rustls::pki_types::PrivateKeyDer;

use super::*;

/// An authority.
pub(crate) struct Authority {
    certificate: Certificate,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate that it issued, with its key.
pub(crate) struct Issued {
    certificate: Certificate,
    key: KeyPair,
    /// What leads from it up to an authority, as it is shown.
    above: Vec<CertificateDer<'static>>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("key");
        let certificate = params.self_signed(&key).expect("self-signed");
        let issuer = Issuer::new(params, key);
        Self { certificate, issuer }
    }

    /// A certificate with these URIs, and for `localhost`.
    pub(crate) fn issue(&self, uris: &[&str]) -> Issued {
        self.issue_with(uris, |_| {})
    }

    /// The same, of which the time has come.
    pub(crate) fn issue_expired(&self, uris: &[&str]) -> Issued {
        self.issue_with(uris, |params| {
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = date_time_ymd(2020, 1, 2);
        })
    }

    /// The same, for a while from now on.
    pub(crate) fn issue_for(&self, uris: &[&str], while_from_now: Duration) -> Issued {
        let since = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .expect("after 1970");
        self.issue_with(uris, |params| {
            params.not_after = date_time_ymd(1970, 1, 1) + since + while_from_now;
        })
    }

    /// An authority for a while, by this one.
    pub(crate) fn below(&self, while_from_now: Duration) -> Self {
        let since = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .expect("after 1970");
        self.below_with(|params| {
            params.not_after = date_time_ymd(1970, 1, 1) + since + while_from_now;
        })
    }

    /// The same, changed.
    pub(crate) fn below_with(&self, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        change(&mut params);
        let key = KeyPair::generate().expect("key");
        let certificate = params.signed_by(&key, &self.issuer).expect("signed");
        let issuer = Issuer::new(params, key);
        Self { certificate, issuer }
    }

    /// An authority by this one of which the time has come.
    pub(crate) fn ended(&self) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2020, 1, 2);
        let key = KeyPair::generate().expect("key");
        let certificate = params.signed_by(&key, &self.issuer).expect("signed");
        let issuer = Issuer::new(params, key);
        Self { certificate, issuer }
    }

    /// The same, changed.
    pub(crate) fn issue_with(&self, uris: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Issued {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).expect("name");
        let uris = uris
            .iter()
            .map(|uri| SanType::URI((*uri).try_into().expect("ASCII")));
        params.subject_alt_names.extend(uris);
        change(&mut params);
        let key = KeyPair::generate().expect("key");
        let certificate = params.signed_by(&key, &self.issuer).expect("signed");
        Issued {
            certificate,
            key,
            above: Vec::new(),
        }
    }

    pub(crate) fn pem(&self) -> String {
        self.certificate.pem()
    }

    /// A client that believes this authority and shows a certificate, or none.
    pub(crate) fn client(&self, shows: Option<&Issued>) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.der().clone()).expect("root");
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&version::TLS13])
            .expect("TLS 1.3")
            .with_root_certificates(roots);
        match shows {
            None => builder.with_no_client_auth(),
            Some(issued) => {
                let key = PrivateKeyDer::try_from(issued.key.serialize_der()).expect("key");
                let own = issued.certificate.der().clone();
                let chain = std::iter::once(own).chain(issued.above.iter().cloned()).collect();
                builder.with_client_auth_cert(chain, key).expect("certificate")
            }
        }
    }
}

impl Authority {
    /// Both ends of connections between agents that believe this authority and show a certificate.
    pub(crate) fn mutual(&self, shows: &Issued) -> Mutual {
        self.mutual_with(shows, &[])
    }

    /// The same, and others are believed as well.
    pub(crate) fn mutual_with(&self, shows: &Issued, also: &[&Self]) -> Mutual {
        self.mutual_showing(shows, &[], also)
    }

    /// The same, and certificates of others are shown as well.
    pub(crate) fn mutual_showing(&self, shows: &Issued, with: &[&Self], also: &[&Self]) -> Mutual {
        let mut roots = RootCertStore::empty();
        for authority in also.iter().copied().chain([self]) {
            roots.add(authority.certificate.der().clone()).expect("root");
        }
        let with = with.iter().map(|other| other.certificate.der().clone());
        let material = Material {
            chain: std::iter::once(shows.certificate.der().clone())
                .chain(with)
                .collect(),
            key: PrivateKeyDer::try_from(shows.key.serialize_der()).expect("key"),
            roots,
        };
        mutual(material, crate::peers::PROTOCOL).expect("usable")
    }
}

impl Issued {
    /// The certificate with its key.
    pub(crate) fn certified(&self) -> CertifiedKey {
        let chain = vec![self.certificate.der().clone()];
        certified(chain, &self.key.serialize_der()).expect("usable")
    }

    /// The same, shown with the certificate of an authority that is itself below another one.
    pub(crate) fn through(mut self, authority: &Authority) -> Self {
        self.above.push(authority.certificate.der().clone());
        self
    }

    /// The certificate and its key, PEM.
    pub(crate) fn pems(&self) -> (String, String) {
        (self.certificate.pem(), self.key.serialize_pem())
    }

    /// The certificate, as it is shown.
    pub(crate) fn der(&self) -> CertificateDer<'static> {
        self.certificate.der().clone()
    }

    /// The certificate with the key of another one.
    pub(crate) fn with_the_key_of(&self, other: &Self) -> CertifiedKey {
        let key = PrivateKeyDer::try_from(other.key.serialize_der()).expect("key");
        let key = provider().key_provider.load_private_key(key).expect("usable");
        CertifiedKey::new(vec![self.certificate.der().clone()], key)
    }

    /// Writes certificate and key where [`files`] says.
    pub(crate) fn write(&self, directory: &Path) {
        fs::write(directory.join("key.pem"), self.key.serialize_pem()).expect("write");
        fs::write(directory.join("cert.pem"), self.certificate.pem()).expect("write");
    }
}

/// Where the certificates of a server in `directory` are.
pub(crate) fn files(directory: &Path) -> Files {
    Files {
        cert: directory.join("cert.pem"),
        key: directory.join("key.pem"),
        client_ca: directory.join("ca.pem"),
    }
}

#[test]
fn a_certificate_names_one_workload_or_nobody() {
    let authority = Authority::new();
    let named = |uris: &[&str]| peer(authority.issue(uris).certificate.der());
    let id = "spiffe://hanzo.ai/ops/alice";
    assert_eq!(named(&[id]).expect("one").id.as_str(), id);
    assert_eq!(named(&[]), Err(IdentityError::NotOne(0)));
    assert_eq!(named(&[id, "spiffe://hanzo.ai/b"]), Err(IdentityError::NotOne(2)));
    assert_eq!(named(&[id, "https://hanzo.ai/b"]), Err(IdentityError::NotOne(2)));
    for uri in [
        "https://hanzo.ai/ops",
        "spiffe://hanzo.ai",
        "spiffe://hanzo.ai/a/../b",
    ] {
        assert!(matches!(named(&[uri]), Err(IdentityError::NotAnId(_))), "{uri}");
    }
    let nothing = CertificateDer::from(vec![1, 2, 3]);
    assert_eq!(peer(&nothing), Err(IdentityError::Unreadable));
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let directory = tempfile::tempdir().expect("tempdir");
    let files = files(directory.path());
    let said = || {
        let material = Material::read(&files).and_then(server);
        material.expect_err("unusable").to_string()
    };
    assert!(said().starts_with("api.tls.cert: ") && said().contains("cert.pem cannot be read"));
    let authority = Authority::new();
    authority.issue(&[]).write(directory.path());
    assert!(said().starts_with("api.tls.clientCa: "), "{}", said());
    fs::write(&files.client_ca, "no PEM\n").expect("write");
    assert!(said().ends_with("ca.pem has no certificate"), "{}", said());
    fs::write(&files.client_ca, authority.pem()).expect("write");
    let other = KeyPair::generate().expect("key").serialize_pem();
    fs::write(&files.key, &other).expect("write");
    assert!(
        said().starts_with("api.tls.cert with api.tls.key cannot be used"),
        "{}",
        said()
    );
    fs::write(&files.key, "-----BEGIN PRIVATE KEY-----\nAAAA\n").expect("write");
    assert!(
        said().contains("key.pem has no usable private key") && !said().contains("AAAA"),
        "{}",
        said()
    );
}

#[tokio::test]
async fn new_certificates_are_taken_and_bad_ones_left() {
    let directory = tempfile::tempdir().expect("tempdir");
    let files = files(directory.path());
    let authority = Authority::new();
    authority.issue(&[]).write(directory.path());
    fs::write(&files.client_ca, authority.pem()).expect("write");
    let (reloader, mut config) = Reloader::start(files.clone()).expect("usable");
    let running = tokio::spawn(reloader.run());
    let first = Arc::clone(&config.borrow_and_update());
    fs::write(&files.cert, "broken").expect("write");
    authority.issue(&[]).write(directory.path());
    let changed = tokio::time::timeout(Duration::from_secs(10), config.changed());
    changed.await.expect("in time").expect("running");
    assert!(!Arc::ptr_eq(&first, &config.borrow_and_update()));
    drop(config);
    let ended = tokio::time::timeout(Duration::from_secs(10), running).await;
    ended.expect("ends when nobody uses them").expect("no panic");
}

/// Unix seconds, so long from now on.
fn from_now(seconds: i64) -> i64 {
    let now = std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_secs();
    i64::try_from(now).expect("few") + seconds
}

#[test]
fn a_chain_ends_with_the_first_of_the_certificates_that_it_needs() {
    let authority = Authority::new();
    let below = authority.below(Duration::from_secs(100));
    let issued = below.issue(&["spiffe://hanzo.ai/w/chat"]);
    let mutual = authority.mutual(&authority.issue(&["spiffe://hanzo.ai/agent"]));
    let mut chain = vec![issued.certificate.der().clone(), below.certificate.der().clone()];
    let shown = mutual
        .believed(&chain, As::Client)
        .expect("it leads to the authority");
    assert_eq!((expires(&chain), expires(&[])), (shown.expires, 0));
    assert!(
        (from_now(0)..=from_now(100)).contains(&shown.expires),
        "{shown:?}"
    );
    assert!(peer(&chain[0]).expect("an SVID").expires > from_now(100));

    // What it does not need may have ended, or be nothing at all.
    chain.push(
        authority
            .issue_expired(&["spiffe://hanzo.ai/w/web"])
            .certificate
            .der()
            .clone(),
    );
    chain.push(authority.ended().certificate.der().clone());
    for shown_as in [As::Client, As::Server] {
        assert_eq!(mutual.believed(&chain, shown_as).expect("as before"), shown);
    }
    assert_eq!(*mutual.authorities().first().expect("one"), shown.authority);
}

#[test]
fn whoever_rests_on_an_authority_that_has_gone_is_not_believed_any_more() {
    let (authority, other) = (Authority::new(), Authority::new());
    let own = authority.issue(&["spiffe://hanzo.ai/agent"]);
    let chain = [other
        .issue(&["spiffe://hanzo.ai/w/chat"])
        .certificate
        .der()
        .clone()];
    let (both, one) = (authority.mutual_with(&own, &[&other]), authority.mutual(&own));
    for shown_as in [As::Client, As::Server] {
        let shown = both.believed(&chain, shown_as).expect("one of them");
        assert!(both.authorities().contains(&shown.authority));
        assert!(!one.authorities().contains(&shown.authority));
        assert!(one.believed(&chain, shown_as).is_err());
        assert!(both.believed(&[], shown_as).is_err());
    }
    assert!(one.authorities().is_subset(both.authorities()));
}
