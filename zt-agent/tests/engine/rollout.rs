// SPDX-License-Identifier: Apache-2.0
//! A rollout at policy engines: it goes on by the command line, as far as nodes, policies and others let it.

use std::fs;
use std::net::SocketAddr;
use std::process::{Command, Output};

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::put;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use zt_agent::policy::{Document, PolicySet, Settings, parse};

use super::lies::serve_honest;
use super::node::{Node, settings};
use super::world::{DEADLINE, Engine, Shared, eventually, policy};

fn id(name: &str) -> String {
    format!("spiffe://hanzo.ai/k8s/{name}")
}

/// A rollout before its first stage, which is about this workload.
fn rollout(first: &str) -> String {
    let stages = json!([
        { "name": "first", "identities": [id(first)], "onDenials": { "perMinute": 4, "action": "hold" } },
        { "name": "second", "identities": [id("postgres")] },
        { "name": "all", "requirePolicy": true },
    ]);
    let document = json!({
        "apiVersion": "zt.hanzo.ai/v1",
        "kind": "EnforcementRollout",
        "metadata": { "name": "to-enforcing" },
        "spec": { "stages": stages },
    });
    format!("{document:#}\n")
}

fn read(text: &str) -> PolicySet {
    let document = Document {
        file: "x".to_owned(),
        text: text.to_owned(),
    };
    parse(&[document], &Settings::default()).expect("valid")
}

/// `zt-agent rollout …`, of the agent there.
fn command(url: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_zt-agent"));
    command
        .env_clear()
        .arg("rollout")
        .args(arguments)
        .args(["--api", url]);
    command
}

fn run(engine: &Engine, arguments: &[&str]) -> Output {
    command(&engine.url(), arguments).output().expect("runs")
}

/// What it printed, where it did what it was to do.
fn told(engine: &Engine, arguments: &[&str]) -> String {
    let output = run(engine, arguments);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn json_of(engine: &Engine, arguments: &[&str]) -> Value {
    let text = told(engine, &[arguments, &["-o", "json"]].concat());
    serde_json::from_str(&text).expect("JSON")
}

/// Why it did not.
fn refusal(engine: &Engine, arguments: &[&str]) -> String {
    let output = run(engine, arguments);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8(output.stderr).expect("UTF-8")
}

/// The stage that is in force there.
fn stage(engine: &Engine) -> Value {
    json_of(engine, &["status"])["rollout"]["stage"].clone()
}

async fn report(engine: &Engine, node: &str, rollout: Value) {
    let digest = engine.digest().await.expect("digest");
    let mut body = json!({ "revision": 1, "digest": digest });
    if !rollout.is_null() {
        body["rollout"] = rollout;
    }
    let path = format!("/v1/nodes/{node}");
    engine.client().put(&path, &body).await.expect("noted");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_does_not_leave_behind_nodes_that_stopped() {
    let shared = Shared::new();
    shared.write("rollout", &rollout("iam"));
    let engine = shared.engine("e1").await;
    assert_eq!(json_of(&engine, &["advance"])["to"], "first");
    let definition = read(&rollout("iam")).rollout().expect("a rollout").stages[0].digest();
    let said = |stage: Value, action: &str| {
        let stopped = json!({
            "stage": "first", "definition": definition, "action": action, "cause": "denials", "denials": 5,
            "per_minute": 4, "attempts": 9, "attempts_per_minute": null, "at": "2026-03-02T09:10:45Z",
        });
        json!({ "name": "to-enforcing", "stage": stage, "selects": [], "stopped": stopped })
    };
    let goes = |stage: &str| json!({ "name": "to-enforcing", "stage": stage, "stopped": null });
    report(&engine, "worker-1", said(json!("first"), "hold")).await;
    report(&engine, "worker-2", goes("first")).await;
    let file = shared.policies().join("rollout.yaml");
    let written = || fs::read_to_string(&file).expect("readable");
    let before = written();
    for arguments in [&["advance"][..], &["advance", "--dry-run"]] {
        let error = refusal(&engine, arguments);
        assert!(
            error.contains("nothing was changed")
                && error.contains(
                    "worker-1: at `first` (hold), for 5 different connections of those newly enforced"
                )
                && !error.contains("worker-2"),
            "{error}"
        );
    }
    assert_eq!((written(), stage(&engine)), (before, json!("first")));

    // It is shown, and is at the stage as long as it only holds there.
    let shown = told(&engine, &["status", "--fail"]);
    for wanted in ["2: 1 in force, 1 stopped (hold)", "worker-1", "(4 are borne)"] {
        assert!(shown.contains(wanted), "no `{wanted}` in {shown}");
    }
    assert!(!shown.contains("worker-2"), "{shown}");
    let nodes = json_of(&engine, &["status"])["nodes"].clone();
    assert_eq!(
        (&nodes[0]["stopped"]["action"], &nodes[1]["state"]),
        (&json!("hold"), &json!("in_force"))
    );
    report(&engine, "worker-1", said(Value::Null, "rollback")).await;
    assert_eq!(run(&engine, &["status", "--fail"]).status.code(), Some(1));
    assert!(refusal(&engine, &["advance"]).contains("worker-1: at `first` (rollback)"));

    // By force it is left behind; behind the stage it is another try, which it has to say itself.
    assert_eq!(json_of(&engine, &["advance", "--force"])["to"], "second");
    assert!(refusal(&engine, &["advance"]).contains("worker-1"));
    json_of(&engine, &["rollback", "--all"]);
    assert_eq!(json_of(&engine, &["advance"])["to"], "first");
    assert!(refusal(&engine, &["advance"]).contains("worker-1"));
    report(&engine, "worker-1", goes("first")).await;
    assert_eq!(json_of(&engine, &["advance"])["to"], "second");

    // One that does not say, as it is older, holds nothing up, and is not known to be there.
    report(&engine, "worker-1", goes("second")).await;
    report(&engine, "worker-2", goes("second")).await;
    told(&engine, &["status", "--fail"]);
    report(&engine, "worker-2", Value::Null).await;
    let shown = run(&engine, &["status", "--fail"]);
    assert_eq!(shown.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&shown.stdout).contains("does not say"),
        "{shown:?}"
    );
    assert_eq!(json_of(&engine, &["advance"])["to"], "all");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stage_that_selects_nobody_is_not_reached_by_mistake() {
    let shared = Shared::new();
    shared.write("rollout", &rollout("cath"));
    let engine = shared.engine("e1").await;
    let file = shared.policies().join("rollout.yaml");
    let before = fs::read_to_string(&file).expect("readable");
    // Nobody has said whom nodes have.
    let untold = || json_of(&engine, &["advance", "--dry-run"])["selects_nobody_known"].clone();
    assert_eq!(untold(), json!(["first"]));
    let says = |selects: Value| json!({ "name": "to-enforcing", "stage": null, "selects": selects, "stopped": null });
    report(&engine, "worker-1", says(json!([]))).await;
    for arguments in [&["advance"][..], &["advance", "--dry-run"]] {
        let error = refusal(&engine, arguments);
        assert!(
            error.contains("stage `first` selects nobody, and nothing was changed")
                && error.contains(&id("cath"))
                && error.contains("--force"),
            "{error}"
        );
    }
    assert_eq!(fs::read_to_string(&file).expect("readable"), before);
    assert_eq!(stage(&engine), Value::Null);
    let change = json_of(&engine, &["advance", "--force", "--dry-run"]);
    assert_eq!(
        (&change["selects_nobody_known"], &change["selects_nobody_here"]),
        (&json!(["first"]), &json!([]))
    );
    // A node has such a workload.
    report(&engine, "worker-1", says(json!(["first"]))).await;
    assert_eq!(untold(), json!([]));
    // One that is older does not say, and what others say is not all.
    report(&engine, "worker-1", Value::Null).await;
    assert_eq!(untold(), json!(["first"]));
    report(&engine, "worker-2", says(json!([]))).await;
    assert_eq!(untold(), json!(["first"]));
    report(&engine, "worker-1", says(json!([]))).await;
    refusal(&engine, &["advance"]);

    // A policy names all of them by a pattern: nobody knows who they are.
    let wide = policy("wide", &[1]).replace("k8s/iam", "k8s/*");
    engine.put("wide", &wide, None).await.expect("committed");
    let shown = told(&engine, &["advance"]);
    assert!(shown.contains("stage first may select nobody"), "{shown}");
    // What is about everybody needs no name.
    assert_eq!(
        json_of(&engine, &["advance", "--to", "all"])["selects_nobody_known"],
        json!([])
    );
    assert_eq!(stage(&engine), "all");
}

/// Passes on what is said to an engine. A change waits, and says so, until all may go on.
async fn gate(engine: SocketAddr, arrived: mpsc::UnboundedSender<()>, open: watch::Receiver<bool>) -> String {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("port");
    let url = format!("http://{}", listener.local_addr().expect("address"));
    tokio::spawn(async move {
        while let Ok((caller, _)) = listener.accept().await {
            let (mut asked, mut answered) = caller.into_split();
            let engine = TcpStream::connect(engine).await.expect("connects");
            let (mut answers, mut asks) = engine.into_split();
            tokio::spawn(async move { tokio::io::copy(&mut answers, &mut answered).await });
            let (arrived, mut open) = (arrived.clone(), open.clone());
            tokio::spawn(async move {
                let mut buffer = vec![0; 1 << 16];
                while let Ok(count @ 1..) = asked.read(&mut buffer).await {
                    let said = &buffer[..count];
                    if said.starts_with(b"PUT ") {
                        let _ = arrived.send(());
                        let _ = open.wait_for(|open| *open).await;
                    }
                    if asks.write_all(said).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    url
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_who_advance_at_once_one_is_refused_and_nothing_is_lost() {
    let shared = Shared::new();
    shared.write("rollout", &rollout("iam"));
    let engines = [shared.engine("e1").await, shared.engine("e2").await];
    let (arrived, mut arriving) = mpsc::unbounded_channel();
    let (open, opened) = watch::channel(false);
    let mut running = Vec::new();
    for engine in &engines {
        let url = gate(engine.api, arrived.clone(), opened.clone()).await;
        let run = move || command(&url, &["advance"]).output().expect("runs");
        running.push(tokio::task::spawn_blocking(run));
    }
    // Both have looked before either changes anything.
    for _ in &engines {
        let arrived = timeout(DEADLINE, arriving.recv()).await;
        assert!(matches!(arrived, Ok(Some(()))), "a change");
    }
    open.send_replace(true);
    let mut outputs = Vec::new();
    for one in running {
        outputs.push(one.await.expect("ends"));
    }
    outputs.sort_by_key(|output| output.status.code());
    let codes = outputs.iter().map(|output| output.status.code());
    assert_eq!(codes.collect::<Vec<_>>(), [Some(0), Some(1)], "{outputs:?}");
    let error = String::from_utf8_lossy(&outputs[1].stderr);
    assert!(error.contains("the policy is another by now"), "{error}");

    // One stage on, on both, and the document is whole.
    let text = fs::read_to_string(shared.policies().join("rollout.yaml")).expect("readable");
    let policies = read(&text);
    let now = policies.rollout().expect("a rollout");
    let whole = read(&rollout("iam"));
    let whole = whole.rollout().expect("a rollout");
    assert_eq!((now.reached(), &now.stages), (1, &whole.stages));
    eventually("the same at both", || async {
        let [one, other] = [engines[0].digest().await?, engines[1].digest().await?];
        let are_there = engines.iter().all(|engine| stage(engine) == "first");
        (one == other && are_there).then_some(())
    })
    .await;
    // Who was refused looks again, and goes on from there.
    assert_eq!(json_of(&engines[1], &["advance"])["from"], "first");
    assert_eq!(stage(&engines[1]), "second");
}

/// A refusal with this code.
fn refused(status: StatusCode, code: &str) -> Response {
    (status, Json(json!({ "code": code, "detail": "no" }))).into_response()
}

/// One of an older version knows revision and digest, and refuses a report with anything else.
#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_knows_no_rollout_in_reports_is_told_the_rest() {
    let text = format!("{}---\n{}", policy("core", &[5432]), rollout("iam"));
    let (heard, mut reports) = mpsc::unbounded_channel();
    let take = put(move |Json(body): Json<Value>| {
        let is_known = body.as_object().is_some_and(|fields| fields.len() == 2);
        let _ = heard.send(body);
        async move {
            if is_known {
                StatusCode::NO_CONTENT.into_response()
            } else {
                refused(StatusCode::BAD_REQUEST, "invalid_body")
            }
        }
    });
    let engine = serve_honest(&text, take).await;
    let home = tempfile::tempdir().expect("directory");
    let node = Node::start(settings(&format!("http://{engine}"), "n", home.path()))
        .await
        .expect("starts");
    let mut next = async || {
        timeout(DEADLINE, reports.recv())
            .await
            .expect("a report")
            .expect("one")
    };
    let first = next().await;
    assert_eq!(first["rollout"]["name"], "to-enforcing", "{first}");
    let second = next().await;
    assert_eq!(second, json!({ "revision": 1, "digest": node.digest() }));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_refuses_for_another_reason_is_told_the_whole_again() {
    let text = format!("{}---\n{}", policy("core", &[5432]), rollout("iam"));
    for (status, code) in [
        (StatusCode::FORBIDDEN, "not_that_node"),
        (StatusCode::BAD_REQUEST, "invalid_report"),
        (StatusCode::SERVICE_UNAVAILABLE, "invalid_body"),
    ] {
        let (heard, mut reports) = mpsc::unbounded_channel();
        let take = put(move |Json(body): Json<Value>| {
            let _ = heard.send(body);
            async move { refused(status, code) }
        });
        let engine = serve_honest(&text, take).await;
        let home = tempfile::tempdir().expect("directory");
        let _node = Node::start(settings(&format!("http://{engine}"), "n", home.path()))
            .await
            .expect("starts");
        for _ in 0..2 {
            let told = timeout(DEADLINE, reports.recv()).await;
            let told = told.expect("a report").expect("one");
            assert_eq!(told["rollout"]["name"], "to-enforcing", "{code}: {told}");
        }
    }
}
