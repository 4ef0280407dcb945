// SPDX-License-Identifier: Apache-2.0
//! The ways to an agent: plain HTTP on this machine, its Unix socket, TLS from elsewhere.

use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tower_service::Service;

/// How long reaching the agent may take.
const CONNECT_TIME: Duration = Duration::from_secs(5);

/// Where an agent is.
#[derive(Clone, Debug)]
pub(super) enum Way {
    /// Plain HTTP.
    Tcp,
    /// Its socket.
    Unix(PathBuf),
    /// Its socket, or plain HTTP where that cannot be opened.
    Local(PathBuf),
    /// TLS.
    Tls(Arc<ClientConfig>),
}

/// Opens connections to one agent.
#[derive(Clone, Debug)]
pub(super) struct Connector(pub(super) Way);

pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A connection of whichever kind.
pub(super) struct Io(TokioIo<Box<dyn Stream>>);

impl Service<Uri> for Connector {
    type Response = Io;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Io>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let way = self.0.clone();
        Box::pin(async move {
            let connecting = timeout(CONNECT_TIME, connect(way, uri));
            let stream = connecting
                .await
                .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
            Ok(Io(TokioIo::new(stream)))
        })
    }
}

async fn connect(way: Way, uri: Uri) -> io::Result<Box<dyn Stream>> {
    let config = match way {
        Way::Unix(path) => return Ok(Box::new(UnixStream::connect(path).await?)),
        Way::Local(path) => match UnixStream::connect(path).await {
            Ok(stream) => return Ok(Box::new(stream)),
            // Not there, left behind, or not for this user.
            Err(_) => None,
        },
        Way::Tcp => None,
        Way::Tls(config) => Some(config),
    };
    let host = uri.host().unwrap_or_default();
    let bare = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let port = uri.port_u16().unwrap_or(8054);
    let stream = TcpStream::connect((bare.as_str(), port)).await?;
    stream.set_nodelay(true)?;
    let Some(config) = config else {
        return Ok(Box::new(stream));
    };
    let name = ServerName::try_from(bare).map_err(io::Error::other)?;
    let stream = TlsConnector::from(config).connect(name, stream).await?;
    Ok(Box::new(stream))
}

impl Connection for Io {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Read for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl Write for Io {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
