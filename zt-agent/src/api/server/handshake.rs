// SPDX-License-Identifier: Apache-2.0
//! Who comes over TLS, and why others are refused.

use std::net::SocketAddr;
use std::sync::Arc;

use rustls::{CertificateError, Error as RustlsError, ServerConfig};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::api::Caller;
use crate::caller::Rights;
use crate::metrics::Metrics;
use crate::spiffe_id::SpiffeId;
use crate::state::Configured;
use crate::tls;

/// How connections from elsewhere are taken.
#[derive(Clone, Debug)]
pub struct Tls {
    /// The certificates in use.
    pub config: watch::Receiver<Arc<ServerConfig>>,
    /// Who may do what.
    pub callers: watch::Receiver<Arc<Configured>>,
    /// Where refusals are counted.
    pub metrics: Arc<Metrics>,
}

/// Why somebody is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// They showed no certificate.
    NoCertificate,
    /// Their certificate is no longer valid, or not yet.
    Expired,
    /// Nobody who is trusted issued it.
    Untrusted,
    /// It does not have exactly one SPIFFE ID.
    NoSpiffeId,
    /// No entry of `api.callers` is about them.
    NotACaller,
    /// They did not shake hands in time.
    Timeout,
    /// They speak something else, or broke off.
    Handshake,
}

impl Cause {
    /// The label of the metric.
    const fn name(self) -> &'static str {
        match self {
            Self::NoCertificate => "no_certificate",
            Self::Expired => "expired",
            Self::Untrusted => "untrusted",
            Self::NoSpiffeId => "no_spiffe_id",
            Self::NotACaller => "not_a_caller",
            Self::Timeout => "timeout",
            Self::Handshake => "handshake",
        }
    }

    fn of(error: &std::io::Error) -> Self {
        let inner = error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<RustlsError>());
        match inner {
            Some(RustlsError::NoCertificatesPresented) => Self::NoCertificate,
            Some(RustlsError::InvalidCertificate(error)) => match error {
                CertificateError::Expired
                | CertificateError::ExpiredContext { .. }
                | CertificateError::NotValidYet
                | CertificateError::NotValidYetContext { .. } => Self::Expired,
                CertificateError::Other(_) => Self::NoSpiffeId,
                _ => Self::Untrusted,
            },
            _ => Self::Handshake,
        }
    }
}

impl Tls {
    /// Shakes hands; `None` for somebody who is refused, which has been counted. Whom no entry of `api.callers` is about
    /// is answered all the same, with a problem that says so.
    pub(super) async fn accept(
        &self,
        stream: TcpStream,
        peer: SocketAddr,
    ) -> Option<(TlsStream<TcpStream>, Caller, SpiffeId)> {
        let config = Arc::clone(&self.config.borrow());
        let stream = match TlsAcceptor::from(config).accept(stream).await {
            Ok(stream) => stream,
            Err(error) => {
                self.refuse(Cause::of(&error), peer, &error.to_string());
                return None;
            }
        };
        let shown = stream.get_ref().1.peer_certificates();
        let Some(Ok(named)) = shown.and_then(|chain| chain.first()).map(tls::peer) else {
            // The verifier does not let it come to this.
            self.refuse(Cause::NoSpiffeId, peer, "the certificate names nobody");
            return None;
        };
        let rights = self.rights(&named.id);
        if rights.is_empty() {
            self.refuse(Cause::NotACaller, peer, named.id.as_str());
        }
        let caller = Caller::workload(&named, rights);
        Some((stream, caller, named.id))
    }

    fn rights(&self, id: &SpiffeId) -> Rights {
        Rights::of(&self.callers.borrow().callers, id)
    }

    /// Completes when something else is said of a caller than what its connection began with.
    pub(super) async fn changed(&self, id: &SpiffeId, rights: &Rights) {
        let mut callers = self.callers.clone();
        callers.mark_unchanged();
        while self.rights(id) == *rights {
            if callers.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    pub(super) fn refuse(&self, cause: Cause, peer: SocketAddr, why: &str) {
        self.metrics.api_refused(cause.name());
        tracing::debug!(%peer, cause = cause.name(), why, "a caller of the API is refused");
    }
}
