// SPDX-License-Identifier: Apache-2.0
//! The status of a policy counts the nodes that have it in force: nodes that follow an engine, over mutual TLS with SVIDs of
//! SPIRE, each believed about itself alone.

use std::fs;
use std::path::PathBuf;

use nix::sys::signal::Signal;
use zt_tests::Engine;
use zt_tests::spire::Spire;

use super::*;

const POLICIES: &str = "/apis/zt.hanzo.ai/v1/serviceaccesspolicies";
const ENGINE: &str = "spiffe://hanzo.ai/hanzo-k8s/zt-system/zt-policy-engine";

fn policy(port: u16) -> Value {
    let rule = json!({ "from": { "spiffe": CLIENT }, "to": [{ "spiffe": SERVER, "ports": [port] }] });
    json!({
        "apiVersion": "zt.hanzo.ai/v1",
        "kind": "ServiceAccessPolicy",
        "metadata": { "name": "shop" },
        "spec": { "rules": [rule] },
    })
}

/// A program that SPIRE tells from the agents by its path.
fn program_of_the_engine(world: &World) -> Result<PathBuf> {
    let path = world.sandbox.directory().join("zt-policy-engine");
    let binary = zt_tests::agent::binary()?;
    if fs::hard_link(&binary, &path).is_err() {
        fs::copy(&binary, &path)?;
    }
    Ok(path)
}

/// An engine on the cluster's policies, whose API is reached with SVIDs alone.
fn engine(world: &World, spire: &Spire) -> Result<Engine> {
    let program = program_of_the_engine(world)?;
    let path = format!("unix:path:{}", program.display());
    spire.register(ENGINE, &[&path], &["-dns", "localhost", "-hint", "zt"])?;
    let home = world.sandbox.directory().join("engine");
    let kubeconfig = world.api.kubeconfig(world.sandbox.directory())?;
    let mut engine = Engine::new(&world.sandbox, "engine", world.sandbox.directory())?;
    let callers = json!([{ "spiffe": format!("{}/nodes/*", Spire::delegate()), "role": "follow" }]);
    let api = json!({
        "listen": engine.api(),
        "health": engine.health(),
        "socket": home.join("agent.sock"),
        "tls": "spire",
        "callers": callers,
    });
    engine = engine
        .program(program)
        .config("policySource", json!("kubernetes"))
        .config("kubernetes", json!({ "kubeconfig": kubeconfig }))
        .config(
            "identity",
            json!({ "file": home.join("workloads.yaml"), "spireSocket": spire.socket() }),
        )
        .config("api", api);
    engine.start()?;
    Ok(engine)
}

fn agent(world: &World, spire: &Spire, engine: &Engine) -> Result<Agent> {
    let url = format!("https://localhost:{}", engine.api().port());
    let identity = json!({
        "source": ["spire", "kubernetes"],
        "spireAdminSocket": spire.admin_socket(),
        "spireSocket": spire.socket(),
    });
    world
        .agent()?
        .config("identity", identity)
        .config("policySource", json!("engine"))
        .config("engineUrl", json!(url))
        .env("ZT_API_TLS", "spire")
        .env("ZT_API_CALLERS", "spiffe://hanzo.ai/ops/*=read")
        .start()
}

/// Waits until the engine says of the policy that so many nodes follow, and so many have it in force.
fn wait_nodes(world: &World, nodes: u64, in_force: u64) -> Result<()> {
    let mut last = Value::Null;
    let done = wait_for(&format!("{in_force} of {nodes} nodes"), LATER, || {
        last = world.api.get(POLICIES, "", "shop").context("the policy")?["status"].clone();
        let engines = last["engines"].as_array().map_or(&[][..], Vec::as_slice);
        let said = engines.iter().any(|engine| {
            engine["name"] == "engine"
                && engine["nodes"].as_u64() == Some(nodes)
                && engine["nodesInForce"].as_u64() == Some(in_force)
        });
        Ok(said.then_some(()))
    });
    done.with_context(|| format!("last: {last}"))
}

#[test]
fn a_node_is_counted_that_says_under_its_own_name_what_is_in_force_there() -> Result<()> {
    let world = World::new("kube-in-force")?;
    world.api.put(POLICIES, policy(OPEN));
    let spire = Spire::start(Duration::from_secs(3600))?;
    let path = format!("unix:path:{}", zt_tests::agent::binary()?.display());
    spire.register(&Spire::delegate(), &[&path], &["-hint", "zt"])?;
    let node = format!("{}/nodes/{NODE}", Spire::delegate());
    let entry = spire.register(&node, &[&path], &["-hint", "zt-node"])?;
    let engine = engine(&world, &spire)?;
    let mut following = agent(&world, &spire, &engine)?;
    wait_nodes(&world, 1, 1)?;
    // What changes is in force there when the node says so, not before.
    following.signal(Signal::SIGSTOP)?;
    world.api.put(POLICIES, policy(OPEN + 1));
    wait_nodes(&world, 1, 0)?;
    following.signal(Signal::SIGCONT)?;
    wait_nodes(&world, 1, 1)?;
    following.terminate()?;
    drop(following);

    // One that shows the name of another node follows, and counts as neither.
    spire.unregister(&entry)?;
    let other = format!("{}/nodes/{OTHER}", Spire::delegate());
    spire.register(&other, &[&path], &["-hint", "zt-node"])?;
    let false_one = agent(&world, &spire, &engine)?;
    let says = |what: &str| {
        wait_for(&format!("it to say {what:?}"), LATER, || {
            Ok(false_one.log()?.contains(what).then_some(()))
        })
    };
    says(&format!("and not for `{NODE}`"))?;
    world.api.put(POLICIES, policy(OPEN + 2));
    says("policy in force")?;
    wait_nodes(&world, 1, 0)
}

#[test]
fn a_node_follows_on_when_the_certificates_of_both_ends_have_been_replaced() -> Result<()> {
    let world = World::new("kube-renewed")?;
    world.api.put(POLICIES, policy(OPEN));
    let spire = Spire::start(Duration::from_secs(12))?;
    let path = format!("unix:path:{}", zt_tests::agent::binary()?.display());
    spire.register(&Spire::delegate(), &[&path], &["-hint", "zt"])?;
    let node = format!("{}/nodes/{NODE}", Spire::delegate());
    spire.register(&node, &[&path], &["-hint", "zt-node"])?;
    let engine = engine(&world, &spire)?;
    let following = agent(&world, &spire, &engine)?;
    wait_nodes(&world, 1, 1)?;
    // At half of each one's life there is a next one: the first of them has expired by then.
    let own = |name: &str| -> Result<u64> { Ok(following.metrics()?.sum(name, &[])) };
    wait_for("four certificates of its own", LATER, || {
        Ok((own("zt_own_svid_renewals_total")? >= 4).then_some(()))
    })?;
    let before = own("zt_policy_revision")?;
    world.api.put(POLICIES, policy(OPEN + 1));
    wait_for("the next policy to be in force", LATER, || {
        Ok((own("zt_policy_revision")? > before).then_some(()))
    })?;
    wait_nodes(&world, 1, 1)?;
    let words = ready(&following)?;
    anyhow::ensure!(words["svid"].is_null() && words["stale"].is_null(), "{words}");
    assert!(own("zt_own_svid_expires_timestamp_seconds")? > 0);
    Ok(())
}
