// SPDX-License-Identifier: Apache-2.0
//! A rollout that a Kubernetes cluster keeps: its status says which nodes stopped, and all who take it from there go by that.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use zt_agent::audit::clock;
use zt_agent::audit::record::Timestamp;
use zt_agent::policy::{Document, Settings, parse};
use zt_tests::agent::DEADLINE;
use zt_tests::{Engine, KubeApi, Policy, Scene, http, spiffe, wait_for};

use super::{cli, error_of, json_of, stage};

const POLICIES: &str = "/apis/zt.hanzo.ai/v1/serviceaccesspolicies";
const ROLLOUTS: &str = "/apis/zt.hanzo.ai/v1/enforcementrollouts";
const NAME: &str = "to-enforcing";

/// At the first of its two stages.
fn rollout() -> Value {
    json!({
        "apiVersion": "zt.hanzo.ai/v1", "kind": "EnforcementRollout", "metadata": { "name": NAME },
        "spec": { "stage": "chat", "stages": [stage("chat", "chat"), stage("iam", "iam")] },
    })
}

/// What its first stage says to nodes.
fn definition() -> Result<String> {
    let document = Document {
        file: "rollout.yaml".to_owned(),
        text: rollout().to_string(),
    };
    let settings = Settings::default();
    let set = parse(&[document], &settings).map_err(|problems| anyhow::anyhow!("{problems:?}"))?;
    Ok(set.rollout().context("a rollout")?.stages[0].digest())
}

/// A cluster that keeps the rollout, and a policy about who is there.
fn cluster(scene: &mut Scene) -> Result<KubeApi> {
    for name in ["chat", "iam"] {
        scene.workload(name)?;
    }
    let api = KubeApi::start()?;
    let rule =
        json!({ "from": { "spiffe": spiffe("chat") }, "to": [{ "spiffe": spiffe("iam"), "ports": [80] }] });
    api.put(
        POLICIES,
        json!({
            "apiVersion": "zt.hanzo.ai/v1", "kind": "ServiceAccessPolicy", "metadata": { "name": "web" },
            "spec": { "rules": [rule] },
        }),
    );
    api.put(ROLLOUTS, rollout());
    Ok(api)
}

#[test]
fn who_takes_a_rollout_from_the_cluster_hears_which_nodes_stopped() -> Result<()> {
    let mut scene = Scene::new("rollout-cluster")?;
    let api = cluster(&mut scene)?;
    let kubernetes = json!({ "kubeconfig": api.kubeconfig(scene.sandbox().directory())? });
    let agent = scene
        .agent(&Policy::new("not-read"))?
        .mode("observe")
        .config("policySource", json!("kubernetes"))
        .config("kubernetes", kubernetes.clone())
        .start()?;
    let mut engine = Engine::new(scene.sandbox(), "engine", scene.sandbox().directory())?
        .config("policySource", json!("kubernetes"))
        .config("kubernetes", kubernetes);
    engine.start()?;
    let digest = engine.digest()?;
    let report = |stopped: &Value| -> Result<()> {
        let rollout = json!({ "name": NAME, "stage": "chat", "selects": ["iam"], "stopped": stopped });
        let body = json!({ "revision": 1, "digest": digest, "rollout": rollout }).to_string();
        let told = http::request(engine.api(), "PUT", "/v1/nodes/worker-7", Some(&body))?;
        ensure!(told.status == 204, "{}", told.body);
        Ok(())
    };
    // It holds at its stage: that is in force there.
    report(&json!({
        "stage": "chat", "definition": definition()?, "action": "hold", "cause": "denials", "denials": 5,
        "per_minute": 4, "attempts": 9, "attempts_per_minute": 20, "at": "2026-03-02T09:10:45Z",
    }))?;
    let said = |wanted: &str, holds: &dyn Fn(&Value) -> bool| {
        wait_for(wanted, DEADLINE, || {
            let object = api.get(ROLLOUTS, "", NAME).context("the rollout")?;
            let own = object["status"]["engines"][0].clone();
            Ok(Some(own).filter(|own| own["name"] == "engine" && holds(own)))
        })
    };
    let own = said("the status to say who stopped", &|own| own["nodesStopped"] == 1)?;
    assert_eq!((&own["nodes"], &own["nodesInForce"]), (&json!(1), &json!(1)));
    let stopped = &own["stopped"][0];
    assert_eq!(
        (
            &stopped["node"],
            &stopped["action"],
            &stopped["attemptsPerMinute"]
        ),
        (&json!("worker-7"), &json!("hold"), &json!(20))
    );

    // An agent that takes it from there: nobody has told it but the cluster.
    let node = wait_for("the agent to hear it", DEADLINE, || {
        let node = agent.get("/v1/rollout")?["nodes"][0].clone();
        Ok(Some(node).filter(|node| node["state"] == "stopped"))
    })?;
    assert_eq!(
        (&node["node"], &node["engine"], &node["in_force"]),
        (&json!("worker-7"), &json!("engine"), &json!("chat"))
    );
    let error = error_of(&agent, &["advance"], 1)?;
    ensure!(
        error.contains("worker-7: at `chat` (hold), for 5 different connections"),
        "{error}"
    );
    let shown = String::from_utf8(cli(&agent, &["status"])?.stdout)?;
    ensure!(
        shown.contains("worker-7") && shown.contains("by engine"),
        "{shown}"
    );
    let object = api.get(ROLLOUTS, "", NAME).context("the rollout")?;
    assert_eq!(object["spec"]["stage"], "chat");

    // It goes on, and so does the rollout.
    report(&Value::Null)?;
    said("the status to say that nobody has", &|own| {
        own["stopped"].is_null()
    })?;
    wait_for("the agent to hear that", DEADLINE, || {
        let nodes = agent.get("/v1/rollout")?["nodes"].clone();
        Ok((nodes == json!([])).then_some(()))
    })?;
    assert_eq!(json_of(&agent, &["advance"])?["to"], "iam");
    let object = api.get(ROLLOUTS, "", NAME).context("the rollout")?;
    assert_eq!(object["spec"]["stage"], "iam");
    Ok(())
}

#[test]
fn a_rollout_does_not_go_on_while_a_node_is_silent_that_nobody_hears() -> Result<()> {
    let mut scene = Scene::new("rollout-silent")?;
    let api = cluster(&mut scene)?;
    let agent = scene
        .agent(&Policy::new("not-read"))?
        .mode("observe")
        .config("policySource", json!("kubernetes"))
        .config(
            "kubernetes",
            json!({ "kubeconfig": api.kubeconfig(scene.sandbox().directory())? }),
        )
        .start()?;
    let now = clock::now();
    let (reported, before) = (Timestamp(now), Timestamp(now - 300_000_000_000));
    let missed = |node: &str| json!({ "node": node, "heard": before });
    let said = |name: &str, field: &str, nodes: &[&str]| {
        let nodes: Vec<Value> = nodes.iter().map(|node| missed(node)).collect();
        let mut engine = json!({ "name": name, "nodes": 2, "nodesInForce": 0, "reported": reported });
        engine[field] = nodes.into();
        engine
    };
    // The second has gone over to another engine, which hears it.
    let first = said("engine-1", "silent", &["worker-1", "worker-2"]);
    let second = said("engine-2", "heard", &["worker-2"]);
    let tell = |engines: &[&Value]| -> Result<()> {
        let changed = api.edit(ROLLOUTS, "", NAME, |object| {
            object["status"] = json!({ "engines": engines });
        });
        ensure!(changed, "the rollout");
        Ok(())
    };
    tell(&[&first, &second])?;
    let node = wait_for("the agent to hear it", DEADLINE, || {
        let nodes = agent.get("/v1/rollout")?["nodes"].clone();
        Ok(nodes
            .as_array()
            .filter(|nodes| nodes.len() == 1)
            .map(|nodes| nodes[0].clone()))
    })?;
    assert_eq!(
        (&node["node"], &node["state"], &node["in_force"], &node["engine"]),
        (
            &json!("worker-1"),
            &json!("silent"),
            &Value::Null,
            &json!("engine-1")
        )
    );
    let since = node["heard"].as_str().context("since when")?;
    let error = error_of(&agent, &["advance"], 1)?;
    ensure!(
        error.contains(&format!("worker-1: since {since} by engine-1")) && !error.contains("worker-2"),
        "{error}"
    );
    let failed = cli(&agent, &["status", "--fail"])?;
    let shown = String::from_utf8(failed.stdout)?;
    ensure!(
        failed.status.code() == Some(1) && shown.contains("1: 1 silent"),
        "{shown}"
    );
    let reached = || -> Result<Value> {
        let object = api.get(ROLLOUTS, "", NAME).context("the rollout")?;
        Ok(object["spec"]["stage"].clone())
    };
    assert_eq!(reached()?, "chat");

    // Whoever is forgotten is in nobody's way; nor is anybody for who says so.
    tell(&[&second])?;
    wait_for("the agent to hear that", DEADLINE, || {
        Ok((agent.get("/v1/rollout")?["nodes"] == json!([])).then_some(()))
    })?;
    assert_eq!(json_of(&agent, &["advance", "--dry-run"])?["to"], "iam");
    tell(&[&first])?;
    wait_for("the agent to hear both", DEADLINE, || {
        let nodes = agent.get("/v1/rollout")?["nodes"].clone();
        Ok(nodes.as_array().filter(|nodes| nodes.len() == 2).map(|_| ()))
    })?;
    assert_eq!(json_of(&agent, &["advance", "--force"])?["to"], "iam");
    assert_eq!(reached()?, "iam");
    Ok(())
}
