// SPDX-License-Identifier: Apache-2.0
//! Engines that lie, babble or hang: nothing of theirs comes into force.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, put};
use futures::{StreamExt, stream};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::timeout;
use zt_agent::policy::{Document, Settings, parse};

use super::node::{Node, settings};
use super::world::{DEADLINE, policy};

/// What the engine says.
#[derive(Clone)]
struct Said {
    digest: String,
    policies: Policies,
}

#[derive(Clone)]
enum Policies {
    Answer(Value),
    Text(&'static str),
    TooLong,
}

type Shared = Arc<Mutex<Said>>;

/// Digest and answer of an engine that has this in force.
fn honest(text: &str) -> (String, Value) {
    let document = Document {
        file: "x".to_owned(),
        text: text.to_owned(),
    };
    let set = parse(&[document], &Settings::default()).expect("valid");
    let items: Vec<Value> = set
        .all()
        .iter()
        .map(|policy| json!({"name": policy.name(), "document": policy.document()}))
        .collect();
    let digest = set.digest().to_owned();
    let answer = json!({"revision": 1, "digest": digest, "policies": items});
    (digest, answer)
}

async fn policies(State(said): State<Shared>) -> Response {
    let said = said.lock().expect("not poisoned").policies.clone();
    match said {
        Policies::Answer(answer) => axum::Json(answer).into_response(),
        Policies::Text(text) => text.into_response(),
        Policies::TooLong => {
            let chunk = bytes::Bytes::from(vec![b' '; 1 << 20]);
            let chunks = stream::repeat(chunk).take(80).map(Ok::<_, std::io::Error>);
            Body::from_stream(chunks).into_response()
        }
    }
}

async fn feed(State(said): State<Shared>) -> Response {
    let events = stream::unfold(said, |said| async move {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let digest = said.lock().expect("not poisoned").digest.clone();
        let data = json!({"revision": 1, "digest": digest}).to_string();
        Some((
            Ok::<_, std::io::Error>(Event::default().event("revision").data(data)),
            said,
        ))
    });
    Sse::new(events).into_response()
}

/// What an engine says; `reports` takes what nodes say.
fn engine(said: Shared, reports: MethodRouter) -> Router {
    Router::new()
        .route("/v1/policies", get(policies))
        .route("/v1/revisions/stream", get(feed))
        .with_state(said)
        .route("/v1/nodes/{node}", reports)
}

async fn serve(router: Router) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
        .await
        .expect("port");
    let address = listener.local_addr().expect("address");
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

/// An engine that says what is so, and takes reports as it does.
pub(crate) async fn serve_honest(text: &str, reports: MethodRouter) -> SocketAddr {
    let (digest, answer) = honest(text);
    let policies = Policies::Answer(answer);
    serve(engine(Arc::new(Mutex::new(Said { digest, policies })), reports)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_engine_makes_up_changes_nothing() {
    let (good, answer) = honest(&policy("core", &[5432]));
    let said = Arc::new(Mutex::new(Said {
        digest: good.clone(),
        policies: Policies::Answer(answer.clone()),
    }));
    let address = serve(engine(Arc::clone(&said), put(|| async {}))).await;
    let home = tempfile::tempdir().expect("directory");
    let node = Node::start(settings(&format!("http://{address}"), "n", home.path()))
        .await
        .expect("starts");
    node.has(&good).await;

    let (other, theirs) = honest(&policy("core", &[1, 2]));
    let with = |field: &str, value: Value| {
        let mut changed = theirs.clone();
        changed[field] = value;
        changed
    };
    let mut stranger = theirs.clone();
    stranger["policies"][0]["document"]["spec"]["rules"][0]["from"]["spiffe"] =
        json!("spiffe://evil.example/x");
    let mut unknown = theirs.clone();
    unknown["policies"][0]["document"]["spec"]["surprise"] = json!(true);
    let mut twice = theirs.clone();
    twice["policies"] = json!([theirs["policies"][0], theirs["policies"][0]]);
    let cases = [
        ("digest", Policies::Answer(with("digest", json!("0".repeat(64))))),
        ("empty", Policies::Answer(with("policies", json!([])))),
        ("not_an_engine", Policies::Answer(with("policies", json!("none")))),
        ("not_an_engine", Policies::Text("<html>It works!</html>")),
        ("invalid", Policies::Answer(stranger)),
        ("invalid", Policies::Answer(unknown)),
        ("invalid", Policies::Answer(twice)),
        ("too_long", Policies::TooLong),
    ];
    for (cause, lie) in cases {
        let before = node.refused(cause);
        *said.lock().expect("not poisoned") = Said {
            digest: other.clone(),
            policies: lie,
        };
        node.refuses(cause, before).await;
        assert_eq!(node.digest(), good, "{cause}: the last good policy stays");
        assert!(node.is_stale(), "{cause}: and is said to be old");
        // The truth again: what was refused leaves nothing behind.
        *said.lock().expect("not poisoned") = Said {
            digest: good.clone(),
            policies: Policies::Answer(answer.clone()),
        };
        node.has(&good).await;
    }
    // And an honest change is still taken.
    *said.lock().expect("not poisoned") = Said {
        digest: other.clone(),
        policies: Policies::Answer(theirs),
    };
    node.has(&other).await;
}

/// As one that is restarted: it has heard of nobody.
#[tokio::test(flavor = "multi_thread")]
async fn an_engine_whose_feed_ended_is_told_anew_with_the_next() {
    let (digest, answer) = honest(&policy("core", &[5432]));
    let (asked, mut asking) = mpsc::unbounded_channel();
    let told = asked.clone();
    let feed = get(move || {
        let _ = asked.send("feed");
        let data = json!({"revision": 1, "digest": digest}).to_string();
        let event = Event::default().event("revision").data(data);
        async move { Sse::new(stream::iter([Ok::<_, std::io::Error>(event)])) }
    });
    let reports = put(move || {
        let _ = told.send("report");
        async { StatusCode::NO_CONTENT }
    });
    let router = Router::new()
        .route("/v1/policies", get(move || async move { axum::Json(answer) }))
        .route("/v1/revisions/stream", feed)
        .route("/v1/nodes/{node}", reports);
    let address = serve(router).await;
    let home = tempfile::tempdir().expect("directory");
    let _node = Node::start(settings(&format!("http://{address}"), "n", home.path()))
        .await
        .expect("starts");
    for wanted in ["feed", "report"].repeat(3) {
        let found = timeout(DEADLINE, asking.recv()).await;
        assert_eq!(found.expect("in time"), Some(wanted));
    }
}
