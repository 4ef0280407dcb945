// SPDX-License-Identifier: Apache-2.0
//! Policies that a Kubernetes cluster keeps: engine and agent follow its resources, and their status says what came of
//! them.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use zt_tests::{Agent, Engine, KubeApi, Party, Sandbox, Scene, eventually, http, spiffe, wait_for};

const POLICIES: &str = "/apis/zt.hanzo.ai/v1/serviceaccesspolicies";
const OPERATORS: &str = "/apis/zt.hanzo.ai/v1/operatoraccesspolicies";
const ROLLOUTS: &str = "/apis/zt.hanzo.ai/v1/enforcementrollouts";
const PATIENCE: Duration = Duration::from_secs(30);

fn policy(name: &str, ports: &[u16]) -> Value {
    let to = json!({"spiffe": spiffe("server"), "ports": ports});
    let rules = match ports {
        [] => json!([]),
        _ => json!([{"from": {"spiffe": spiffe("client")}, "to": [to]}]),
    };
    json!({
        "apiVersion": "zt.hanzo.ai/v1", "kind": "ServiceAccessPolicy",
        "metadata": {"name": name}, "spec": {"rules": rules},
    })
}

fn on_call() -> Value {
    json!({
        "apiVersion": "zt.hanzo.ai/v1", "kind": "OperatorAccessPolicy", "metadata": {"name": "on-call"},
        "spec": {"rules": [{"role": "sre", "targets": [{"service": "postgres", "actions": ["read"]}]}]},
    })
}

struct World {
    scene: Scene,
    api: KubeApi,
    agent: Agent,
    client: Party,
    server: Party,
}

fn world(label: &str) -> Result<World> {
    let (scene, server, client) = Scene::served(label, &[80, 81])?;
    let api = KubeApi::start()?;
    api.put(POLICIES, policy("web", &[80]));
    api.put(OPERATORS, on_call());
    let kubeconfig = api.kubeconfig(scene.sandbox().directory())?;
    let agent = scene
        .workloads()
        .into_iter()
        .fold(scene.sandbox().agent()?.mode("enforce"), |agent, workload| {
            agent.workload(workload)
        });
    let agent = agent
        .env("ZT_POLICY_SOURCE", "kubernetes")
        .env("ZT_KUBECONFIG", &kubeconfig.display().to_string())
        .start()?;
    Ok(World {
        scene,
        api,
        agent,
        client,
        server,
    })
}

impl World {
    fn engine(&self) -> Result<Engine> {
        let directory = self.scene.sandbox().directory();
        let mut engine = Engine::new(self.scene.sandbox(), "engine", directory)?
            .config("policySource", json!("kubernetes"))
            .config("kubernetes", json!({"kubeconfig": directory.join("kubeconfig")}));
        engine.start()?;
        Ok(engine)
    }

    fn becomes(&mut self, port: u16, outcome: &str) -> Result<()> {
        let (client, to) = (&mut self.client, self.server.v4(port));
        eventually(&format!("port {port} to become {outcome}"), PATIENCE, || {
            Ok(client.tcp(to)? == outcome)
        })
    }

    /// Waits for a condition of a resource's status; its reason and message.
    fn condition(&self, name: &str, kind: &str, status: &str) -> Result<(String, String)> {
        wait_for(&format!("{name} to be {kind}={status}"), PATIENCE, || {
            let object = self.api.get(POLICIES, "", name).context("it is there")?;
            let all = object["status"]["conditions"]
                .as_array()
                .cloned()
                .unwrap_or_default();
            let found = all
                .into_iter()
                .find(|condition| condition["type"] == kind && condition["status"] == status);
            let current =
                found.filter(|condition| condition["observedGeneration"] == object["metadata"]["generation"]);
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            Ok(current.map(|condition| (text(&condition["reason"]), text(&condition["message"]))))
        })
    }
}

#[test]
fn what_the_cluster_says_is_in_force_and_its_status_says_so() -> Result<()> {
    let mut world = world("crds")?;
    world.becomes(80, "ok")?;
    ensure!(world.client.tcp(world.server.v4(81))? == "EPERM");
    let engine = world.engine()?;
    ensure!(
        engine.digest()? == world.agent.get("/v1/policies")?["digest"],
        "the same digest as a node"
    );
    ensure!(engine.get("/v1/policies")?["policies"][0]["store"] == "kubernetes");
    world.condition("web", "Accepted", "True")?;
    world.condition("web", "InForce", "True")?;
    let object = world.api.get(POLICIES, "", "web").context("there")?;
    let policies = engine.get("/v1/policies")?;
    let web = policies["policies"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|policy| policy["name"] == "web");
    ensure!(
        object["status"]["digest"] == web.context("in force")?["etag"],
        "{object}"
    );

    // Another version.
    world.api.put(POLICIES, policy("web", &[81]));
    world.becomes(81, "ok")?;
    world.becomes(80, "EPERM")?;
    // One that is not valid holds everything back, and says why.
    let mut bad = policy("bad", &[80]);
    bad["spec"]["rules"][0]["actoin"] = json!("DENY");
    world.api.put(POLICIES, bad);
    let (reason, message) = world.condition("bad", "Accepted", "False")?;
    ensure!(
        reason == "Invalid" && message.contains("did you mean `action`?"),
        "{reason}: {message}"
    );
    world.api.put(POLICIES, policy("web", &[80, 81]));
    let (reason, message) = world.condition("web", "InForce", "False")?;
    ensure!(
        reason == "OthersInvalid" && message.contains("bad"),
        "{reason}: {message}"
    );
    world.condition("web", "Accepted", "True")?;
    ensure!(
        world.client.tcp(world.server.v4(80))? == "EPERM",
        "the last good one stays"
    );
    ensure!(world.client.tcp(world.server.v4(81))? == "ok");
    // Mended, and gone.
    world.api.delete(POLICIES, "", "bad");
    world.becomes(80, "ok")?;
    world.condition("web", "InForce", "True")?;
    // Nothing is written while nothing happens: the version stays what it is.
    let before = world.api.version();
    let revision = world.agent.revision()?;
    world.api.put(POLICIES, policy("more", &[]));
    world.condition("more", "InForce", "True")?;
    world.agent.wait_revision_after(revision)?;
    let changes = world.api.version() - before;
    ensure!(changes <= 4, "{changes} changes for one policy and its status");
    // All of them gone is no policy: the last one stays.
    for (collection, name) in [(POLICIES, "web"), (POLICIES, "more"), (OPERATORS, "on-call")] {
        world.api.delete(collection, "", name);
    }
    world.agent.wait_policies("the error to be told", |policies| {
        policies["errors"]
            .to_string()
            .contains("the cluster has no policy")
    })?;
    ensure!(
        world.client.tcp(world.server.v4(80))? == "EPERM" || world.client.tcp(world.server.v4(80))? == "ok"
    );
    Ok(())
}

#[test]
fn a_change_over_the_api_is_a_change_of_the_resource() -> Result<()> {
    let mut world = world("crd-put")?;
    let engine = world.engine()?;
    let put = |name: &str, query: &str, document: &Value| {
        let path = format!("/v1/policies/{name}{query}");
        http::request(engine.api(), "PUT", &path, Some(&document.to_string()))
    };
    let answer = put("web", "?dry_run=true", &policy("web", &[81]))?
        .success()?
        .json()?;
    ensure!(
        answer["dry_run"] == true && answer["diff"]["added"][0].is_object(),
        "{answer}"
    );
    ensure!(world.api.get(POLICIES, "", "web").context("there")?["spec"] == policy("web", &[80])["spec"]);
    // Labels of the resource are not the document's, and stay.
    world.api.edit(POLICIES, "", "web", |object| {
        object["metadata"]["labels"] = json!({"team": "web"});
    });
    put("web", "", &policy("web", &[81]))?.success()?;
    let object = world.api.get(POLICIES, "", "web").context("there")?;
    ensure!(
        object["spec"]["rules"][0]["to"][0]["ports"] == json!([81]),
        "{object}"
    );
    ensure!(object["metadata"]["labels"] == json!({"team": "web"}), "{object}");
    world.becomes(81, "ok")?;
    put("new", "", &policy("new", &[80]))?.success()?;
    ensure!(world.api.get(POLICIES, "", "new").is_some());
    world.becomes(80, "ok")?;
    let invalid = put("web", "", &json!({"kind": "ServiceAccessPolicy"}))?;
    ensure!(invalid.status == 422, "{}", invalid.status);
    // The name is another kind's.
    let other = put("on-call", "", &policy("on-call", &[80]))?;
    ensure!(other.status == 409, "{}", other.status);
    http::request(engine.api(), "DELETE", "/v1/policies/new", None)?.success()?;
    ensure!(world.api.get(POLICIES, "", "new").is_none());
    world.becomes(80, "EPERM")?;
    Ok(())
}

#[test]
fn the_first_policy_of_a_cluster_is_made_over_the_api_and_one_that_is_not_valid_blocks_no_other() -> Result<()>
{
    let sandbox = Sandbox::new("crd-first")?;
    let api = KubeApi::start()?;
    api.kubeconfig(sandbox.directory())?;
    let kubeconfig = sandbox.directory().join("kubeconfig");
    let mut engine = Engine::new(&sandbox, "engine", sandbox.directory())?
        .config("policySource", json!("kubernetes"))
        .config("kubernetes", json!({"kubeconfig": kubeconfig}));
    engine.start()?;
    let ask = |method: &str, name: &str, document: Option<&Value>| {
        let path = format!("/v1/policies/{name}");
        let document = document.map(ToString::to_string);
        http::request(engine.api(), method, &path, document.as_deref())
    };
    let errors = || Ok::<_, anyhow::Error>(engine.get("/v1/policies")?["errors"].to_string());
    eventually("the engine to say that there is none", PATIENCE, || {
        Ok(errors()?.contains("the cluster has no policy"))
    })?;
    let first = ask("PUT", "web", Some(&policy("web", &[80])))?
        .success()?
        .json()?;
    ensure!(first["created"] == true && first["in_force"] == true, "{first}");
    ensure!(api.get(POLICIES, "", "web").is_some() && errors()? == "[]");

    let mut bad = policy("bad", &[80]);
    bad["spec"]["rules"][0]["actoin"] = json!("DENY");
    api.put(POLICIES, bad);
    eventually("the engine to see it", PATIENCE, || {
        Ok(errors()?.contains("actoin"))
    })?;
    let held = ask("PUT", "web", Some(&policy("web", &[81])))?;
    ensure!(held.status == 202, "{}", held.status);
    let held = held.json()?;
    ensure!(
        held["in_force"] == false && held["errors"].to_string().contains("actoin"),
        "{held}"
    );
    let object = api.get(POLICIES, "", "web").context("there")?;
    ensure!(
        object["spec"]["rules"][0]["to"][0]["ports"] == json!([81]),
        "{object}"
    );
    ensure!(ask("PUT", "more", Some(&policy("more", &[])))?.status == 202);
    ensure!(ask("DELETE", "more", None)?.status == 202);
    // Mended in its place, all of it comes into force.
    let mended = ask("PUT", "bad", Some(&policy("bad", &[82])))?
        .success()?
        .json()?;
    ensure!(
        mended["created"] == false && mended["in_force"] == true,
        "{mended}"
    );
    let all = engine.get("/v1/policies")?;
    ensure!(
        all["errors"] == json!([]) && all["policies"].as_array().map(Vec::len) == Some(2),
        "{all}"
    );
    ensure!(
        all.to_string().contains("81") && all.to_string().contains("82"),
        "{all}"
    );
    Ok(())
}

#[test]
fn without_the_api_the_last_good_policy_stays_also_for_the_next_agent() -> Result<()> {
    let mut world = world("crd-away")?;
    world.becomes(80, "ok")?;
    let copy = world.agent.files.audit().with_file_name("policy.json");
    eventually("the copy to be on disk", PATIENCE, || Ok(copy.exists()))?;
    world.api.stop();
    let agent = &world.agent;
    eventually("the policy to be called stale", PATIENCE, || {
        Ok(agent.get("/v1/status")?["policy"]["source"]["stale"] == true)
    })?;
    ensure!(world.client.tcp(world.server.v4(80))? == "ok");
    world.agent.kill()?;
    world.agent.restart()?;
    ensure!(world.client.tcp(world.server.v4(80))? == "ok");
    ensure!(world.client.tcp(world.server.v4(81))? == "EPERM");
    world.api.put(POLICIES, policy("web", &[81]));
    world.api.listen()?;
    world.becomes(81, "ok")?;
    let agent = &world.agent;
    eventually("the policy to be current", PATIENCE, || {
        Ok(agent.get("/v1/status")?["policy"]["source"]["stale"] == false)
    })
}

/// A rollout of the client, at its one stage or before that.
fn rollout(is_reached: bool) -> Value {
    let stages = json!([{"name": "client", "identities": [spiffe("client")]}]);
    let mut spec = json!({"defaultMode": "observe", "stages": stages});
    if is_reached {
        spec["stage"] = json!("client");
    }
    json!({
        "apiVersion": "zt.hanzo.ai/v1", "kind": "EnforcementRollout", "metadata": {"name": "to-enforcing"},
        "spec": spec,
    })
}

/// An agent that begins with the stage before ends what is open, though it goes back a moment later.
#[test]
fn a_rollout_that_went_back_beside_what_is_not_valid_is_back_for_the_next_agent() -> Result<()> {
    let mut world = world("crd-back")?;
    let copy = world.agent.files.audit().with_file_name("policy.json");
    let kept = |stage: &Value| {
        let read = || -> Result<Value> { Ok(serde_json::from_slice(&fs::read(&copy)?)?) };
        eventually("the copy to be at that stage", PATIENCE, || {
            let policies = read().unwrap_or_default()["policies"].clone();
            let all = policies.as_array().cloned().unwrap_or_default();
            let found = all.iter().find(|policy| policy["name"] == "to-enforcing");
            Ok(found.is_some_and(|policy| policy["document"]["spec"]["stage"] == *stage))
        })
    };
    world.api.put(ROLLOUTS, rollout(true));
    kept(&json!("client"))?;
    world.becomes(81, "EPERM")?;
    let before = fs::read(&copy)?;
    let mut bad = policy("bad", &[80]);
    bad["spec"]["rules"][0]["actoin"] = json!("DENY");
    world.api.put(POLICIES, bad);
    world
        .agent
        .wait_policies("the bad one to be told of", |policies| {
            policies["errors"].to_string().contains("actoin")
        })?;
    world.api.put(ROLLOUTS, rollout(false));
    world.becomes(81, "ok")?;
    let open = world.client.connect(world.server.v4(81))?.handle()?;
    kept(&Value::Null)?;

    let next = |world: &mut World, what: &str| -> Result<()> {
        world.agent.kill()?;
        world.agent.restart()?;
        let end = world.client.end(open, Duration::from_millis(100))?;
        ensure!(end == "alive", "{what}: what was open is {end}");
        ensure!(world.client.tcp(world.server.v4(81))? == "ok", "{what}");
        let answer = world.agent.get("/v1/rollout")?["rollout"].clone();
        ensure!(answer["in_force"].is_null(), "{what}: {answer}");
        Ok(())
    };
    next(&mut world, "with the API")?;
    // As it is where the agent ended before it could write.
    fs::write(&copy, before)?;
    next(&mut world, "with the API and an older copy")?;
    kept(&Value::Null)?;
    world.api.stop();
    next(&mut world, "without the API")?;
    // And where all is valid, on it goes.
    world.api.delete(POLICIES, "", "bad");
    world.api.put(ROLLOUTS, rollout(true));
    world.api.listen()?;
    world.becomes(81, "EPERM")?;
    world.client.dies(open)
}
