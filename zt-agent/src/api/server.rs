// SPDX-License-Identifier: Apache-2.0
//! Listening, and serving connections within limits of time and number.

mod bind;
mod handshake;
mod places;
mod rest;
mod sent;
mod slow;

use std::convert::Infallible;
use std::error::Error as _;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Once};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_io_timeout::TimeoutStream;

pub use self::bind::{Endpoint, OwnerOf, ServeError, bind_api, bind_health, bind_socket};
use self::bind::{Listener, Stream};
pub use self::handshake::Tls;
use self::places::{Place, Places};
use self::rest::{Lender, asks_first, read_out};
use self::sent::{Sent, Watched};
pub(super) use self::slow::SlowBody;
use self::slow::{Timed, say_too_slow};
use super::guard::{Allowance, Guard};
use super::{ApiState, Caller, evaluate};

/// How long requests under way may take to end when the agent stops.
const DRAIN_TIME: Duration = Duration::from_secs(5);
/// Most bytes of the head of a request: its first line, its fields, and the empty line behind them.
pub(super) const HEAD_BYTES: usize = 64 * 1024;
/// Most fields in it, as hyper has it: another number would cost each request an allocation.
#[cfg(test)]
pub(super) const HEAD_FIELDS: usize = 100;

/// How much a listener bears.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at a time; one more closes the one that has been idle longest, or else the oldest one whose answer is
    /// still being sent.
    pub connections: usize,
    /// How long a client may take to shake hands, over TLS.
    pub handshake_time: Duration,
    /// How long a client may take to send the head of a request, or to think of one.
    pub head_time: Duration,
    /// How long a client may take to send the body of a request.
    pub body_time: Duration,
    /// How long a client may leave an answer unread.
    pub write_time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 512,
            handshake_time: Duration::from_secs(10),
            head_time: Duration::from_secs(30),
            body_time: Duration::from_secs(10),
            write_time: Duration::from_secs(30),
        }
    }
}

/// What a listener serves.
#[derive(Clone)]
pub struct Routes {
    router: Router,
    /// Evaluations are asked for by the ten thousands a second: they do not go through the router, which takes a fifth of
    /// the time of one.
    evaluations: Option<ApiState>,
}

impl Routes {
    /// The routes of a router, and evaluations with this state.
    pub(super) fn with_evaluations(router: Router, state: ApiState) -> Self {
        Self {
            router,
            evaluations: Some(state),
        }
    }
}

impl From<Router> for Routes {
    fn from(router: Router) -> Self {
        Self {
            router,
            evaluations: None,
        }
    }
}

/// What all connections of a listener share.
#[derive(Clone)]
struct Shared {
    routes: Routes,
    guard: Option<Arc<Guard>>,
    limits: Limits,
    owner_of: Option<OwnerOf>,
}

impl Endpoint {
    /// Serves until `stopping` turns true or its sender is gone, then lets requests under way end. Without a guard
    /// everybody is served.
    pub async fn serve(
        self,
        routes: impl Into<Routes>,
        guard: Option<Arc<Guard>>,
        mut stopping: watch::Receiver<bool>,
    ) {
        // Over TLS callers are told apart: none of them has more than half.
        let most = self.limits.connections;
        let most_of_one = if self.tls.is_some() {
            most.div_ceil(2)
        } else {
            most
        };
        let places = Places::new(most, most_of_one);
        let shared = Shared {
            routes: routes.into(),
            guard,
            limits: self.limits,
            owner_of: self.owner_of,
        };
        let mut connections = JoinSet::new();
        loop {
            let stream = tokio::select! {
                stream = accept(&self.listener) => stream,
                _ = stopping.wait_for(|stopping| *stopping) => break,
            };
            // Nobody is idle: whoever comes last goes first.
            let Some(place) = places.take() else { continue };
            let (shared, tls, stopping) = (shared.clone(), self.tls.clone(), stopping.clone());
            connections.spawn(connection(stream, tls, place, shared, stopping));
            while connections.try_join_next().is_some() {}
        }
        drop(self.listener);
        let ended = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN_TIME, ended).await.is_err() {
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
async fn connection(stream: Stream, tls: Option<Tls>, place: Place, shared: Shared, stopping: Stopping) {
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
                http(stream, caller, &place, shared, stopping).await;
            }
            (Stream::Tcp(stream, peer), None) => {
                let Some(caller) = over_tcp(&stream, peer, shared.owner_of) else {
                    count(&shared, "gone");
                    return;
                };
                http(stream, caller, &place, shared, stopping).await;
            }
            (Stream::Tcp(stream, peer), Some(tls)) => {
                let shaken =
                    tokio::time::timeout(shared.limits.handshake_time, tls.accept(stream, peer)).await;
                match shaken {
                    Ok(Some((stream, caller, shown))) => {
                        let rights = Arc::clone(&caller.rights);
                        tokio::select! {
                            () = http(stream, caller, &place, shared, stopping) => {}
                            // It comes again, with the rights that it has now; streams would go on for ever.
                            () = seldom(tls.changed(&shown, &rights)) => {}
                        }
                    }
                    Ok(None) => {}
                    Err(_) => tls.refuse(handshake::Cause::Timeout, peer, "no handshake in time"),
                }
            }
        }
    };
    tokio::select! {
        () = work => {}
        () = seldom(place.evicted()) => {}
    }
}

/// Who comes without TLS: over a loopback address, or to health at any; `None` for somebody who has closed before one could look,
/// and reads no answer.
fn over_tcp(stream: &TcpStream, peer: SocketAddr, owner_of: Option<OwnerOf>) -> Option<Caller> {
    let here = stream.local_addr();
    let Some(owner_of) = owner_of else {
        return Some(Caller {
            // Where one cannot look, it is taken for one.
            over_loopback: here.map_or(true, |here| here.ip().to_canonical().is_loopback()),
            ..Caller::loopback(peer, None)
        });
    };
    match here.and_then(|here| owner_of(peer, here)) {
        Ok(Some(uid)) => Some(Caller::loopback(peer, Some(uid))),
        Ok(None) => None,
        Err(error) => {
            static SAID: Once = Once::new();
            SAID.call_once(|| {
                tracing::warn!(
                    %error,
                    "the kernel does not say who connects over a loopback address: records have the address; use the socket"
                );
            });
            Some(Caller::loopback(peer, None))
        }
    }
}

/// Turns `true` when the agent stops.
type Stopping = watch::Receiver<bool>;

async fn http<I>(stream: I, caller: Caller, place: &Place, shared: Shared, mut stopping: Stopping)
where
    I: AsyncRead + AsyncWrite + Send + 'static,
{
    if !place.belongs_to(&caller.account) {
        count(&shared, "too_many_connections");
        tracing::debug!(caller = %caller.name, "a caller has more connections than half of all");
        return;
    }
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(shared.limits.write_time));
    let inner = TowerToHyperService::new(shared.routes.router.clone());
    let (guard, evaluations) = (shared.guard.as_ref(), shared.routes.evaluations.as_ref());
    let allowance = guard.map(|guard| Allowance {
        guard: Arc::clone(guard),
        account: Arc::clone(&caller.account),
    });
    let (caller, allowance, inner) = (&caller, allowance.as_ref(), &inner);
    let body_time = shared.limits.body_time;
    let service = service_fn(|request: Request<Incoming>| {
        let admitted = guard.map_or(Ok(()), |guard| guard.check(caller, &request));
        // Who asks whether to send it is told by the answer. Health takes no body, and has no guard: nobody holds a place there.
        let rest_wanted = guard.is_some() && !asks_first(request.headers());
        let request = request.map(|body| Timed::new(body, body_time));
        let busy = place.busy();
        async move {
            let answer = match (admitted, evaluations) {
                (Err(refused), _) => {
                    read_out(rest_wanted, request.into_body()).await;
                    refused.into_response()
                }
                (Ok(()), Some(state)) if evaluate::is_asked(&request) => {
                    let (head, mut body) = request.into_parts();
                    let answer = evaluate::answer(state, caller, allowance, &head.headers, &mut body).await;
                    read_out(rest_wanted, body).await;
                    answer.into_response()
                }
                _ => {
                    let lender = Lender::default();
                    let mut request = request.map(|body| Body::new(lender.lend(body)));
                    request.extensions_mut().insert(caller.clone());
                    if let Some(allowance) = allowance {
                        request.extensions_mut().insert(allowance.clone());
                    }
                    let Ok(answer) = inner.call(request).await;
                    if let Some(body) = lender.take() {
                        read_out(rest_wanted, body).await;
                    }
                    answer
                }
            };
            let leaving = evaluations.is_some_and(|state| state.readiness.borrow().leaving);
            let answer = if leaving { last_one(answer) } else { answer };
            if let Some(guard) = guard
                && answer.status() == StatusCode::REQUEST_TIMEOUT
            {
                guard.refused("slow_body");
            }
            Ok::<_, Infallible>(answer.map(|body| Sent::new(body, busy.answering())))
        }
    });
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(shared.limits.head_time)
        // The buffer alone is no limit: what is read at once may be more.
        .max_header_size(HEAD_BYTES)
        .max_buf_size(HEAD_BYTES)
        // One write of head and body together costs less than a gathering one: answers are short.
        .writev(false)
        .serve_connection(TokioIo::new(Box::pin(Watched::new(stream, place))), service);
    let ended = tokio::select! {
        ended = &mut connection => Some(ended),
        () = seldom(stopped(&mut stopping)) => None,
    };
    let ended = if let Some(ended) = ended {
        ended
    } else {
        // The request under way is answered, and no other.
        Pin::new(&mut connection).graceful_shutdown();
        (&mut connection).await
    };
    // Clients that break off or speak no HTTP are not this agent's errors.
    let Err(error) = ended else { return };
    tracing::debug!(%error, caller = %caller.name, "connection ended");
    if was_left_unread(&error) {
        count(&shared, "unread_answer");
        return;
    }
    if !error.is_timeout() {
        return;
    }
    let parts = connection.into_parts();
    // Who had not begun is only idle.
    if !parts.read_buf.is_empty() {
        count(&shared, "slow_head");
        say_too_slow(&mut parts.io.into_inner()).await;
    }
}

/// Whether a connection ended because its client did not read what it had asked for: a timeout of ours, not of the system's.
fn was_left_unread(error: &hyper::Error) -> bool {
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(cause) = cause.downcast_ref::<io::Error>() {
            return cause.kind() == io::ErrorKind::TimedOut && cause.raw_os_error().is_none();
        }
        source = cause.source();
    }
    false
}

/// The same answer, after which the client comes back over another connection, and so to another engine.
fn last_one(mut answer: Response) -> Response {
    let close = HeaderValue::from_static("close");
    answer.headers_mut().insert(header::CONNECTION, close);
    answer
}

/// Completes with `future`, which is polled when it was woken itself, and not whenever what is beside it was.
async fn seldom<T>(future: impl Future<Output = T>) -> T {
    let mut one: FuturesUnordered<_> = std::iter::once(future).collect();
    match one.next().await {
        Some(done) => done,
        // There is one, and it is taken once.
        None => std::future::pending().await,
    }
}

/// Completes when the agent stops.
async fn stopped(stopping: &mut Stopping) {
    // An error means that it has stopped already.
    let _ = stopping.wait_for(|stopping| *stopping).await;
}

/// Counts somebody who was refused, where there is a guard that counts.
fn count(shared: &Shared, cause: &'static str) {
    if let Some(guard) = &shared.guard {
        guard.refused(cause);
    }
}
