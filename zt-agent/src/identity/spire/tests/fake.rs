// SPDX-License-Identifier: Apache-2.0
//! A fake SPIRE agent: the real messages of the Delegated Identity API on a real socket, from a script. It says what a
//! real one never would.

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use futures::stream::{self, BoxStream, StreamExt as _};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use spire_api::pb::spire::api::agent::delegatedidentity::v1::{
    SubscribeToX509BundlesRequest, SubscribeToX509BundlesResponse, SubscribeToX509sviDsRequest,
    SubscribeToX509sviDsResponse, X509svidWithKey,
};
use spire_api::pb::spire::api::types::{Spiffeid, X509svid};
use time::{Duration, OffsetDateTime};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::{Grpc, NamedService};
use tonic::transport::Server;
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

type Svids = SubscribeToX509sviDsResponse;
type Bundles = SubscribeToX509BundlesResponse;

/// What the fake does when it is asked about a workload.
#[derive(Clone, Debug)]
pub(super) enum Answer {
    /// Says this, and goes on listening.
    Say(Svids),
    /// Says this, and ends the stream.
    SayAndClose(Svids),
    /// Says this again and again, without end.
    Flood(Svids),
    /// Says the first to so many who ask, and the second to those after them.
    Stumble(Arc<AtomicUsize>, Svids, Svids),
    /// Refuses.
    Refuse(tonic::Code, &'static str),
    /// Says nothing, ever.
    Silence,
}

/// What the fake goes by. Changing it is an update.
#[derive(Clone, Debug)]
pub(super) struct Script {
    pub(super) bundles: Result<Bundles, (tonic::Code, &'static str)>,
    pub(super) answer: Answer,
}

/// A running fake. It ends when it is dropped, and its streams with it.
pub(super) struct Fake {
    pub(super) script: watch::Sender<Script>,
    asked: watch::Receiver<usize>,
    task: JoinHandle<()>,
}

impl Fake {
    pub(super) fn start(socket: &Path, script: Script) -> Self {
        // One that was here before has left its socket.
        let _ = std::fs::remove_file(socket);
        let listener = UnixListener::bind(socket).expect("a socket");
        let (sender, receiver) = watch::channel(script);
        let incoming = stream::unfold(listener, |listener| async {
            let accepted = listener.accept().await.map(|(stream, _)| stream);
            Some((accepted, listener))
        });
        let (count, asked) = watch::channel(0);
        let count = Arc::new(count);
        let serving = Server::builder().add_service(Api {
            script: receiver,
            asked: count,
        });
        let task = tokio::spawn(async move {
            // Aborted in the end.
            let _ = serving.serve_with_incoming(incoming).await;
        });
        Self {
            script: sender,
            asked,
            task,
        }
    }

    /// From now on it answers this, on streams that are open as well.
    pub(super) fn answer(&self, answer: Answer) {
        self.script.send_modify(|script| script.answer = answer);
    }

    /// Waits until it has been asked about workloads so many times more.
    pub(super) async fn asked_again(&self, times: usize) {
        let mut asked = self.asked.clone();
        let wanted = *asked.borrow() + times;
        let waiting = asked.wait_for(|asked| *asked >= wanted);
        tokio::time::timeout(super::DEADLINE, waiting)
            .await
            .expect("it is asked")
            .expect("it runs");
    }

    /// Ends, and waits until it has.
    pub(super) async fn stop(self) {
        self.task.abort();
        while !self.task.is_finished() {
            tokio::task::yield_now().await;
        }
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Clone)]
struct Api {
    script: watch::Receiver<Script>,
    /// How often it was asked about workloads.
    asked: Arc<watch::Sender<usize>>,
}

impl NamedService for Api {
    const NAME: &'static str = "spire.api.agent.delegatedidentity.v1.DelegatedIdentity";
}

impl Service<http::Request<Body>> for Api {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let script = self.script.clone();
        let about_workloads = request.uri().path().ends_with("/SubscribeToX509SVIDs");
        if about_workloads {
            self.asked.send_modify(|asked| *asked += 1);
        }
        Box::pin(async move {
            Ok(if about_workloads {
                let mut grpc = Grpc::new(ProstCodec::default());
                grpc.server_streaming(AboutWorkloads(script), request).await
            } else {
                let mut grpc = Grpc::new(ProstCodec::default());
                grpc.server_streaming(AboutBundles(script), request).await
            })
        })
    }
}

struct AboutWorkloads(watch::Receiver<Script>);
struct AboutBundles(watch::Receiver<Script>);

type Updates<T> = BoxStream<'static, Result<T, Status>>;

impl Service<Request<SubscribeToX509sviDsRequest>> for AboutWorkloads {
    type Response = Response<Updates<Svids>>;
    type Error = Status;
    type Future = BoxFuture<Self::Response, Status>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<SubscribeToX509sviDsRequest>) -> Self::Future {
        assert!(request.get_ref().pid > 0, "a process is asked about");
        let mut script = self.0.clone();
        Box::pin(async move {
            let answer = script.borrow_and_update().answer.clone();
            match answer {
                Answer::Refuse(code, message) => return Err(Status::new(code, message)),
                Answer::Silence => std::future::pending().await,
                Answer::Stumble(left, wrong, right) => {
                    let less = |left: usize| left.checked_sub(1);
                    let stumbles = left
                        .fetch_update(Ordering::SeqCst, Ordering::SeqCst, less)
                        .is_ok();
                    let said = if stumbles { wrong } else { right };
                    return Ok(Response::new(
                        stream::iter([Ok(said)]).chain(stream::pending()).boxed(),
                    ));
                }
                _ => {}
            }
            let updates = stream::unfold(Some((script, true)), |state| async {
                let (mut script, first) = state?;
                let flood = matches!(script.borrow().answer, Answer::Flood(_));
                if !first && !flood {
                    script.changed().await.ok()?;
                }
                let answer = script.borrow_and_update().answer.clone();
                match answer {
                    Answer::Say(svids) | Answer::Flood(svids) => Some((Ok(svids), Some((script, false)))),
                    Answer::SayAndClose(svids) => Some((Ok(svids), None)),
                    Answer::Refuse(code, message) => Some((Err(Status::new(code, message)), None)),
                    Answer::Silence | Answer::Stumble(..) => std::future::pending().await,
                }
            });
            Ok(Response::new(updates.boxed()))
        })
    }
}

impl Service<Request<SubscribeToX509BundlesRequest>> for AboutBundles {
    type Response = Response<Updates<Bundles>>;
    type Error = Status;
    type Future = BoxFuture<Self::Response, Status>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<SubscribeToX509BundlesRequest>) -> Self::Future {
        let mut script = self.0.clone();
        Box::pin(async move {
            let said = script.borrow_and_update().bundles.clone();
            said.map_err(|(code, message)| Status::new(code, message))?;
            let updates = stream::unfold((script, true), |(mut script, first)| async move {
                if !first {
                    script.changed().await.ok()?;
                }
                let bundles = script.borrow_and_update().bundles.clone();
                let said = bundles.map_err(|(code, message)| Status::new(code, message));
                Some((said, (script, false)))
            });
            Ok(Response::new(updates.boxed()))
        })
    }
}

/// An authority of a trust domain.
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    der: Vec<u8>,
}

impl Authority {
    pub(super) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("key");
        let der = params.self_signed(&key).expect("self-signed").der().to_vec();
        Self {
            issuer: Issuer::new(params, key),
            der,
        }
    }

    /// An SVID with these URIs that is valid for so many seconds from now.
    pub(super) fn svid(&self, uris: &[&str], seconds: i64) -> X509svidWithKey {
        let now = OffsetDateTime::now_utc();
        let mut params = CertificateParams::default();
        params.subject_alt_names = uris
            .iter()
            .map(|uri| SanType::URI((*uri).try_into().expect("ASCII")))
            .collect();
        params.not_before = now - Duration::hours(1);
        params.not_after = now + Duration::seconds(seconds);
        let key = KeyPair::generate().expect("key");
        let leaf = params.signed_by(&key, &self.issuer).expect("signed");
        X509svidWithKey {
            x509_svid: Some(X509svid {
                cert_chain: vec![leaf.der().to_vec().into()],
                id: None,
                expires_at: params.not_after.unix_timestamp(),
                hint: String::new(),
            }),
            x509_svid_key: key.serialize_der().into(),
        }
    }
}

/// An answer of these SVIDs.
pub(super) fn answer(svids: impl IntoIterator<Item = X509svidWithKey>) -> Svids {
    Svids {
        x509_svids: svids.into_iter().collect(),
        federates_with: Vec::new(),
    }
}

/// The SVID with a hint.
pub(super) fn hinted(mut svid: X509svidWithKey, hint: &str) -> X509svidWithKey {
    if let Some(svid) = &mut svid.x509_svid {
        svid.hint = hint.to_owned();
    }
    svid
}

/// The SVID with another ID beside it.
pub(super) fn called(mut svid: X509svidWithKey, path: &str) -> X509svidWithKey {
    if let Some(svid) = &mut svid.x509_svid {
        svid.id = Some(Spiffeid {
            trust_domain: "hanzo.ai".to_owned(),
            path: path.to_owned(),
        });
    }
    svid
}

/// The bundle of a trust domain, as a SPIRE agent sends it.
pub(super) fn bundles(domain: &str, authorities: &[&Authority]) -> Bundles {
    let der: Vec<u8> = authorities
        .iter()
        .flat_map(|authority| authority.der.clone())
        .collect();
    Bundles {
        ca_certificates: [(format!("spiffe://{domain}"), der.into())].into(),
    }
}
