// SPDX-License-Identifier: Apache-2.0
//! The API over real connections, a real store and a real policy.

mod ahead;
mod answers;
mod callers;
mod candidate;
mod certificates;
mod described;
mod doubts;
mod followers;
mod graph;
mod health;
mod hits;
mod interrupted;
mod kept;
mod local;
mod looked;
mod operators;
mod outside;
mod paged;
mod policies;
mod rapid;
mod reach;
mod recommended;
mod records;
mod refusals;
mod remote;
mod selecting;
mod slow;
mod streams;
mod turns;
mod withdrawn;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::*;
use crate::audit::NameBook;
use crate::audit::pipeline::{self, pipeline};
use crate::audit::sqlite::{self, Store};
use crate::identity::{Mode, WorkloadRecord};
use crate::policy::{Document, Settings};
use crate::spiffe_id::SpiffeId;
use crate::state::{Placed, Publisher};

const POLICY: &str = "
apiVersion: zt.hanzo.ai/v1
kind: ServiceAccessPolicy
metadata:
  name: hanzo-core-policy
spec:
  defaultAction: DENY
  rules:
    - from:
        spiffe: spiffe://hanzo.ai/hanzo-k8s/hanzo/iam
      to:
        - spiffe: spiffe://hanzo.ai/hanzo-k8s/hanzo/postgres
          ports: [5432]
";

const IAM: &str = "spiffe://hanzo.ai/hanzo-k8s/hanzo/iam";
const CHAT: &str = "spiffe://hanzo.ai/hanzo-k8s/hanzo/chat";
const POSTGRES: &str = "spiffe://hanzo.ai/hanzo-k8s/hanzo/postgres";

/// A node whose mode can be changed, and which can be made to refuse that.
#[derive(Default)]
struct Node {
    observe_all: AtomicBool,
    resumed: AtomicBool,
    broken: AtomicBool,
}

impl NodeControl for Node {
    fn status(&self) -> BoxFuture<'_, NodeStatus> {
        Box::pin(async {
            let hook = HookStatus {
                program: "zt_connect4".to_owned(),
                attach_type: "cgroup_inet4_connect".to_owned(),
                cgroup: "kubepods.slice".to_owned(),
                attached: true,
                program_id: Some(5),
                link_id: Some(6),
            };
            NodeStatus {
                hooks: vec![hook],
                ..NodeStatus::default()
            }
        })
    }

    fn observe_all(&self, on: bool) -> BoxFuture<'_, Result<(), ControlError>> {
        Box::pin(async move {
            if self.broken.load(Ordering::SeqCst) {
                return Err(ControlError {
                    message: "zt_control cannot be written".to_owned(),
                });
            }
            self.observe_all.store(on, Ordering::SeqCst);
            Ok(())
        })
    }

    fn resume_rollout(&self, _caller: Arc<str>) -> BoxFuture<'_, Result<Option<String>, ControlError>> {
        Box::pin(async move {
            self.resumed.store(true, Ordering::SeqCst);
            Ok(Some("b".to_owned()))
        })
    }
}

/// A served agent without a kernel.
struct World {
    api: SocketAddr,
    health: SocketAddr,
    intake: Intake,
    node: Arc<Node>,
    readiness: watch::Sender<Readiness>,
    stopping: watch::Sender<bool>,
    snapshots: Arc<Publisher>,
    serving: tokio::task::JoinHandle<()>,
    state: ApiState,
    directory: TempDir,
}

impl World {
    /// Where policies are.
    fn policies(&self) -> std::path::PathBuf {
        self.directory.path().join("policies")
    }

    /// Does what the node thread does about policy: what comes to be on disk is put in force, or its problems are told.
    fn start_node(&self) {
        let settings = Settings::default();
        let (follower, _) = crate::policy_dir::follow(self.policies());
        let (sink, mut changes) = tokio::sync::mpsc::channel(1);
        let snapshots = Arc::clone(&self.snapshots);
        tokio::spawn(follower.run(sink));
        tokio::spawn(async move {
            while let Some(contents) = changes.recv().await {
                let parsed = contents
                    .0
                    .and_then(|documents| crate::policy::parse(&documents, &settings));
                snapshots.update(|next| match parsed {
                    Ok(policies) => {
                        let changed = policies.digest() != next.policies.digest();
                        next.revision += u64::from(changed);
                        let identities = next.table.identities().iter().cloned().collect();
                        let table = crate::policy::compile(&policies, &identities, &settings, next.revision);
                        next.table = Arc::new(table.expect("compiles"));
                        next.policies = Arc::new(policies);
                        next.policy_error = None;
                    }
                    Err(problems) => next.policy_error = Some(Arc::new(problems)),
                });
            }
        });
        tokio::spawn(record_changes(self.state.clone()));
    }
}

fn id(text: &str) -> SpiffeId {
    SpiffeId::parse(text).expect("id")
}

fn snapshot() -> Snapshot {
    let settings = Settings::default();
    let documents = [Document {
        file: "core.yaml".to_owned(),
        text: POLICY.to_owned(),
    }];
    let policies = crate::policy::parse(&documents, &settings).expect("valid policy");
    let identities: BTreeSet<SpiffeId> = [IAM, CHAT, POSTGRES].map(id).into();
    let table = crate::policy::compile(&policies, &identities, &settings, 7).expect("compiles");
    let record = WorkloadRecord {
        spiffe: id(POSTGRES),
        cgroup: "kubepods.slice/postgres".into(),
        cgroup_id: None,
        addresses: vec!["10.99.0.3".parse().expect("literal")],
        mode: Some(Mode::Enforce),
        pod: None,
    };
    let placed = Placed {
        record: Arc::new(record),
        cgroup_ids: vec![41, 42],
        mode: Mode::Enforce,
    };
    Snapshot {
        revision: 7,
        policies: Arc::new(policies),
        table: Arc::new(table),
        workloads: Arc::new(vec![placed]),
        ..Snapshot::default()
    }
}

async fn world() -> World {
    world_of(|policies| Editor::new(policies, Settings::default())).await
}

/// The same, whose policies are changed by this editor of the directory.
async fn world_of(editor: impl FnOnce(std::path::PathBuf) -> Editor) -> World {
    let directory = tempfile::tempdir().expect("directory");
    let settings = sqlite::Settings {
        dsn: format!("sqlite://{}/audit.db", directory.path().display()),
        max_disk_bytes: 1 << 30,
        retention_days: None,
        keys: None,
        sync: sqlite::Durability::default(),
    };
    let store = Store::open(settings).await.expect("store");
    world_in(directory, Archive::from(store), editor).await
}

/// The same, whose records are in this archive.
async fn world_in(
    directory: TempDir,
    archive: Archive,
    editor: impl FnOnce(std::path::PathBuf) -> Editor,
) -> World {
    std::fs::create_dir(directory.path().join("policies")).expect("mkdir");
    std::fs::write(directory.path().join("policies/core.yaml"), POLICY).expect("write");
    let store = Arc::new(archive);
    let metrics = Metrics::new();
    let (intake, recorder) = pipeline(
        Arc::clone(&store),
        Arc::new(NameBook::default()),
        Arc::clone(&metrics) as Arc<dyn pipeline::Tally>,
        pipeline::Settings::new("hanzo-k8s", "worker-3"),
    );
    tokio::spawn(recorder.run());
    let (snapshots, receiver) = crate::state::channel(snapshot());
    let policies_in_force = snapshots.policies();
    metrics.read_pipeline(Arc::clone(intake.stats()));
    metrics.read_snapshots(receiver.clone());
    let (readiness, ready) = watch::channel(Readiness::default());
    let (stopping, stop) = watch::channel(false);
    let node = Arc::new(Node::default());
    let state = ApiState::new(Parts {
        cluster: Arc::from("hanzo-k8s"),
        node: Arc::from("worker-3"),
        snapshots: receiver,
        policies_in_force,
        editor: editor(directory.path().join("policies")),
        kept: PolicyStore::Directory,
        told_policies: Copies::beside(&directory.path().join("audit.db")),
        store,
        intake: intake.clone(),
        metrics,
        control: Arc::clone(&node) as Arc<dyn NodeControl>,
        readiness: ready,
        stopping: stop.clone(),
        service: Service::Node,
        source: None,
        spire: None,
        configuration: watch::channel(Arc::default()).1,
        kubernetes: None,
        peers: None,
        stopped_elsewhere: None,
        started: crate::audit::clock::now(),
    });
    let guard = Arc::new(Guard::new(NonZeroU32::MAX, Metrics::new()));
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let api = bind_api(any, None).await.expect("binds");
    let health = bind_health(any).await.expect("binds");
    let (api_address, health_address) = (api.address().expect("TCP"), health.address().expect("TCP"));
    tokio::spawn(health.serve(health_router(state.clone()), None, stop.clone()));
    let serving = tokio::spawn(api.serve(router(state.clone()), Some(guard), stop));
    World {
        api: api_address,
        health: health_address,
        intake,
        node,
        readiness,
        stopping,
        snapshots: Arc::new(snapshots),
        serving,
        state,
        directory,
    }
}

/// An answer, as it came over the wire.
struct Reply {
    status: u16,
    head: String,
    body: String,
}

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// The code of a problem, whose form is checked.
    fn code(&self) -> String {
        assert!(
            self.head.contains("content-type: application/problem+json"),
            "{}",
            self.head
        );
        let value = self.json();
        assert_eq!(value["status"], json!(self.status));
        assert!(
            value["errors"].is_array() && value["detail"].is_string() && value["title"].is_string(),
            "{value}"
        );
        value["code"].as_str().expect("code").to_owned()
    }
}

/// Sends `request` as it is and reads until the other side closes.
async fn raw(to: SocketAddr, request: &[u8]) -> Reply {
    let mut stream = TcpStream::connect(to).await.expect("connects");
    // The server may answer and close before it has read all.
    let _ = stream.write_all(request).await;
    let mut bytes = Vec::new();
    let read = stream.read_to_end(&mut bytes);
    let _ = tokio::time::timeout(Duration::from_secs(20), read)
        .await
        .expect("answers");
    let text = String::from_utf8(bytes).expect("text");
    let (head, body) = text
        .split_once("\r\n\r\n")
        .unwrap_or_else(|| panic!("no head in {text:?}"));
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .expect("status");
    Reply {
        status,
        head: head.to_ascii_lowercase(),
        body: body.to_owned(),
    }
}

async fn get(to: SocketAddr, path: &str) -> Reply {
    raw(
        to,
        format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").as_bytes(),
    )
    .await
}

async fn post(to: SocketAddr, path: &str, body: &str) -> Reply {
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    raw(to, format!("{head}{body}").as_bytes()).await
}

/// A request with a body of a type and further headers, each ended by a line feed.
async fn send(to: SocketAddr, method: &str, path: &str, headers: &str, body: &str) -> Reply {
    let headers = headers.replace('\n', "\r\n");
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}Content-Length: {}\r\n\r\n",
        body.len()
    );
    raw(to, format!("{head}{body}").as_bytes()).await
}

const YAML: &str = "Content-Type: application/yaml\n";

fn question(source: &str, destination: &str, port: u16) -> Value {
    json!({ "source": { "spiffe_id": source }, "destination": { "spiffe_id": destination, "port": port } })
}
