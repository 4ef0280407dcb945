// SPDX-License-Identifier: Apache-2.0
//! Who is where, by the words of a real API server.

use zt_tests::http;

use super::*;

const SERVICES: &str = "/api/v1/namespaces/shop/services";
const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices";

#[test]
fn a_pod_and_who_it_reaches_are_named_by_the_api() -> Result<()> {
    let world = World::new("apiserver-pods")?;
    world.put_far("server", "server")?;
    let agent = world.started()?;
    let uid = world.put_client("client")?;
    wait_pod(&agent, "client", CLIENT)?;
    // Known by its cgroup before anything runs in it: the first thing that it does comes out right.
    let cgroup = world.pod_cgroup(&uid)?;
    wait_cgroup(&agent, &cgroup)?;
    let mut client = world.start(&uid, "app")?;
    assert_eq!(connect(&mut client, world.far(OPEN))?, "ok");
    assert_eq!(connect(&mut client, world.far(MORE))?, "EPERM");
    let records = agent.wait_audit("decision=ALLOW&port=8000", LATER, |records| !records.is_empty())?;
    assert_eq!(records[0]["source"]["spiffe_id"], CLIENT);
    assert_eq!(records[0]["source"]["pod"], "shop/client");
    assert_eq!(records[0]["destination"]["spiffe_id"], SERVER);

    // A Service: the port of its address is decided by the port behind it.
    let web = |port| SocketAddr::new(WEB.into(), port);
    assert_eq!(connect(&mut client, web(OPEN))?, "EPERM", "it is nobody's yet");
    let ports = json!([
        { "name": "open", "port": OPEN, "targetPort": OPEN },
        { "name": "more", "port": MORE, "targetPort": MORE },
    ]);
    let service = world.cluster.create(
        SERVICES,
        &json!({ "metadata": { "name": "web" }, "spec": { "clusterIP": WEB, "ports": ports } }),
    )?;
    let owner = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "name": "web",
        "uid": service["metadata"]["uid"],
    });
    let slice = json!({
        "metadata": {
            "name": "web-1",
            "labels": { "kubernetes.io/service-name": "web" },
            "ownerReferences": [owner],
        },
        "addressType": "IPv4",
        "ports": [
            { "name": "open", "port": OPEN, "protocol": "TCP" },
            { "name": "more", "port": MORE, "protocol": "TCP" },
        ],
        "endpoints": [{ "addresses": [world.server.ipv4], "conditions": { "ready": true } }],
    });
    world.cluster.create(SLICES, &slice)?;
    becomes(&mut client, web(OPEN), "ok")?;
    assert_eq!(connect(&mut client, web(MORE))?, "EPERM");
    // Nobody is behind it any more.
    world.cluster.delete(&format!("{SLICES}/web-1"), 0)?;
    becomes(&mut client, web(OPEN), "EPERM")?;
    Ok(())
}

#[test]
fn an_address_is_never_its_former_pods() -> Result<()> {
    let world = World::new("apiserver-reuse")?;
    let agent = world.started()?;
    let uid = world.put_client("client")?;
    wait_pod(&agent, "client", CLIENT)?;
    let mut client = world.start(&uid, "app")?;
    becomes(&mut client, world.far(OPEN), "EPERM")?;
    for round in 0..3 {
        let server = format!("server-{round}");
        world.put_far(&server, "server")?;
        becomes(&mut client, world.far(OPEN), "ok")?;
        // Deleted, and another has its address: as soon as that one is known the old name is no more.
        world.remove(&server)?;
        world.put_far("thief", "thief")?;
        refused_as_thief(&agent, &mut client, world.far(OPEN))?;
        assert_eq!(connect(&mut client, world.far(OPEN))?, "EPERM");
        // While both have it, it is nobody's.
        world.put_far(&server, "server")?;
        wait_status(&agent, "a dispute", |status| status["disputed_addresses"] == 1)?;
        assert_eq!(connect(&mut client, world.far(OPEN))?, "EPERM");
        world.remove("thief")?;
        becomes(&mut client, world.far(OPEN), "ok")?;
        // Asked to end, it still has it; its kubelet has not said that it has ended.
        let events = |status: &Value| status["collections"]["pods"]["events"].as_u64();
        let heard = events(&agent.get("/v1/status")?["kubernetes"]);
        world.cluster.delete(&format!("{PODS}/{server}"), 3600)?;
        wait_status(&agent, "that to be heard", |status| events(status) > heard)?;
        assert_eq!(connect(&mut client, world.far(OPEN))?, "ok");
        world.status(&server, &json!({ "phase": "Succeeded" }))?;
        becomes(&mut client, world.far(OPEN), "EPERM")?;
        world.remove(&server)?;
    }
    Ok(())
}

#[test]
fn an_api_server_that_starts_again_changes_nothing_and_is_made_up_for() -> Result<()> {
    let mut world = World::new("apiserver-restart")?;
    world.put_far("server", "server")?;
    let uid = world.put_client("client")?;
    let agent = world.started()?;
    let mut client = world.start(&uid, "app")?;
    becomes(&mut client, world.far(OPEN), "ok")?;
    wait_status(&agent, "everything to be followed", |status| {
        status["stale"] == false
    })?;
    let revision = agent.revision()?;

    world.cluster.stop_server()?;
    wait_status(&agent, "staleness to be told", |status| status["stale"] == true)?;
    let ready = http::get(agent.health(), "/readyz")?.success()?.json()?;
    assert_eq!(ready["status"], "ready", "an old name is a name");
    assert_eq!(connect(&mut client, world.far(OPEN))?, "ok");
    assert_eq!(connect(&mut client, world.far(MORE))?, "EPERM");

    // Back with the same objects: nothing is different.
    world.cluster.start_server()?;
    wait_status(&agent, "freshness", |status| status["stale"] == false)?;
    assert_eq!(connect(&mut client, world.far(OPEN))?, "ok");
    assert_eq!(connect(&mut client, world.far(MORE))?, "EPERM");
    assert_eq!(agent.revision()?, revision, "policy is what it was");

    // Back, and things have happened before the agent hears anything: the kernel goes by what was known until then.
    world.cluster.stop_server()?;
    wait_status(&agent, "staleness to be told", |status| status["stale"] == true)?;
    agent.signal(nix::sys::signal::Signal::SIGSTOP)?;
    world.cluster.start_server()?;
    let all = json!({ "spec": policy("shop", &[OPEN.into(), MORE.into()])["spec"] });
    world.cluster.merge(&format!("{POLICIES}/shop"), &all)?;
    assert_eq!(connect(&mut client, world.far(OPEN))?, "ok");
    assert_eq!(connect(&mut client, world.far(MORE))?, "EPERM");
    agent.signal(nix::sys::signal::Signal::SIGCONT)?;
    becomes(&mut client, world.far(MORE), "ok")?;
    agent.signal(nix::sys::signal::Signal::SIGSTOP)?;
    world.remove("server")?;
    world.put_far("thief", "thief")?;
    world.cluster.stop_server()?;
    world.cluster.start_server()?;
    agent.signal(nix::sys::signal::Signal::SIGCONT)?;
    becomes(&mut client, world.far(OPEN), "EPERM")?;
    refused_as_thief(&agent, &mut client, world.far(OPEN))?;
    wait_status(&agent, "freshness", |status| status["stale"] == false)?;
    assert_eq!(connect(&mut client, world.far(MORE))?, "EPERM");
    Ok(())
}
