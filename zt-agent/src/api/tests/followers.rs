// SPDX-License-Identifier: Apache-2.0
//! What nodes that follow ask and tell.

use super::reach::report;
use super::*;
use crate::state::SourceStatus;

impl World {
    /// The parts of another agent, which has what this one has.
    pub(super) fn parts(&self) -> Parts {
        Parts {
            cluster: Arc::clone(&self.state.cluster),
            node: Arc::clone(&self.state.node),
            snapshots: self.state.snapshots.clone(),
            policies_in_force: Arc::default(),
            editor: self.state.editor.clone(),
            kept: PolicyStore::Directory,
            told_policies: self.state.told_policies.clone(),
            store: Arc::clone(&self.state.store),
            intake: self.intake.clone(),
            metrics: Arc::clone(&self.state.metrics),
            control: Arc::clone(&self.state.control),
            readiness: self.state.readiness.clone(),
            stopping: self.state.stopping.clone(),
            started: 0,
            service: Service::Node,
            source: None,
            spire: None,
            configuration: self.state.configuration.clone(),
            kubernetes: None,
            peers: None,
            stopped_elsewhere: None,
        }
    }

    /// Serves the API and the health of an agent of these parts.
    pub(super) async fn serve(&self, parts: Parts) -> [SocketAddr; 2] {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let (api, health) = (
            bind_api(any, None).await.expect("binds"),
            bind_health(any).await.expect("binds"),
        );
        let addresses = [api.address().expect("TCP"), health.address().expect("TCP")];
        let (state, guard) = (
            ApiState::new(parts),
            Arc::new(Guard::new(NonZeroU32::MAX, Metrics::new())),
        );
        tokio::spawn(health.serve(health_router(state.clone()), None, self.stopping.subscribe()));
        tokio::spawn(api.serve(router(state), Some(guard), self.stopping.subscribe()));
        addresses
    }
}

#[tokio::test]
async fn policies_that_are_known_are_not_sent_again() {
    let world = world().await;
    let all = get(world.api, "/v1/policies").await;
    let digest = all.json()["digest"].as_str().expect("digest").to_owned();
    assert!(all.head.contains(&format!("etag: \"{digest}\"")), "{}", all.head);
    let ask = async |tag: &str| {
        send(
            world.api,
            "GET",
            "/v1/policies",
            &format!("If-None-Match: {tag}\n"),
            "",
        )
        .await
    };
    let known = ask(&format!("\"{digest}\"")).await;
    assert_eq!((known.status, known.body.as_str()), (304, ""));
    assert_eq!(ask("\"other\"").await.status, 200);
    assert_eq!(ask("nonsense").await.code(), "invalid_precondition");
    // While there are errors, there is more to tell than the digest stands for.
    world
        .snapshots
        .update(|next| next.policy_error = Some(Arc::default()));
    let again = ask(&format!("\"{digest}\"")).await;
    assert!(
        again.status == 200 && !again.head.contains("etag"),
        "{}",
        again.head
    );
}

#[tokio::test]
async fn nodes_say_what_they_have() {
    let world = world().await;
    let digest = world.state.snapshot().policies.digest().to_owned();
    let told = report(world.api, "worker-1", &json!({"revision": 3, "digest": digest})).await;
    assert_eq!(told.status, 204, "{}", told.body);
    let old = json!({"revision": 2, "digest": "0".repeat(64)});
    assert_eq!(report(world.api, "worker%2F2", &old).await.status, 204);
    let status = get(world.api, "/v1/status").await.json();
    assert_eq!(
        (&status["service"], &status["policy"]["source"]),
        (&json!("node"), &Value::Null)
    );
    let nodes = status["nodes"].as_array().expect("list");
    let seen: Vec<_> = nodes
        .iter()
        .map(|node| (&node["node"], &node["in_sync"]))
        .collect();
    assert_eq!(
        seen,
        [
            (&json!("worker-1"), &json!(true)),
            (&json!("worker/2"), &json!(false))
        ]
    );
    for (node, body, code) in [
        ("n", json!({}), "invalid_body"),
        ("n", json!({"revision": 1, "digest": "zz"}), "invalid_report"),
        (
            "n",
            json!({"revision": 1, "digest": "A".repeat(64)}),
            "invalid_report",
        ),
        ("n", json!({"revision": -1, "digest": digest}), "invalid_body"),
        (
            "n",
            json!({"revision": 1_u64 << 63, "digest": digest}),
            "invalid_report",
        ),
        (
            "n",
            json!({"revision": 1, "digest": digest, "x": 1}),
            "invalid_body",
        ),
        ("a%20b", old.clone(), "invalid_report"),
        (&"n".repeat(254), old.clone(), "invalid_report"),
        ("%FF", old.clone(), "invalid_path"),
    ] {
        let reply = report(world.api, node, &body).await;
        assert_eq!(
            (reply.status, reply.code()),
            (400, code.to_owned()),
            "{node} {body}"
        );
    }
    let nodes = get(world.api, "/v1/status").await.json()["nodes"].clone();
    assert_eq!(nodes.as_array().map(Vec::len), Some(2));
}

#[tokio::test]
async fn a_node_that_follows_takes_no_changes_and_an_engine_no_mode() {
    let world = world().await;
    let (_sender, source) = watch::channel(SourceStatus::new("https://engine.example.org:8054", 0));
    let parts = |service, source: Option<_>| Parts {
        kept: match source {
            Some(_) => PolicyStore::Engine,
            None => PolicyStore::Directory,
        },
        service,
        source,
        ..world.parts()
    };
    let [node, health] = world.serve(parts(Service::Node, Some(source))).await;
    for method in ["PUT", "DELETE"] {
        let reply = send(node, method, "/v1/policies/hanzo-core-policy", YAML, POLICY).await;
        assert_eq!(
            (reply.status, reply.code()),
            (409, "policy_from_engine".to_owned())
        );
        assert!(
            reply.body.contains("https://engine.example.org:8054"),
            "{}",
            reply.body
        );
    }
    let listed = get(node, "/v1/policies").await.json();
    assert_eq!(listed["policies"][0]["store"], "engine");
    let source = get(node, "/v1/status").await.json()["policy"]["source"].clone();
    assert_eq!(
        (&source["url"], &source["stale"]),
        (&json!("https://engine.example.org:8054"), &json!(true))
    );
    world.readiness.send_modify(|ready| {
        ready.policy = true;
        ready.hooks = true;
    });
    let ready = get(health, "/readyz").await;
    assert!(
        ready.status == 200 && ready.body.contains("may be old"),
        "{}",
        ready.body
    );

    let [engine, _] = world.serve(parts(Service::Engine, None)).await;
    let reply = post(engine, "/v1/mode", r#"{"mode":"observe"}"#).await;
    assert_eq!((reply.status, reply.code()), (409, "no_kernel".to_owned()));
    assert!(!world.node.observe_all.load(Ordering::SeqCst));
}

#[tokio::test]
async fn a_copy_that_could_not_be_written_is_tried_again() {
    use crate::policy_follow::{COPY, PolicyFollower, Settings as Following};

    let world = world().await;
    let directory = tempfile::tempdir().expect("tempdir");
    let copy = directory.path().join(COPY);
    // Nothing can be renamed to that.
    std::fs::create_dir(&copy).expect("made");
    let following = Following {
        url: format!("http://{}", world.api),
        node: "worker-1".to_owned(),
        policy: Settings::default(),
        directory: directory.path().to_path_buf(),
        tls: None,
    };
    let start = PolicyFollower::start(following).await.expect("answered");
    let mut status = start.follower.status();
    let (_in_force, snapshots) = crate::state::channel(Snapshot {
        policies: Arc::new(start.policies),
        ..Snapshot::default()
    });
    let (sink, _documents) = tokio::sync::mpsc::channel(1);
    let running = tokio::spawn(start.follower.run(sink, snapshots));
    let failed = status.wait_for(|status| {
        status
            .refused
            .get("copy_not_written")
            .is_some_and(|count| *count > 0)
    });
    let failed = tokio::time::timeout(Duration::from_secs(60), failed).await;
    assert!(failed.is_ok_and(|failed| failed.is_ok()), "not told");
    // The policy is the same as before: it is kept all the same.
    std::fs::remove_dir(&copy).expect("removed");
    let kept = async {
        while !copy.is_file() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), kept)
        .await
        .expect("kept");
    running.abort();
}
