// SPDX-License-Identifier: Apache-2.0
//! Policy engines that share a directory, and nodes that follow them: real engine processes, no privilege.

mod crowd;
mod ending;
mod graph;
mod interrupted;
mod kept;
mod lies;
mod many;
mod metrics;
mod node;
mod operators;
mod rollout;
mod secrets;
mod tls;
mod world;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use serde_json::{Value, json};
use zt_agent::cli::client::ClientError;
use zt_agent::policy_follow::COPY;

use node::{Node, settings};
use world::{Engine, Shared, eventually, policy};

#[tokio::test(flavor = "multi_thread")]
async fn three_engines_and_two_nodes_converge_through_crashes() {
    let shared = Shared::new();
    let (mut one, two, three) = tokio::join!(shared.engine("e1"), shared.engine("e2"), shared.engine("e3"));
    let a = Node::start(settings(&one.url(), "node-a", &shared.below("a")))
        .await
        .expect("starts");
    let b = Node::start(settings(&two.url(), "node-b", &shared.below("b")))
        .await
        .expect("starts");
    let first = one.digest().await.expect("digest");
    assert_eq!([a.digest(), b.digest()], [first.clone(), first]);

    for (engine, name) in [(&one, "by-one"), (&two, "by-two"), (&three, "by-three")] {
        let changed = engine
            .put(name, &policy(name, &[1]), None)
            .await
            .expect("committed");
        let digest = changed["digest"].as_str().expect("digest");
        for engine in [&one, &two, &three] {
            engine.has(digest).await;
        }
        a.has(digest).await;
        b.has(digest).await;
        // What is on the node is what a start without the engine will have.
        eventually("the copy on disk", || async {
            let text = fs::read_to_string(shared.below("a").join(COPY)).ok()?;
            text.contains(digest).then_some(())
        })
        .await;
    }
    assert_eq!(
        fs::metadata(shared.below("a").join(COPY)).expect("copy").mode() & 0o777,
        0o600
    );

    // Each engine tells of the nodes that it hears.
    let digest = one.digest().await.expect("digest");
    eventually("the report of the node", || async {
        let status = one.client().get("/v1/status", &[]).await.ok()?;
        assert_eq!(status["service"], "engine");
        let nodes = status["nodes"].as_array()?.clone();
        assert!(nodes.iter().all(|node| node["node"] == "node-a"), "{nodes:?}");
        let node = nodes.first()?;
        (node["digest"] == digest.as_str() && node["in_sync"] == true && node["revision"] == 4).then_some(())
    })
    .await;

    one.kill();
    a.becomes_stale().await;
    assert_eq!(a.digest(), digest, "the last good policy stays");
    let changed = three
        .put("core", &policy("core", &[5432, 5433]), None)
        .await
        .expect("committed");
    let newer = changed["digest"].as_str().expect("digest");
    b.has(newer).await;
    two.has(newer).await;
    assert!(!b.is_stale());
    assert!(a.is_stale() && a.digest() == digest);
    one.start().await;
    a.has(newer).await;
    assert!(a.status.borrow().failures > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_engine_a_node_starts_with_what_it_had() {
    let shared = Shared::new();
    let mut engine = shared.engine("e1").await;
    let home = shared.below("node");
    let options = || settings(&engine.url(), "node", &home);
    let url = engine.url();
    let node = Node::start(options()).await.expect("starts");
    let digest = node.digest();
    eventually("the copy", || async { home.join(COPY).exists().then_some(()) }).await;
    drop(node);
    engine.kill();

    let options = || settings(&url, "node", &home);
    let node = Node::start(options()).await.expect("starts from the copy");
    assert_eq!(node.digest(), digest);
    assert!(node.is_stale());
    let error = node.status.borrow().error.clone().expect("says why");
    assert!(error.contains("cannot be reached"), "{error}");
    engine.start().await;
    node.has(&digest).await;
    drop(node);
    engine.kill();

    // One byte of a rule: the copy is no longer what was in force.
    let text = fs::read_to_string(home.join(COPY)).expect("copy");
    assert!(text.contains("5432"), "{text}");
    for (damage, why) in [
        (text.replace("5432", "5433"), "digest"),
        (text[..text.len() / 2].to_owned(), "damaged"),
        (String::new(), "damaged"),
        (text.replace("\"format\":1", "\"format\":2"), "format"),
    ] {
        fs::write(home.join(COPY), damage).expect("write");
        let error = Node::start(options())
            .await
            .err()
            .expect("nothing to start with")
            .to_string();
        assert!(
            error.contains(why) && error.contains("cannot be reached"),
            "{error}"
        );
    }
    fs::write(home.join(COPY), &text).expect("write");
    fs::set_permissions(home.join(COPY), fs::Permissions::from_mode(0o666)).expect("chmod");
    let error = Node::start(options())
        .await
        .err()
        .expect("anybody could have written it")
        .to_string();
    assert!(error.contains("nobody else may write"), "{error}");
    fs::remove_file(home.join(COPY)).expect("remove");
    let error = Node::start(options())
        .await
        .err()
        .expect("nothing at all")
        .to_string();
    assert!(error.contains("no last good policy"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_changes_at_three_engines_lose_nothing() {
    const EACH: u16 = 12;
    let shared = Shared::new();
    shared.write("shared", &policy("shared", &[]));
    let (one, two, three) = tokio::join!(shared.engine("e1"), shared.engine("e2"), shared.engine("e3"));
    let engines = [&one, &two, &three];
    let work = |number: u16| {
        let engine = engines[usize::from(number)];
        async move {
            let (mut acknowledged, mut refused, mut made) = (Vec::new(), 0, Vec::new());
            for step in 0..EACH {
                // A policy of one's own: nobody else touches it, and nothing may refuse it.
                let name = format!("own-{number}-{step}");
                let answer = engine.put(&name, &policy(&name, &[1]), None).await;
                made.push(answer.expect("committed"));
                // A policy of all: read, changed, written only if it is still what was read.
                let port = 1000 * (number + 1) + step;
                let seen = engine
                    .client()
                    .get("/v1/policies/shared", &[])
                    .await
                    .expect("there");
                let mut ports = ports(&seen);
                ports.push(port);
                match engine
                    .put("shared", &policy("shared", &ports), seen["etag"].as_str())
                    .await
                {
                    Ok(answer) => {
                        acknowledged.push(port);
                        made.push(answer);
                    }
                    Err(ClientError::Refused { status, .. }) if status == 412 => refused += 1,
                    Err(error) => panic!("{error}"),
                }
            }
            (acknowledged, refused, made)
        }
    };
    let outcomes: [(Vec<u16>, u16, Vec<Value>); 3] = tokio::join!(work(0), work(1), work(2)).into();

    let acknowledged: BTreeSet<u16> = outcomes.iter().flat_map(|(ports, ..)| ports.clone()).collect();
    let refused: u16 = outcomes.iter().map(|(_, refused, _)| refused).sum();
    let made = outcomes.map(|(_, _, made)| made);
    assert_eq!(acknowledged.len() as u16 + refused, 3 * EACH);
    assert!(!acknowledged.is_empty());
    let digest = &end_of_the_chain(&made);
    for engine in engines {
        engine.has(digest).await;
    }
    // What is on disk is what all have: a restart reads the same.
    let late = shared.engine("late").await;
    late.has(digest).await;
    for engine in [&one, &two, &three, &late] {
        let found = engine
            .client()
            .get("/v1/policies/shared", &[])
            .await
            .expect("there");
        assert_eq!(ports(&found).into_iter().collect::<BTreeSet<_>>(), acknowledged);
        let all = engine.client().get("/v1/policies", &[]).await.expect("answer");
        assert_eq!(
            all["policies"].as_array().expect("list").len(),
            2 + 3 * usize::from(EACH)
        );
    }
    for (engine, made) in engines.into_iter().zip(&made) {
        is_on_record(engine, made, &shared).await;
    }
}

/// All changes are one chain: each was made of what the one before left. Its end is the digest that all come to have.
fn end_of_the_chain(made: &[Vec<Value>; 3]) -> String {
    let all = || made.iter().flatten();
    let before: BTreeSet<&str> = all().map(|answer| text(&answer["diff"]["from"])).collect();
    let after: BTreeSet<&str> = all().map(|answer| text(&answer["digest"])).collect();
    assert_eq!(before.len(), all().count(), "nobody's was overwritten");
    let ends: Vec<&str> = after.difference(&before).copied().collect();
    let [digest] = ends[..] else { panic!("{ends:?}") };
    digest.to_owned()
}

/// Each change is in the trail of the engine that made it, once, as that of who asked for it, from what it found to what
/// it made of that.
async fn is_on_record(engine: &Engine, made: &[Value], shared: &Shared) {
    let only = [("limit", "1000".to_owned()), ("type", "policy_change".to_owned())];
    let trail = engine.client().get("/v1/audit", &only).await.expect("trail");
    let records = trail["records"].as_array().expect("records");
    // Over loopback it is the user whose process asked.
    let user = format!("uid:{}", nix::unistd::getuid());
    for answer in made {
        let of_it: Vec<&Value> = records
            .iter()
            .filter(|record| {
                let change = &record["change"];
                change["from"] == answer["diff"]["from"] && change["to"] == answer["digest"]
            })
            .collect();
        let [record] = of_it[..] else {
            panic!("{} records of {answer} in {trail}", of_it.len())
        };
        assert_eq!(record["caller"], user, "{record}");
        assert_eq!(record["change"]["diff"]["added"], answer["diff"]["added"]);
    }
    // What the others made is told as what it is here: something that was found in the directory.
    let found = format!("directory {}", shared.policies().display());
    assert!(
        records.iter().all(|record| {
            let caller = text(&record["caller"]);
            caller.starts_with(&found) || caller == user
        }),
        "{trail}"
    );
}

fn text(value: &Value) -> &str {
    value.as_str().expect("text")
}

fn ports(policy: &Value) -> Vec<u16> {
    let rules = policy["document"]["spec"]["rules"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    rules
        .iter()
        .filter_map(|rule| rule["to"][0]["ports"][0].as_u64()?.try_into().ok())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_answers_records_and_ends_in_order() {
    let shared = Shared::new();
    let mut engine = shared.engine("e1").await;
    let client = engine.client();
    let question = json!({
        "source": {"spiffe_id": "spiffe://hanzo.ai/k8s/iam"},
        "destination": {"spiffe_id": "spiffe://hanzo.ai/k8s/postgres", "port": 5432, "protocol": "TCP"},
    });
    let answer = client.post("/v1/evaluate", &question).await.expect("answer");
    assert_eq!(
        (&answer["decision"], &answer["policy_matched"]),
        (&json!("ALLOW"), &json!("core/rule-1"))
    );
    let batch = client
        .post("/v1/evaluate", &json!({"requests": [question, question]}))
        .await
        .expect("answers");
    assert_eq!(batch["responses"].as_array().map(Vec::len), Some(2));
    eventually("the records", || async {
        let trail = client.get("/v1/audit", &[]).await.ok()?;
        (trail["records"].as_array()?.len() == 3).then_some(())
    })
    .await;
    // Break-glass is a matter of nodes.
    match client.post("/v1/mode", &json!({"mode": "observe"})).await {
        Err(ClientError::Refused { status, code, .. }) => {
            assert_eq!((status.as_u16(), code.as_deref()), (409, Some("no_kernel")));
        }
        other => panic!("{other:?}"),
    }
    let status = client.get("/v1/status", &[]).await.expect("status");
    assert_eq!(
        (&status["service"], &status["ready"], &status["hooks"]),
        (&json!("engine"), &json!(true), &json!([]))
    );
    assert!(
        client.get("/openapi.json", &[]).await.expect("document")["paths"]["/v1/revisions/stream"]
            .is_object()
    );
    // A file that somebody breaks changes nothing but what is said.
    let digest = engine.digest().await.expect("digest");
    shared.write("broken", "apiVersion: zt.hanzo.ai/v1\nkind: Nonsense\n");
    eventually("the error", || async {
        let answer = client.get("/v1/policies", &[]).await.ok()?;
        (!answer["errors"].as_array()?.is_empty() && answer["digest"] == digest.as_str()).then_some(())
    })
    .await;
    let mut feed = client.events("/v1/revisions/stream", &[]).await.expect("feed");
    let event = feed.next().await.expect("event").expect("one");
    assert!(
        event.name == "revision" && event.data.contains(&digest),
        "{event:?}"
    );
    // A feed does not hold up the end, and ends with it.
    assert!(engine.terminate().success(), "{}", engine.log());
    assert!(feed.next().await.expect("in order").is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_needs_no_privilege_and_refuses_what_cannot_be() {
    let shared = Shared::new();
    let engine = shared.engine("e1").await;
    let failed = |arguments: &[&str]| {
        let output = engine.command().args(arguments).output().expect("runs");
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let (code, text) = failed(&["--policy-source", "engine", "--engine-url", "http://127.0.0.1:1"]);
    assert!(
        code == Some(64) && text.contains("only nodes follow an engine"),
        "{code:?} {text}"
    );
    shared.write("bad", "kind: Nonsense\n");
    let (code, text) = failed(&[]);
    assert!(code == Some(64) && text.contains("bad.yaml"), "{code:?} {text}");
    fs::remove_file(shared.policies().join("bad.yaml")).expect("remove");
    let (code, text) = failed(&[]);
    assert!(
        code == Some(1) && text.contains("cannot listen on"),
        "{code:?} {text}"
    );

    if !nix::unistd::geteuid().is_root() {
        return;
    }
    // As root, the other tests have shown nothing about privileges: as nobody.
    let nobody = 65534;
    fs::set_permissions(shared.directory.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
    for path in [
        shared.policies(),
        shared.below("nobody"),
        shared.policies().join("core.yaml"),
    ] {
        std::os::unix::fs::chown(path, Some(nobody), Some(nobody)).expect("chown");
    }
    let mut unprivileged = shared.engine_as("nobody", nobody).await;
    unprivileged
        .put("more", &policy("more", &[1]), None)
        .await
        .expect("committed");
    engine.has(&unprivileged.digest().await.expect("digest")).await;
    assert!(unprivileged.terminate().success());
}
