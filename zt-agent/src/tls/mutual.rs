// SPDX-License-Identifier: Apache-2.0
//! TLS between agents: both show a certificate, and are known by the SPIFFE ID in it, whatever the address is called.

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

use super::identity::peer;
use super::material::{Material, TlsError};
use super::shown::{self, As, Authorities, Shown, ShownError};
use super::{SpiffeVerifier, provider};

/// Both ends of connections between agents.
#[derive(Debug)]
pub struct Mutual {
    /// For who is called.
    pub server: Arc<ServerConfig>,
    /// For who calls.
    pub client: Arc<ClientConfig>,
    roots: Arc<RootCertStore>,
    authorities: Arc<Authorities>,
}

/// Connections with these certificates; `protocol` is what is spoken (ALPN).
pub fn mutual(material: Material, protocol: &[u8]) -> Result<Mutual, TlsError> {
    let unusable = |what| move |source: rustls::Error| TlsError::Unusable { what, source };
    let provider = provider();
    let roots = Arc::new(material.roots);
    let authorities = Arc::new(roots.roots.iter().map(shown::number).collect());
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
        roots: Arc::clone(&roots),
        chains,
    });
    let mut client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&version::TLS13])
        .map_err(unusable("TLS 1.3"))?
        .dangerous()
        .with_custom_certificate_verifier(servers as Arc<dyn ServerCertVerifier>)
        .with_client_auth_cert(material.chain, material.key)
        .map_err(unusable("api.tls.cert with api.tls.key"))?;
    client.resumption = Resumption::disabled();
    client.enable_sni = false;
    client.alpn_protocols = vec![protocol.to_vec()];
    Ok(Mutual {
        server: Arc::new(server),
        client: Arc::new(client),
        roots,
        authorities,
    })
}

impl Mutual {
    /// Whom a chain is about, its own certificate first, if who shows it is believed now.
    pub fn believed(&self, chain: &[CertificateDer<'_>], shown_as: As) -> Result<Shown, ShownError> {
        shown::believed(&self.roots, chain, shown_as, UnixTime::now())
    }

    /// The authorities that are believed.
    pub fn authorities(&self) -> &Arc<Authorities> {
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
