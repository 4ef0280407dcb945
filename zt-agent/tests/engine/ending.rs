// SPDX-License-Identifier: Apache-2.0
//! Engines that are asked to end while they are asked for decisions.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use nix::sys::signal::Signal;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use zt_agent::cli::client::{Client, ClientError};

use super::world::{DEADLINE, Engine, Shared, client, eventually};

fn question() -> serde_json::Value {
    json!({
        "source": {"spiffe_id": "spiffe://hanzo.ai/k8s/iam"},
        "destination": {"spiffe_id": "spiffe://hanzo.ai/k8s/postgres", "port": 5432, "protocol": "TCP"},
    })
}

/// Writes the whole configuration of an engine that drains that long.
fn configure(shared: &Shared, name: &str, drain: &str) {
    let text = format!("api: {{rateLimit: 100000, drain: {drain}}}\n");
    fs::write(shared.below(name).join("agent.yaml"), text).expect("write");
}

/// What `/readyz` says: the code of the problem, or `ready`; `None` where nobody answers.
async fn readiness(engine: &Engine) -> Option<String> {
    match client(&format!("http://{}", engine.health))
        .get("/readyz", &[])
        .await
    {
        Ok(_) => Some("ready".into()),
        Err(ClientError::Refused { code, message, .. }) => Some(format!("{}: {message}", code?)),
        Err(_) => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_under_way_is_answered_and_recorded_and_no_other() {
    let shared = Shared::new();
    let mut engine = shared.engine("e1").await;
    let mut stream = TcpStream::connect(engine.api).await.expect("connects");
    let mut idle = TcpStream::connect(engine.api).await.expect("connects");
    idle.write_all(b"GET /v1/status HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .await
        .expect("written");
    let mut first = [0; 12];
    idle.read_exact(&mut first).await.expect("answered");
    assert_eq!(&first, b"HTTP/1.1 200");

    let body = question().to_string();
    let (half, rest) = body.split_at(body.len() / 2);
    let head = format!(
        "POST /v1/evaluate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.expect("written");
    // The request is under way as soon as the engine says that it wants the body.
    let mut go_on = [0; 25];
    stream.read_exact(&mut go_on).await.expect("an answer");
    assert_eq!(&go_on, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(half.as_bytes()).await.expect("written");

    engine.signal(Signal::SIGTERM);
    eventually("the listener to close", || async {
        TcpStream::connect(engine.api).await.is_err().then_some(())
    })
    .await;
    // Who asks nothing is let go.
    let mut bytes = Vec::new();
    tokio::time::timeout(DEADLINE, idle.read_to_end(&mut bytes))
        .await
        .expect("closed")
        .expect("in order");
    stream.write_all(rest.as_bytes()).await.expect("written");
    stream.write_all(head.as_bytes()).await.expect("written");
    let mut answer = Vec::new();
    // It may be closed before what came after the request was read.
    let _ = tokio::time::timeout(DEADLINE, stream.read_to_end(&mut answer))
        .await
        .expect("closed");
    let answer = String::from_utf8(answer).expect("text");
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.contains("\"decision\":\"ALLOW\""),
        "{answer}"
    );
    assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{answer}");
    assert!(engine.wait().success(), "{}", engine.log());
    assert!(!engine.log().contains("broken off"), "{}", engine.log());

    engine.start().await;
    let trail = engine.client().get("/v1/audit", &[]).await.expect("records");
    let records = trail["records"].as_array().expect("a list");
    let evaluations: Vec<_> = records
        .iter()
        .filter(|record| record["destination"]["port"] == 5432)
        .collect();
    assert_eq!(evaluations.len(), 1, "{trail}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_is_to_end_says_so_and_goes_on_answering() {
    let shared = Shared::new();
    configure(&shared, "e1", "5m");
    let mut engine = shared.engine("e1").await;
    assert_eq!(readiness(&engine).await.as_deref(), Some("ready"));
    engine.signal(Signal::SIGTERM);
    eventually("the engine to say that it is about to end", || async {
        (readiness(&engine).await? == "not_ready: it is about to end").then_some(())
    })
    .await;
    let answer = engine.client().post("/v1/evaluate", &question()).await;
    assert_eq!(answer.expect("answered")["decision"], "ALLOW");
    // A policy is changed as ever, too.
    let changed = engine
        .put("more", &super::world::policy("more", &[1]), None)
        .await;
    engine
        .has(changed.expect("committed")["digest"].as_str().expect("digest"))
        .await;
    engine.signal(Signal::SIGTERM);
    assert!(engine.wait().success(), "{}", engine.log());

    // The time ends by itself, and who sits before it does not wait.
    configure(&shared, "e1", "1ms");
    engine.start().await;
    assert!(engine.terminate().success());
    configure(&shared, "e1", "5m");
    engine.start().await;
    engine.signal(Signal::SIGINT);
    assert!(engine.wait().success());
}

/// A load balancer that hands each connection to one of the engines that it was told are ready, and to no second one.
struct Balancer {
    address: SocketAddr,
    ready: Arc<Mutex<Vec<SocketAddr>>>,
}

/// Connections that pass through, by engine.
type Open = Arc<Mutex<Vec<SocketAddr>>>;

impl Balancer {
    async fn start(engines: Vec<SocketAddr>) -> (Self, Open) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("port");
        let address = listener.local_addr().expect("address");
        let ready = Arc::new(Mutex::new(engines));
        let open = Open::default();
        let (from, through) = (Arc::clone(&ready), Arc::clone(&open));
        tokio::spawn(async move {
            let mut turn = 0;
            while let Ok((mut client, _)) = listener.accept().await {
                turn += 1;
                let engine = {
                    let ready = from.lock().expect("not poisoned");
                    let engine = ready[turn % ready.len()];
                    // While it is chosen it counts: nobody takes the engine for idle.
                    through.lock().expect("not poisoned").push(engine);
                    engine
                };
                let through = Arc::clone(&through);
                tokio::spawn(async move {
                    if let Ok(mut stream) = TcpStream::connect(engine).await {
                        let _ = tokio::io::copy_bidirectional(&mut client, &mut stream).await;
                    }
                    let mut through = through.lock().expect("not poisoned");
                    let place = through.iter().position(|one| *one == engine).expect("counted");
                    through.swap_remove(place);
                });
            }
        });
        (Self { address, ready }, open)
    }
}

/// Asks one question after the other, over one connection for as long as that is left open.
async fn ask(client: Client, stop: Arc<AtomicBool>, answered: Arc<AtomicUsize>) -> Vec<String> {
    let mut failed = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        match client.post("/v1/evaluate", &question()).await {
            Ok(answer) if answer["decision"] == "ALLOW" => {
                answered.fetch_add(1, Ordering::Relaxed);
            }
            other => failed.push(format!("{other:?}")),
        }
    }
    failed
}

#[tokio::test(flavor = "multi_thread")]
async fn engines_start_anew_one_by_one_and_no_request_fails() {
    let shared = Shared::new();
    let names = ["e1", "e2", "e3"];
    for name in names {
        configure(&shared, name, "5m");
    }
    let mut engines = Vec::new();
    for name in names {
        engines.push(shared.engine(name).await);
    }
    let (balancer, open) = Balancer::start(engines.iter().map(|engine| engine.api).collect()).await;
    let stop = Arc::new(AtomicBool::new(false));
    let answered = Arc::new(AtomicUsize::new(0));
    let asking: Vec<_> = (0..8)
        .map(|_| {
            let client = client(&format!("http://{}", balancer.address));
            tokio::spawn(ask(client, Arc::clone(&stop), Arc::clone(&answered)))
        })
        .collect();
    for engine in &mut engines {
        let before = answered.load(Ordering::Relaxed);
        eventually("requests to go on", || async {
            (answered.load(Ordering::Relaxed) > before + 100).then_some(())
        })
        .await;
        engine.signal(Signal::SIGTERM);
        // As a balancer finds out, which is long after an engine that does not wait would have closed its listener.
        eventually("the engine to say that it is about to end", || async {
            (readiness(engine).await? != "ready").then_some(())
        })
        .await;
        let before = answered.load(Ordering::Relaxed);
        eventually("requests to go on", || async {
            (answered.load(Ordering::Relaxed) > before + 100).then_some(())
        })
        .await;
        let api = engine.api;
        balancer
            .ready
            .lock()
            .expect("not poisoned")
            .retain(|one| *one != api);
        // Its last answers say that the connection ends: clients leave it by themselves.
        eventually("the last connection to be left", || async {
            (!open.lock().expect("not poisoned").contains(&api)).then_some(())
        })
        .await;
        engine.signal(Signal::SIGTERM);
        assert!(engine.wait().success(), "{}", engine.log());
        engine.start().await;
        balancer.ready.lock().expect("not poisoned").push(api);
    }
    stop.store(true, Ordering::Relaxed);
    for asking in asking {
        assert_eq!(asking.await.expect("ended"), Vec::<String>::new());
    }
}
