// SPDX-License-Identifier: Apache-2.0
//! TLS between agents: both show a certificate, and are known by the SPIFFE ID in it, whatever the address is called.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore, ServerConfig,
    SignatureScheme, version,
};

use super::identity::{Peer, expires, peer};
use super::material::{Material, TlsError};
use super::{SpiffeVerifier, provider};

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
    Chain(rustls::Error),
    /// It was not signed by the certificate's key.
    #[error("what it signed does not verify")]
    Signature,
    /// The key cannot sign.
    #[error("its key cannot sign: {0}")]
    Key(rustls::Error),
}

/// Both ends of connections between agents.
#[derive(Debug)]
pub struct Mutual {
    /// For who is called.
    pub server: Arc<ServerConfig>,
    /// For who calls.
    pub client: Arc<ClientConfig>,
    chains: Arc<SpiffeVerifier>,
    servers: Arc<Servers>,
    authorities: Arc<BTreeSet<Vec<u8>>>,
}

/// Connections with these certificates; `protocol` is what is spoken (ALPN).
pub fn mutual(material: Material, protocol: &[u8]) -> Result<Mutual, TlsError> {
    let unusable = |what| move |source: rustls::Error| TlsError::Unusable { what, source };
    let provider = provider();
    let roots = Arc::new(material.roots);
    let anchors = roots.roots.iter();
    let authorities = anchors.map(|anchor| [&*anchor.subject, &*anchor.subject_public_key_info].concat());
    let authorities = Arc::new(authorities.collect());
    let chain = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
        .build()
        .map_err(|source| TlsError::Roots { source })?;
    let chains = Arc::new(SpiffeVerifier { chain });
    let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&version::TLS13])
        .map_err(unusable("TLS 1.3"))?
        .with_client_cert_verifier(Arc::clone(&chains) as Arc<dyn ClientCertVerifier>)
        .with_single_cert(material.chain.clone(), material.key.clone_key())
        .map_err(unusable("api.tls.cert with api.tls.key"))?;
    // Keys of pairs of nodes come from the connection: each has secrets of its own, and shows its certificate.
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.send_tls13_tickets = 0;
    server.alpn_protocols = vec![protocol.to_vec()];
    let servers = Arc::new(Servers {
        roots,
        chains: Arc::clone(&chains),
    });
    let mut client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&version::TLS13])
        .map_err(unusable("TLS 1.3"))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&servers) as Arc<dyn ServerCertVerifier>)
        .with_client_auth_cert(material.chain, material.key)
        .map_err(unusable("api.tls.cert with api.tls.key"))?;
    client.resumption = Resumption::disabled();
    client.enable_sni = false;
    client.alpn_protocols = vec![protocol.to_vec()];
    Ok(Mutual {
        server: Arc::new(server),
        client: Arc::new(client),
        chains,
        servers,
        authorities,
    })
}

impl Mutual {
    /// Whom a chain is about, its own certificate first, if it is believed now.
    pub fn believed(&self, chain: &[CertificateDer<'_>]) -> Result<Peer, ShownError> {
        let (own, others) = chain.split_first().ok_or(ShownError::Empty)?;
        self.chains
            .verify_client_cert(own, others, UnixTime::now())
            .map_err(ShownError::Chain)?;
        let peer = peer(own).map_err(|error| {
            ShownError::Chain(CertificateError::Other(OtherError(Arc::new(error))).into())
        })?;
        Ok(Peer {
            expires: expires(chain),
            ..peer
        })
    }

    /// Whether the other end of a connection, with the chain that it showed, would be taken now.
    pub fn still_believed(&self, chain: &[CertificateDer<'_>], is_server: bool) -> Result<(), ShownError> {
        let (own, others) = chain.split_first().ok_or(ShownError::Empty)?;
        let (now, nobody) = (
            UnixTime::now(),
            ServerName::IpAddress(Ipv4Addr::UNSPECIFIED.into()),
        );
        let believed = if is_server {
            let believed = self.servers.verify_server_cert(own, others, &nobody, &[], now);
            believed.map(drop)
        } else {
            self.chains.verify_client_cert(own, others, now).map(drop)
        };
        believed.map_err(ShownError::Chain)
    }

    /// The authorities that are believed, each by its name and key.
    pub fn authorities(&self) -> &Arc<BTreeSet<Vec<u8>>> {
        &self.authorities
    }
}

/// A certificate with its key (PKCS#8); `None` where they cannot be used.
pub fn certified(chain: Vec<CertificateDer<'static>>, key: &[u8]) -> Option<CertifiedKey> {
    let key = PrivateKeyDer::Pkcs8(key.to_vec().into());
    let key = provider().key_provider.load_private_key(key).ok()?;
    let certified = CertifiedKey::new(chain, key);
    certified.keys_match().is_ok().then_some(certified)
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

/// A server is known by its SPIFFE ID, so no name is looked for.
#[derive(Debug)]
struct Servers {
    roots: Arc<RootCertStore>,
    chains: Arc<SpiffeVerifier>,
}

impl ServerCertVerifier for Servers {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        let algorithms = provider().signature_verification_algorithms;
        rustls::client::verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &self.roots,
            intermediates,
            now,
            algorithms.all,
        )?;
        peer(end_entity).map_err(|error| CertificateError::Other(OtherError(Arc::new(error))))?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chains.verify_tls12_signature(message, cert, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chains.verify_tls13_signature(message, cert, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chains.supported_verify_schemes()
    }
}
