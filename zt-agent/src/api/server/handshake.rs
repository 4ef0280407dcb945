// SPDX-License-Identifier: Apache-2.0
//! Who comes over TLS, and why others are refused.

use std::net::SocketAddr;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::{CertificateError, Error as RustlsError};
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
    pub config: watch::Receiver<Arc<tls::Server>>,
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
    /// Their certificate is no longer valid.
    Expired,
    /// Their certificate is not valid yet: a clock is wrong, here or there.
    NotYetValid,
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
            Self::NotYetValid => "not_yet_valid",
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
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => Self::Expired,
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                    Self::NotYetValid
                }
                CertificateError::Other(other) if other.0.is::<tls::IdentityError>() => Self::NoSpiffeId,
                _ => Self::Untrusted,
            },
            _ => Self::Handshake,
        }
    }
}

/// What somebody showed when they shook hands.
pub(super) struct Shown {
    id: SpiffeId,
    chain: Vec<CertificateDer<'static>>,
    peer: SocketAddr,
}

impl Tls {
    /// Shakes hands; `None` for somebody who is refused, which has been counted. Whom no entry of `api.callers` is about
    /// is answered all the same, with a problem that says so.
    pub(super) async fn accept(
        &self,
        stream: TcpStream,
        peer: SocketAddr,
    ) -> Option<(TlsStream<TcpStream>, Caller, Shown)> {
        let config = Arc::clone(&self.config.borrow().config);
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
        let shown = Shown {
            id: named.id,
            chain: shown.map_or_else(Vec::new, <[_]>::to_vec),
            peer,
        };
        Some((stream, caller, shown))
    }

    fn rights(&self, id: &SpiffeId) -> Rights {
        Rights::of(&self.callers.borrow().callers, id)
    }

    /// Completes when something else is said of a caller than what its connection began with, or when nobody who is
    /// trusted any more issued the certificate that it showed.
    pub(super) async fn changed(&self, shown: &Shown, rights: &Rights) {
        let (mut callers, mut config) = (self.callers.clone(), self.config.clone());
        callers.mark_unchanged();
        // A chain is checked when something changes: it held when it was shown.
        loop {
            if self.rights(&shown.id) != *rights {
                tracing::info!(caller = %shown.id, "the rights of a caller have changed: its connection ends");
                return;
            }
            tokio::select! {
                Ok(()) = callers.changed() => {}
                Ok(()) = config.changed() => {
                    let server = Arc::clone(&config.borrow_and_update());
                    if !server.believes(&shown.chain) {
                        self.refuse(Cause::Untrusted, shown.peer, "its issuer is not trusted any more");
                        tracing::info!(caller = %shown.id, "the certificate of a caller is not trusted any more: its connection ends");
                        return;
                    }
                }
                else => std::future::pending::<()>().await,
            }
        }
    }

    pub(super) fn refuse(&self, cause: Cause, peer: SocketAddr, why: &str) {
        self.metrics.api_refused(cause.name());
        tracing::debug!(%peer, cause = cause.name(), why, "a caller of the API is refused");
    }
}
