// SPDX-License-Identifier: Apache-2.0
//! TLS of the API: 1.3 only, X25519MLKEM768 first, with client certificates that bear one SPIFFE ID.
//!
//! aws-lc-rs is the one provider. Certificates are read anew when their files change; new ones that cannot be used leave
//! the old ones in place.

mod identity;
mod material;
mod mutual;
mod shown;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, OtherError, ServerConfig,
    SignatureScheme, version,
};
use tokio::sync::{mpsc, watch};

pub use identity::{IdentityError, Peer, expires, peer};
pub use material::{Material, TlsError, expires_in};
pub use mutual::{Mutual, certified, mutual};
pub use shown::{As, Authorities, NO_AUTHORITY, Shown, ShownError, sign, verify};

use crate::watch::Follower;

/// Where the certificates are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// The server's certificate and what leads up to the root, PEM.
    pub cert: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
    /// Who issues client certificates, PEM.
    pub client_ca: PathBuf,
}

/// The one provider of cryptography.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// What a server shows, and whom it believes.
#[derive(Debug)]
pub struct Server {
    /// For handshakes.
    pub config: Arc<ServerConfig>,
    /// Who says whether a client is believed; `None` where nobody is.
    clients: Option<Arc<SpiffeVerifier>>,
}

impl Server {
    /// Whether a client who showed that chain, its own certificate first, would be believed now.
    pub fn believes(&self, chain: &[CertificateDer<'_>]) -> bool {
        let (Some(clients), Some((own, others))) = (&self.clients, chain.split_first()) else {
            return false;
        };
        clients.verify_client_cert(own, others, UnixTime::now()).is_ok()
    }
}

/// A server with these certificates.
pub fn server(material: Material) -> Result<Server, TlsError> {
    let provider = provider();
    let unusable = |what| move |source: rustls::Error| TlsError::Unusable { what, source };
    let chain = WebPkiClientVerifier::builder_with_provider(Arc::new(material.roots), Arc::clone(&provider))
        .build()
        .map_err(|source| TlsError::Roots { source })?;
    let clients = Arc::new(SpiffeVerifier { chain });
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&version::TLS13])
        .map_err(unusable("TLS 1.3"))?
        .with_client_cert_verifier(Arc::clone(&clients) as Arc<dyn ClientCertVerifier>)
        .with_single_cert(material.chain, material.key)
        .map_err(unusable("api.tls.cert with api.tls.key"))?;
    // A resumed session would bring back a certificate that has expired since.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Server {
        config: Arc::new(config),
        clients: Some(clients),
    })
}

/// A server that has nothing to show.
fn without_certificate() -> Result<Server, TlsError> {
    let config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&version::TLS13])
        .map_err(|source| TlsError::Unusable {
            what: "TLS 1.3",
            source,
        })?;
    let config = config
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(NoCertificate));
    Ok(Server {
        config: Arc::new(config),
        clients: None,
    })
}

/// Has no certificate for anybody.
#[derive(Debug)]
struct NoCertificate;

impl ResolvesServerCert for NoCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        None
    }
}

/// What a client needs.
#[derive(Clone, Copy, Debug)]
pub struct ClientFiles<'a> {
    /// Its certificate, PEM.
    pub cert: &'a Path,
    /// Its private key, PEM.
    pub key: &'a Path,
    /// Who issues the server's certificate, PEM.
    pub ca: &'a Path,
}

/// The configuration of a client with these certificates.
pub fn client_config(files: &ClientFiles<'_>) -> Result<ClientConfig, TlsError> {
    let unusable = |what| move |source: rustls::Error| TlsError::Unusable { what, source };
    let chain = material::certificates("--tls-cert", files.cert)?;
    let key = material::key("--tls-key", files.key)?;
    ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&version::TLS13])
        .map_err(unusable("TLS 1.3"))?
        .with_root_certificates(material::roots("--tls-ca", files.ca)?)
        .with_client_auth_cert(chain, key)
        .map_err(unusable("--tls-cert with --tls-key"))
}

/// A chain that leads to a trusted root, and then exactly one SPIFFE ID.
#[derive(Debug)]
struct SpiffeVerifier {
    chain: Arc<dyn ClientCertVerifier>,
}

impl ClientCertVerifier for SpiffeVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.chain.verify_client_cert(end_entity, intermediates, now)?;
        peer(end_entity).map_err(|error| CertificateError::Other(OtherError(Arc::new(error))))?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls12_signature(message, cert, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls13_signature(message, cert, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// What is shown to other agents, and who of them is believed; nothing until there are certificates.
pub type Certificates = watch::Receiver<Arc<Option<Mutual>>>;

/// What is made of certificates.
type Make<T> = Box<dyn Fn(Material) -> Result<T, TlsError> + Send>;

/// Follows the files of certificates.
pub struct Reloader<T = Server> {
    files: Files,
    followers: Vec<Follower<material::Read>>,
    make: Make<T>,
    /// What they are for, as it stands in the log.
    what: &'static str,
    config: watch::Sender<Arc<T>>,
}

impl Reloader {
    /// Reads the certificates of a server and begins to watch their files. Must be called inside a tokio runtime.
    pub fn start(files: Files) -> Result<(Self, watch::Receiver<Arc<Server>>), TlsError> {
        Self::start_with(files, "the API", Box::new(server), Err)
    }

    /// The same for files that may be there later: until then every handshake fails.
    pub fn start_waiting(files: Files) -> Result<(Self, watch::Receiver<Arc<Server>>), TlsError> {
        Self::start_with(files, "the API", Box::new(server), |error| {
            tracing::warn!(%error, "the API has no certificate yet: nobody is served over TLS until it has one");
            without_certificate()
        })
    }
}

impl Reloader<Option<Mutual>> {
    /// The same for connections between agents, which speak `protocol`; nothing until there are certificates.
    pub fn start_mutual(files: Files, protocol: &'static [u8]) -> Result<(Self, Certificates), TlsError> {
        let make = move |material| mutual(material, protocol).map(Some);
        Self::start_with(files, "other agents", Box::new(make), |error| {
            tracing::warn!(%error, "there is no certificate yet: no other agent is spoken to until there is one");
            Ok(None)
        })
    }
}

impl<T> Reloader<T> {
    fn start_with(
        files: Files,
        what: &'static str,
        make: Make<T>,
        otherwise: impl FnOnce(TlsError) -> Result<T, TlsError>,
    ) -> Result<(Self, watch::Receiver<Arc<T>>), TlsError> {
        let followers = [&files.cert, &files.key, &files.client_ca].map(|path| {
            let all = files.clone();
            // Each looks at all three: whichever changes, the set that is on disk then is taken.
            Follower::new(path.clone(), move || material::Read::of(&all)).0
        });
        let read = Material::read(&files).and_then(&make);
        let config = read.or_else(otherwise)?;
        let (config, receiver) = watch::channel(Arc::new(config));
        let reloader = Self {
            files,
            followers: followers.into(),
            make,
            what,
            config,
        };
        Ok((reloader, receiver))
    }

    /// Takes new certificates into use until nobody uses them any more.
    pub async fn run(self) {
        let (sender, mut changes) = mpsc::channel(1);
        let mut tasks = tokio::task::JoinSet::new();
        for follower in self.followers {
            tasks.spawn(follower.run(sender.clone()));
        }
        drop(sender);
        loop {
            let change = tokio::select! {
                change = changes.recv() => change,
                () = self.config.closed() => return,
            };
            if change.is_none() {
                return;
            }
            match Material::read(&self.files).and_then(&self.make) {
                Ok(config) => {
                    tracing::info!(cert = %self.files.cert.display(), "new certificates for {} are in use", self.what);
                    self.config.send_replace(Arc::new(config));
                }
                // Certificate and key are replaced one after the other: the second change brings what fits.
                Err(error) => {
                    tracing::warn!(%error, "new certificates for {} cannot be used; the old ones stay", self.what);
                }
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
