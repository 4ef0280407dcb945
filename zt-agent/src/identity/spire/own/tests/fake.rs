// SPDX-License-Identifier: Apache-2.0
//! A fake Workload API: the real messages on a real socket, from a script.

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::stream::{self, BoxStream, StreamExt as _};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};
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

/// `X509SVIDRequest` of `workload.proto`.
#[derive(Clone, Copy, PartialEq, prost::Message)]
struct Asked {}

/// `X509SVIDResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Svids {
    #[prost(message, repeated, tag = "1")]
    svids: Vec<Entry>,
}

/// `X509SVID`.
#[derive(Clone, PartialEq, prost::Message)]
struct Entry {
    #[prost(string, tag = "1")]
    spiffe_id: String,
    #[prost(bytes = "vec", tag = "2")]
    x509_svid: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    x509_svid_key: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    bundle: Vec<u8>,
}

/// What the fake does when it is asked.
#[derive(Clone, Debug)]
pub(super) enum Answer {
    /// Says this, and goes on listening.
    Say(Svids),
    /// Says this, and ends the stream.
    SayAndClose(Svids),
    /// Refuses.
    Refuse(tonic::Code, &'static str),
    /// Says nothing, until it is told what to say.
    Silence,
}

/// A running fake. It ends when it is dropped, and its streams with it.
pub(super) struct Fake {
    script: watch::Sender<Answer>,
    asked: watch::Receiver<usize>,
    task: JoinHandle<()>,
}

impl Fake {
    pub(super) fn start(socket: &Path, answer: Answer) -> Self {
        // What was there before has left its socket.
        let _ = std::fs::remove_file(socket);
        let listener = UnixListener::bind(socket).expect("a socket");
        let (script, receiver) = watch::channel(answer);
        let incoming = stream::unfold(listener, |listener| async {
            let accepted = listener.accept().await.map(|(stream, _)| stream);
            Some((accepted, listener))
        });
        let (count, asked) = watch::channel(0);
        let serving = Server::builder().add_service(Api {
            script: receiver,
            asked: Arc::new(count),
        });
        let task = tokio::spawn(async move {
            // Aborted in the end.
            let _ = serving.serve_with_incoming(incoming).await;
        });
        Self { script, asked, task }
    }

    /// From now on it answers this, on streams that are open as well.
    pub(super) fn answer(&self, answer: Answer) {
        self.script.send_replace(answer);
    }

    /// Waits until it has been asked.
    pub(super) async fn asked(&self) {
        let mut asked = self.asked.clone();
        let waiting = asked.wait_for(|asked| *asked > 0);
        let waited = tokio::time::timeout(super::DEADLINE, waiting).await;
        waited.expect("it is asked").expect("it runs");
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Clone)]
struct Api {
    script: watch::Receiver<Answer>,
    /// How often it was asked.
    asked: Arc<watch::Sender<usize>>,
}

impl NamedService for Api {
    const NAME: &'static str = "SpiffeWorkloadAPI";
}

impl Service<http::Request<Body>> for Api {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        assert_eq!(request.uri().path(), "/SpiffeWorkloadAPI/FetchX509SVID");
        self.asked.send_modify(|asked| *asked += 1);
        let script = self.script.clone();
        Box::pin(async move {
            let mut grpc = Grpc::new(ProstCodec::default());
            Ok(grpc.server_streaming(Stream(script), request).await)
        })
    }
}

struct Stream(watch::Receiver<Answer>);

impl Service<Request<Asked>> for Stream {
    type Response = Response<BoxStream<'static, Result<Svids, Status>>>;
    type Error = Status;
    type Future = BoxFuture<Self::Response, Status>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<Asked>) -> Self::Future {
        let mut script = self.0.clone();
        Box::pin(async move {
            if let Answer::Refuse(code, message) = script.borrow_and_update().clone() {
                return Err(Status::new(code, message));
            }
            let updates = stream::unfold(Some((script, true)), |state| async {
                let (mut script, mut first) = state?;
                loop {
                    if !first {
                        script.changed().await.ok()?;
                    }
                    first = false;
                    let answer = script.borrow_and_update().clone();
                    match answer {
                        Answer::Say(svids) => return Some((Ok(svids), Some((script, false)))),
                        Answer::SayAndClose(svids) => return Some((Ok(svids), None)),
                        Answer::Refuse(code, message) => {
                            return Some((Err(Status::new(code, message)), None));
                        }
                        Answer::Silence => {}
                    }
                }
            });
            Ok(Response::new(updates.boxed()))
        })
    }
}

/// An authority, of whatever trust domain is asked for.
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    der: Vec<u8>,
}

impl Authority {
    pub(super) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("key");
        let der = params.self_signed(&key).expect("self-signed").der().to_vec();
        Self {
            issuer: Issuer::new(params, key),
            der,
        }
    }

    /// An answer with the SVID of this ID, valid for so many seconds from now.
    pub(super) fn svid(&self, id: &str, seconds: i64) -> Svids {
        let now = OffsetDateTime::now_utc();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(id.try_into().expect("ASCII"))];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.not_before = now - Duration::hours(1);
        params.not_after = now + Duration::seconds(seconds);
        let key = KeyPair::generate().expect("key");
        let leaf = params.signed_by(&key, &self.issuer).expect("signed");
        Svids {
            svids: vec![Entry {
                spiffe_id: id.to_owned(),
                x509_svid: leaf.der().to_vec(),
                x509_svid_key: key.serialize_der(),
                bundle: self.der.clone(),
            }],
        }
    }
}
