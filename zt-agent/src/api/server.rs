// SPDX-License-Identifier: Apache-2.0
//! Listening, and serving connections within limits of time and number.

mod bind;
mod handshake;
mod places;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::response::IntoResponse;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_io_timeout::TimeoutStream;

pub use self::bind::{Endpoint, ServeError, bind_api, bind_health, bind_socket};
use self::bind::{Listener, Stream};
pub use self::handshake::Tls;
use self::places::{Place, Places};
use super::Caller;
use super::guard::Guard;

/// How long a client may take to shake hands.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// How long requests under way may take to end when the agent stops.
const DRAIN_TIME: Duration = Duration::from_secs(5);
/// Most bytes of the head of a request.
const HEAD_BYTES: usize = 64 * 1024;

/// How much a listener bears.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at a time; one more closes the one that has been idle longest.
    pub connections: usize,
    /// How long a client may take to send the head of a request, or to think of one.
    pub head_time: Duration,
    /// How long a client may leave an answer unread.
    pub write_time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 512,
            head_time: Duration::from_secs(30),
            write_time: Duration::from_secs(30),
        }
    }
}

/// What all connections of a listener share.
#[derive(Clone)]
struct Shared {
    router: Router,
    guard: Option<Arc<Guard>>,
    limits: Limits,
}

impl Endpoint {
    /// Serves until `stopping` turns true or its sender is gone, then lets requests under way end. Without a guard
    /// everybody is served.
    pub async fn serve(self, router: Router, guard: Option<Arc<Guard>>, mut stopping: watch::Receiver<bool>) {
        let places = Places::new(self.limits.connections);
        let graceful = GracefulShutdown::new();
        let shared = Shared {
            router,
            guard,
            limits: self.limits,
        };
        let mut connections = JoinSet::new();
        loop {
            let stream = tokio::select! {
                stream = accept(&self.listener) => stream,
                _ = stopping.wait_for(|stopping| *stopping) => break,
            };
            // Nobody is idle: whoever comes last goes first.
            let Some(place) = places.take() else { continue };
            let (shared, tls, watcher) = (shared.clone(), self.tls.clone(), graceful.watcher());
            connections.spawn(connection(stream, tls, place, shared, watcher));
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

/// The next connection.
async fn accept(listener: &Listener) -> Stream {
    loop {
        match listener.accept().await {
            Ok(stream) => return stream,
            Err(error) => {
                // Out of descriptors, mostly: trying again at once would only spin.
                tracing::warn!(%error, "cannot accept an API connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// One connection, to its end.
async fn connection(stream: Stream, tls: Option<Tls>, place: Place, shared: Shared, watcher: Watcher) {
    let work = async {
        match (stream, tls) {
            (Stream::Unix(stream), _) => {
                let caller = match stream.peer_cred() {
                    Ok(peer) => Caller::process(peer.uid(), peer.pid()),
                    Err(error) => {
                        tracing::debug!(%error, "a process that cannot be named is not served");
                        return;
                    }
                };
                http(stream, caller, &place, shared, watcher).await;
            }
            (Stream::Tcp(stream, peer), None) => {
                http(stream, Caller::loopback(peer), &place, shared, watcher).await;
            }
            (Stream::Tcp(stream, peer), Some(tls)) => {
                let shaken = tokio::time::timeout(HANDSHAKE_TIME, tls.accept(stream, peer)).await;
                match shaken {
                    Ok(Some((stream, caller))) => http(stream, caller, &place, shared, watcher).await,
                    Ok(None) => {}
                    Err(_) => tls.refuse(handshake::Cause::Timeout, peer, "no handshake within 10 seconds"),
                }
            }
        }
    };
    tokio::select! {
        () = work => {}
        () = place.evicted() => {}
    }
}

async fn http<I>(stream: I, caller: Caller, place: &Place, shared: Shared, watcher: Watcher)
where
    I: AsyncRead + AsyncWrite + Send + 'static,
{
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(shared.limits.write_time));
    let inner = TowerToHyperService::new(shared.router);
    let guard = shared.guard.as_deref();
    let name = Arc::clone(&caller.name);
    let service = service_fn(|mut request: Request<Incoming>| {
        let admitted = guard.map_or(Ok(()), |guard| guard.check(&caller, &request));
        request.extensions_mut().insert(caller.clone());
        let answer = admitted.map(|()| inner.call(request));
        let busy = place.busy();
        async move {
            let _busy = busy;
            match answer {
                Ok(answer) => answer.await,
                Err(refused) => Ok(refused.into_response()),
            }
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(shared.limits.head_time)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(Box::pin(stream)), service);
    // Clients that break off or speak no HTTP are not this agent's errors.
    if let Err(error) = watcher.watch(connection).await {
        tracing::debug!(%error, caller = %name, "connection ended");
    }
}
