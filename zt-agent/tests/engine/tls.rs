// SPDX-License-Identifier: Apache-2.0
//! Following over TLS: who is believed, and who is let in.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use zt_agent::cli::client::{ApiArgs, Client, ClientError, TlsArgs};
use zt_agent::policy_follow::{Settings, Tls};

use super::node::{Node, settings};
use super::world::{Engine, Shared, eventually, policy};

const NODE: &str = "spiffe://hanzo.ai/zt/node";
pub(super) const ENGINE: &str = "spiffe://hanzo.ai/zt/engine";

/// An authority, and where it keeps what it issues.
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    directory: PathBuf,
}

impl Authority {
    pub(super) fn new(directory: PathBuf) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("key");
        let certificate = params.self_signed(&key).expect("self-signed");
        fs::write(directory.join("ca.pem"), certificate.pem()).expect("write");
        let issuer = Issuer::new(params, key);
        Self { issuer, directory }
    }

    pub(super) fn ca(&self) -> PathBuf {
        self.directory.join("ca.pem")
    }

    /// Certificate and key for this identity and host name.
    pub(super) fn issue(&self, id: &str, host: &str) -> (PathBuf, PathBuf) {
        let mut params = CertificateParams::new(vec![host.to_owned()]).expect("name");
        params
            .subject_alt_names
            .push(SanType::URI(id.try_into().expect("ASCII")));
        let key = KeyPair::generate().expect("key");
        let certificate = params.signed_by(&key, &self.issuer).expect("signed");
        let name = format!("{}-{host}", id.replace(['/', ':'], "_"));
        let place = |suffix: &str| self.directory.join(format!("{name}{suffix}"));
        fs::write(place(".pem"), certificate.pem()).expect("write");
        fs::write(place(".key"), key.serialize_pem()).expect("write");
        (place(".pem"), place(".key"))
    }
}

/// Writes the configuration of an engine that shows this certificate and knows these callers.
pub(super) fn configure(shared: &Shared, name: &str, shown: &(PathBuf, PathBuf), ca: &Path, callers: &str) {
    let config = format!(
        "api:\n  drain: 0s\n  tls: {{cert: {}, key: {}, clientCa: {}}}\n  callers: [{callers}]\n",
        shown.0.display(),
        shown.1.display(),
        ca.display()
    );
    fs::write(shared.below(name).join("agent.yaml"), config).expect("write");
}

/// A load balancer that passes TCP through to the first of these that answers.
async fn balancer(engines: Vec<SocketAddr>) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("port");
    let address = listener.local_addr().expect("address");
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let engines = engines.clone();
            tokio::spawn(async move {
                // It tries them in order; where none answers, the connection ends here.
                if let Ok(mut engine) = TcpStream::connect(&engines[..]).await {
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut engine).await;
                }
            });
        }
    });
    address
}

fn following(engine: &Engine, shown: &(PathBuf, PathBuf), ca: &Path, home: &Path) -> Settings {
    Settings {
        url: format!("https://localhost:{}", engine.api.port()),
        tls: Some(Tls {
            cert: shown.0.clone(),
            key: shown.1.clone(),
            ca: ca.to_path_buf(),
        }),
        ..settings("", "node-tls", home)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_follows_an_engine_that_it_knows_and_that_knows_it() {
    let shared = Shared::new();
    let ours = Authority::new(shared.below("ours"));
    let others = Authority::new(shared.below("others"));
    let (cert, key) = ours.issue(ENGINE, "localhost");
    let callers = format!("{{spiffe: \"{NODE}\", role: follow, node: node-tls}}");
    configure(&shared, "e1", &(cert, key), &ours.ca(), &callers);
    let engine = shared.engine("e1").await;
    let (node, stranger, foreign) = (
        ours.issue(NODE, "node"),
        ours.issue("spiffe://hanzo.ai/zt/stranger", "node"),
        others.issue(NODE, "node"),
    );

    let follower = Node::start(following(&engine, &node, &ours.ca(), &shared.below("a")))
        .await
        .expect("starts");
    follower.has(&follower.digest()).await;
    // A change of the directory: the engine's own API takes none from a reader.
    shared.write("more", &policy("more", &[1]));
    let first = follower.digest();
    eventually("the change", || async {
        (follower.digest() != first && !follower.is_stale()).then_some(())
    })
    .await;

    // It says what it has, under its own name and no other, and may do no more than that.
    let reader = engine.client_on_socket();
    let heard = async || {
        let status = reader.get("/v1/status", &[]).await.ok()?;
        let nodes = status["nodes"].as_array()?.clone();
        let names: Vec<_> = nodes.iter().map(|node| node["node"].clone()).collect();
        Some((nodes.first()?["caller"].clone(), names))
    };
    let (caller, _) = eventually("the report", &heard).await;
    assert_eq!(caller, NODE);
    let as_node = Client::new(&ApiArgs {
        api: format!("https://localhost:{}", engine.api.port()),
        tls: TlsArgs {
            tls_cert: Some(node.0.clone()),
            tls_key: Some(node.1.clone()),
            tls_ca: Some(ours.ca()),
        },
    })
    .expect("usable");
    let report = json!({"revision": 1, "digest": first});
    for (path, wanted) in [
        ("/v1/nodes/another", "not_that_node"),
        ("/v1/mode", "role_insufficient"),
    ] {
        match as_node.put(path, &report).await {
            Err(ClientError::Refused { status, code, .. }) => {
                assert_eq!((status.as_u16(), code.as_deref()), (403, Some(wanted)), "{path}");
            }
            other => panic!("{path}: {other:?}"),
        }
    }
    let (_, names) = heard().await.expect("status");
    assert_eq!(names, ["node-tls"]);

    // Not of its authority, not in its list, or another authority's engine: each is said, and nothing is taken.
    let refusal = async |settings| {
        let started = Node::start(settings).await;
        started.err().expect("no policy and no copy").to_string()
    };
    let (a, b, c) = tokio::join!(
        refusal(following(&engine, &stranger, &ours.ca(), &shared.below("b"))),
        refusal(following(&engine, &foreign, &ours.ca(), &shared.below("c"))),
        refusal(following(&engine, &node, &others.ca(), &shared.below("d"))),
    );
    assert!(a.contains("no entry of api.callers"), "{a}");
    assert!(b.contains("cannot be reached"), "{b}");
    assert!(c.contains("cannot be reached"), "{c}");
    // A certificate of the same authority for another host is no engine's either.
    let elsewhere = Settings {
        url: format!("https://127.0.0.1:{}", engine.api.port()),
        ..following(&engine, &node, &ours.ca(), &shared.below("e"))
    };
    let d = refusal(elsewhere).await;
    assert!(d.contains("cannot be reached"), "{d}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_balancer_that_passes_tcp_through_takes_a_node_to_whichever_engine_is_there() {
    const WORKER: &str = "spiffe://hanzo.ai/zt/nodes/worker-1";
    let shared = Shared::new();
    let ours = Authority::new(shared.below("ours"));
    let shown = ours.issue(ENGINE, "localhost");
    let callers = "{spiffe: \"spiffe://hanzo.ai/zt/nodes/*\", role: follow}";
    for name in ["e1", "e2"] {
        configure(&shared, name, &shown, &ours.ca(), callers);
    }
    let (mut one, two) = tokio::join!(shared.engine("e1"), shared.engine("e2"));
    let between = balancer(vec![one.api, two.api]).await;
    let node = Node::start(Settings {
        url: format!("https://localhost:{}", between.port()),
        node: "worker-1".to_owned(),
        ..following(
            &one,
            &ours.issue(WORKER, "worker-1"),
            &ours.ca(),
            &shared.below("a"),
        )
    })
    .await
    .expect("starts");
    let heard = async |engine: &Engine, digest: &str| {
        let status = engine.client_on_socket().get("/v1/status", &[]).await.ok()?;
        let node = status["nodes"].as_array()?.first()?.clone();
        let told = node["node"] == "worker-1" && node["caller"] == WORKER;
        (told && node["digest"] == digest && node["in_sync"] == true).then_some(())
    };
    let first = node.digest();
    node.has(&first).await;
    eventually("the report to the first engine", || heard(&one, &first)).await;

    // The first one dies; the node hears of a change from the other, and reports there.
    one.kill();
    shared.write("more", &policy("more", &[1]));
    eventually("the change", || async {
        (node.digest() != first && !node.is_stale()).then_some(())
    })
    .await;
    let second = node.digest();
    eventually("the report to the second engine", || heard(&two, &second)).await;
    one.start().await;
    let digest = one
        .client_on_socket()
        .get("/v1/policies", &[])
        .await
        .expect("answer");
    assert_eq!(digest["digest"], second.as_str());
}
