// SPDX-License-Identifier: Apache-2.0
//! Making a connection, and who is at its other end.

use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::{TlsConnector, TlsStream};

use super::PROTOCOL;
use super::pair::Shared;
use crate::identity::peers::Speaker;
use crate::tls::{As, Shown};

/// A connection to the right agent.
pub(super) struct Arrived {
    pub(super) stream: TlsStream<TcpStream>,
    /// When the first of the certificates ends that it is believed by, Unix seconds.
    pub(super) expires: i64,
}

/// Why an agent that was reached is not spoken to.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReachError {
    #[error("there is no certificate of this agent yet")]
    NoCertificate,
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("{0}")]
    Connect(std::io::Error),
    #[error("TLS: {0}")]
    Tls(std::io::Error),
    #[error("it is `{found}`; the agent there would be `{expected}`")]
    Another { found: String, expected: String },
    #[error("it does not speak `zt-peers/1`")]
    Protocol,
}

impl ReachError {
    /// The cause that it is counted under, where the other end was reached.
    pub(super) const fn cause(&self) -> Option<&'static str> {
        match self {
            Self::Another { .. } => Some("not_a_node"),
            Self::Protocol | Self::Tls(_) => Some("tls"),
            Self::NoCertificate | Self::Timeout(_) | Self::Connect(_) => None,
        }
    }
}

/// Makes a connection to the agent of a node.
pub(super) async fn dial(shared: &Shared, speaker: &Speaker) -> Result<Arrived, ReachError> {
    let patience = shared.settings.timing.handshake;
    let client = {
        let certificates = shared.certificates.borrow();
        let mutual = certificates.as_ref().as_ref().ok_or(ReachError::NoCertificate)?;
        Arc::clone(&mutual.client)
    };
    let dialled = async {
        let address = &*speaker.neighbour.address;
        let stream = TcpStream::connect(address).await.map_err(ReachError::Connect)?;
        // Without it the last of what is said waits for an acknowledgement.
        let _ = stream.set_nodelay(true);
        let nobody = ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into());
        let connected = TlsConnector::from(client).connect(nobody, stream).await;
        connected.map_err(ReachError::Tls)
    };
    let stream = timeout(patience, dialled)
        .await
        .map_err(|_| ReachError::Timeout(patience))??;
    is_the_agent(shared, TlsStream::from(stream), speaker)
}

/// Whether who is at the other end is the agent of that node.
fn is_the_agent(
    shared: &Shared,
    stream: TlsStream<TcpStream>,
    speaker: &Speaker,
) -> Result<Arrived, ReachError> {
    let shown = who_is(shared, &stream, As::Server)?;
    if shown.id != speaker.agent {
        return Err(ReachError::Another {
            found: shown.id.to_string(),
            expected: speaker.agent.to_string(),
        });
    }
    Ok(Arrived {
        stream,
        expires: shown.expires,
    })
}

/// Whose certificate the other end has shown, and when that ends.
pub(super) fn who_is(
    shared: &Shared,
    stream: &TlsStream<TcpStream>,
    shown_as: As,
) -> Result<Shown, ReachError> {
    let (_, session) = stream.get_ref();
    if session.alpn_protocol() != Some(PROTOCOL) {
        return Err(ReachError::Protocol);
    }
    let chain = session.peer_certificates().unwrap_or_default();
    let certificates = shared.certificates.borrow();
    let mutual = certificates.as_ref().as_ref().ok_or(ReachError::NoCertificate)?;
    let believed = mutual.believed(chain, shown_as);
    believed.map_err(|error| ReachError::Tls(std::io::Error::other(error)))
}
