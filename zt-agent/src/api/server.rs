// SPDX-License-Identifier: Apache-2.0
//! Listening, and serving connections within limits of time and number.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use super::Caller;

/// Connections at a time; more wait to be accepted.
const MAX_CONNECTIONS: usize = 512;
/// How long a client may take to send the head of a request, or to think of one.
const HEAD_TIME: Duration = Duration::from_secs(30);
/// How long requests under way may take to end when the agent stops.
const DRAIN_TIME: Duration = Duration::from_secs(5);
/// Most bytes of the head of a request.
const HEAD_BYTES: usize = 64 * 1024;

/// Why the API does not listen.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address can be reached from elsewhere.
    #[error(
        "api.listen: {address} is not a loopback address; beyond this machine the API would need TLS and callers that are known, which this version does not have: listen on 127.0.0.1 or [::1]"
    )]
    NotLoopback {
        /// The address.
        address: SocketAddr,
    },
    /// The address is taken, or not one of this machine.
    #[error("{field}: cannot listen on {address}: {source}")]
    Listen {
        /// The key of the configuration.
        field: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
}

/// A place that is listened at. Nothing is accepted before [`Endpoint::serve`].
#[derive(Debug)]
pub struct Endpoint {
    listener: TcpListener,
    address: SocketAddr,
}

/// Listens for the API, on loopback only.
pub async fn bind_api(address: SocketAddr) -> Result<Endpoint, ServeError> {
    if !address.ip().to_canonical().is_loopback() {
        return Err(ServeError::NotLoopback { address });
    }
    Endpoint::bind("api.listen", address).await
}

/// Listens for health and metrics.
pub async fn bind_health(address: SocketAddr) -> Result<Endpoint, ServeError> {
    Endpoint::bind("api.health", address).await
}

impl Endpoint {
    async fn bind(field: &'static str, address: SocketAddr) -> Result<Self, ServeError> {
        let failed = |source| ServeError::Listen {
            field,
            address,
            source,
        };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, address })
    }

    /// The address, with the port that was chosen for port 0.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stopping` turns true or its sender is gone, then lets requests under way end.
    pub async fn serve(self, router: Router, mut stopping: watch::Receiver<bool>) {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let graceful = GracefulShutdown::new();
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = accept(&self.listener, &places) => accepted,
                _ = stopping.wait_for(|stopping| *stopping) => break,
            };
            let (stream, peer, place) = accepted;
            let inner = TowerToHyperService::new(router.clone());
            let service = service_fn(move |mut request: Request<Incoming>| {
                request.extensions_mut().insert(Caller(peer));
                inner.call(request)
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIME)
                .max_buf_size(HEAD_BYTES)
                .serve_connection(TokioIo::new(stream), service);
            let connection = graceful.watch(connection);
            connections.spawn(async move {
                // Clients that break off or speak no HTTP are not this agent's errors.
                if let Err(error) = connection.await {
                    tracing::debug!(%error, %peer, "connection ended");
                }
                drop(place);
            });
            while connections.try_join_next().is_some() {}
        }
        drop(self.listener);
        if tokio::time::timeout(DRAIN_TIME, graceful.shutdown())
            .await
            .is_err()
        {
            tracing::warn!("some API requests did not end in time and are broken off");
        }
    }
}

/// The next connection, once there is a place for it.
async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> (TcpStream, SocketAddr, Option<tokio::sync::OwnedSemaphorePermit>) {
    // The semaphore is never closed.
    let place = Arc::clone(places).acquire_owned().await.ok();
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "cannot set TCP_NODELAY");
                }
                return (stream, peer, place);
            }
            Err(error) => {
                // Out of descriptors, mostly: trying again at once would only spin.
                tracing::warn!(%error, "cannot accept an API connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}
