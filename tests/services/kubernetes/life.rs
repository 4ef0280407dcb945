// SPDX-License-Identifier: Apache-2.0
//! Pods that come, go, and give their addresses to others.

use super::*;

#[test]
fn a_pod_is_somebody_before_its_first_process() -> Result<()> {
    World::with_each_driver("kube-birth", before_its_first_process)
}

fn before_its_first_process(world: &World) -> Result<()> {
    world.put_far("server", "server")?;
    let agent = world.agent()?.start()?;
    let client = world.put_client("client")?;
    let known = wait_pod(&agent, "client", Some(CLIENT))?;
    assert_eq!(known["cgroups"], json!([]), "there is no cgroup yet");
    assert_eq!(known["addresses"], json!([world.client.addresses()[0]]));
    let cgroup = world.pod_cgroup(&client)?;
    wait_cgroup(&agent, &cgroup)?;
    // Sandbox, init and ephemeral containers are in it like any other: the first thing that the first one does comes out right.
    let mut init = world.start(&client, "init")?;
    assert_eq!(world.connect(&mut init)?, "ok");
    let mut nested = world.start(&client, "init/nested")?;
    assert_eq!(world.connect(&mut nested)?, "ok");
    // A name like a pod's in a container is the container's business.
    let imitation = world.put_client("other")?;
    world.api.edit(PODS, "shop", "other", |pod| {
        pod["spec"]["serviceAccountName"] = json!("somebody");
    });
    wait_pod(&agent, "other", Some("spiffe://hanzo.ai/hanzo-k8s/shop/somebody"))?;
    let like_a_pod = world.pod_path(&imitation, Some("burstable"));
    let mut liar = world.start(&client, &format!("init/{like_a_pod}"))?;
    assert_eq!(world.connect(&mut liar)?, "ok");
    let records = agent.wait_audit("decision=ALLOW&port=8000", LATER, |records| records.len() >= 3)?;
    for record in records {
        assert_eq!(record["source"]["spiffe_id"], CLIENT);
        assert_eq!(record["destination"]["spiffe_id"], SERVER);
        assert_eq!(record["source"]["pod"], "shop/client");
    }
    // A cgroup of no pod is nobody's.
    let stranger = world.pod_cgroup("ffffffff-0000-4000-8000-000000000000")?;
    let mut stranger = world.sandbox.probe(&stranger, Some(&world.client))?;
    assert_eq!(world.connect(&mut stranger)?, "EPERM");
    Ok(())
}

#[test]
fn an_address_is_never_its_former_pods() -> Result<()> {
    World::with_each_driver("kube-reuse", never_its_former)
}

fn never_its_former(world: &World) -> Result<()> {
    let agent = world.agent()?.start()?;
    let client = world.put_client("client")?;
    wait_pod(&agent, "client", Some(CLIENT))?;
    let mut client = world.start(&client, "app")?;
    world.connects(&mut client, "EPERM")?;
    for round in 0..3 {
        let server = format!("server-{round}");
        world.put_far(&server, "server")?;
        world.connects(&mut client, "ok")?;
        // Deleted, and the address is another's in the same moment.
        world.api.delete(PODS, "shop", &server);
        world.put_far("thief", "thief")?;
        world.connects(&mut client, "EPERM")?;
        world.api.delete(PODS, "shop", "thief");
        // The other way round: as long as both have it, it is nobody's.
        world.put_far(&server, "server")?;
        world.connects(&mut client, "ok")?;
        world.put_far("thief", "thief")?;
        world.connects(&mut client, "EPERM")?;
        wait_status(&agent, "a dispute", |status| status["disputed_addresses"] == 1)?;
        world.api.delete(PODS, "shop", "thief");
        world.connects(&mut client, "ok")?;
        // It has ended, and is still in the API.
        world.api.edit(PODS, "shop", &server, |pod| {
            pod["status"]["phase"] = json!("Succeeded");
        });
        world.connects(&mut client, "EPERM")?;
        world.api.delete(PODS, "shop", &server);
    }
    // One that is about to end still has it.
    world.put_far("server", "server")?;
    world.connects(&mut client, "ok")?;
    let events = |status: &Value| status["collections"]["pods"]["events"].as_u64();
    let heard = events(&agent.get("/v1/status")?["kubernetes"]);
    world.api.edit(PODS, "shop", "server", |pod| {
        pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    });
    wait_status(&agent, "that to be heard", |status| events(status) > heard)?;
    assert_eq!(world.connect(&mut client)?, "ok");
    assert!(
        agent
            .metrics()?
            .sum("zt_kubernetes_refused_total", &[("cause", "address_disputed")])
            >= 3
    );
    Ok(())
}

#[test]
fn an_address_of_this_node_is_nobodys_as_soon_as_its_pods_cgroup_is_gone() -> Result<()> {
    World::with_each_driver("kube-local", gone_with_its_cgroup)
}

fn gone_with_its_cgroup(world: &World) -> Result<()> {
    let address = world.far().to_string();
    let server = uid(&world.api.put(PODS, pod("server", "server", NODE, &address)))?;
    let agent = world.agent()?.start()?;
    let client = world.put_client("client")?;
    wait_pod(&agent, "client", Some(CLIENT))?;
    let mut client = world.start(&client, "app")?;
    let cgroup = world.pod_cgroup(&server)?;
    wait_cgroup(&agent, &cgroup)?;
    world.connects(&mut client, "ok")?;
    // The kubelet is done with it, and its address is free: the API says so later.
    cgroup.remove()?;
    world.connects(&mut client, "EPERM")?;
    let known = wait_pod(&agent, "server", Some(SERVER))?;
    assert_eq!(known["addresses"], json!([]));
    // The next one has it as soon as the API knows that it is not the last one's.
    let next = uid(&world.api.put(PODS, pod("next", "server", NODE, &address)))?;
    wait_cgroup(&agent, &world.pod_cgroup(&next)?)?;
    assert_eq!(world.connect(&mut client)?, "EPERM");
    world.api.delete(PODS, "shop", "server");
    world.connects(&mut client, "ok")
}

#[test]
fn a_deleted_pod_is_nobody_and_its_name_is_the_next_ones() -> Result<()> {
    World::with_each_driver("kube-name", the_next_ones_name)
}

fn the_next_ones_name(world: &World) -> Result<()> {
    world.put_far("server", "server")?;
    let agent = world.agent()?.start()?;
    let first = world.put_client("client")?;
    wait_pod(&agent, "client", Some(CLIENT))?;
    let mut old = world.start(&first, "app")?;
    world.connects(&mut old, "ok")?;
    // Deleted by force: its processes live on, and are nobody.
    world.api.delete(PODS, "shop", "client");
    world.connects(&mut old, "EPERM")?;
    let second = world.put_client("client")?;
    assert_ne!(first, second);
    let mut new = world.start(&second, "app")?;
    world.connects(&mut new, "ok")?;
    assert_eq!(world.connect(&mut old)?, "EPERM");
    Ok(())
}

#[test]
fn pods_of_every_class_are_known_by_their_cgroups() -> Result<()> {
    World::with_each_driver("kube-class", |world| {
        world.put_far("server", "server")?;
        // As the chart has it run.
        let agent = world.agent()?.contained()?.start()?;
        for (class, name) in [
            (None, "Guaranteed"),
            (Some("burstable"), "Burstable"),
            (Some("besteffort"), "BestEffort"),
        ] {
            let mut pod = pod(
                &name.to_lowercase(),
                "client",
                NODE,
                &world.client.addresses()[0].to_string(),
            );
            pod["status"]["qosClass"] = json!(name);
            let uid = uid(&world.api.put(PODS, pod))?;
            let cgroup = world.pods.child(&world.pod_path(&uid, class))?;
            wait_cgroup(&agent, &cgroup)?;
            let mut client = world.start_in(&cgroup, "app")?;
            assert_eq!(world.connect(&mut client)?, "ok", "{name}");
            world.api.delete(PODS, "shop", &name.to_lowercase());
            world.connects(&mut client, "EPERM")?;
        }
        // How long each of them was nobody is measured.
        let waits = agent.metrics()?;
        let source = [("source", "kubernetes")];
        assert_eq!(waits.sum("zt_identity_wait_seconds_count", &source), 3);
        Ok(())
    })
}

#[test]
fn a_thousand_pods_at_once_and_nonsense_between_them() -> Result<()> {
    const MANY: usize = 1000;
    let world = World::new("kube-many")?;
    let agent = world.agent()?.start()?;
    for number in 0..MANY {
        let mut pod = pod(
            &format!("pod-{number}"),
            "client",
            NODE,
            &format!("10.77.{}.{}", number / 250, number % 250 + 1),
        );
        pod["metadata"]["uid"] = json!(format!("uid-{number}"));
        world.api.put(PODS, pod);
        if number % 50 == 0 {
            world.api.put(
                PODS,
                json!({ "metadata": { "name": format!("odd-{number}"), "namespace": "shop", "uid": null } }),
            );
            world.api.put(
                PODS,
                json!({
                    "metadata": { "name": format!("far-{number}"), "namespace": "shop", "uid": "../../x" },
                    "spec": { "nodeName": OTHER },
                }),
            );
            world.api.say(PODS, "garbage");
            world.api.say(PODS, "{\"type\":\"ADDED\",\"object\":7}");
        }
        world.sandbox.cgroup(&format!("burstable/poduid-{number}"))?;
    }
    let mut last = 0;
    let all = wait_for("all pods to be known by their cgroups", LATER, || {
        let answer = agent.get("/v1/identities")?;
        let identities = answer["identities"].as_array().context("a list")?;
        let here = |identity: &&Value| identity["cgroups"].as_array().is_some_and(|ids| ids.len() == 1);
        last = identities.iter().filter(here).count();
        Ok((last == MANY).then_some(()))
    });
    all.with_context(|| format!("{last} were"))?;
    let status = wait_status(&agent, "the nonsense to be counted", |status| {
        status["refused"]["uid"].as_u64() >= Some(20)
            && status["collections"]["pods"]["unreadable"].as_u64() >= Some(1)
    })?;
    assert_eq!(status["pods_here"], MANY);
    assert_eq!(status["stale"], false);
    let records = agent.metrics()?;
    assert_eq!(
        records.sum("zt_kubernetes_pods", &[("place", "here")]),
        MANY as u64
    );
    Ok(())
}
