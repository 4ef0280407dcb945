// SPDX-License-Identifier: Apache-2.0
//! A canary of pods: it goes by their names, so that one of a `StatefulSet` stays on its side however often it starts.

use super::*;

const WEB: &str = "spiffe://hanzo.ai/hanzo-k8s/shop/web";
/// Which of the pods a canary of half of them takes, by their numbers: a hash of the rollout's name, the service and the pod's name
/// has 38, 2, 12, 63, 11, 14, 59 and 73 for them, of 100.
const TAKEN: [bool; 8] = [true, true, true, false, true, true, false, false];

fn rollout() -> String {
    let document = json!({
        "apiVersion": "zt.hanzo.ai/v1",
        "kind": "EnforcementRollout",
        "metadata": { "name": "to-enforcing" },
        "spec": {
            "stage": "web",
            "stages": [{ "name": "web", "identities": [WEB], "canary": { "percent": 50 } }],
        },
    });
    document.to_string()
}

fn name(number: usize) -> String {
    format!("web-{number}")
}

/// Puts all pods in the API, each with an address that none before had; their uids.
fn put_all(world: &World, generation: u8) -> Result<Vec<String>> {
    let put = |number: usize| {
        let address = format!("10.77.{generation}.{}", number + 1);
        uid(&world.api.put(PODS, pod(&name(number), "web", NODE, &address)))
    };
    (0..TAKEN.len()).map(put).collect()
}

/// A process in a container of each pod.
fn start_all(world: &World, agent: &Agent, uids: &[String], container: &str) -> Result<Vec<Probe>> {
    let start = |uid: &String| {
        wait_cgroup(agent, &world.pod_cgroup(uid)?)?;
        world.start(uid, container)
    };
    uids.iter().map(start).collect()
}

/// Which of them are refused what policy denies.
fn refused(world: &World, probes: &mut [Probe]) -> Result<Vec<bool>> {
    let is_refused = |probe: &mut Probe| -> Result<bool> { Ok(world.connect(probe)? == "EPERM") };
    probes.iter_mut().map(is_refused).collect()
}

fn wait_taken(agent: &Agent) -> Result<()> {
    let taken = TAKEN.iter().filter(|taken| **taken).count();
    let wanted = json!([TAKEN.len(), taken]);
    let mut last = Value::Null;
    let done = wait_for("all pods to be selected", LATER, || {
        let stage = agent.get("/v1/rollout")?["rollout"]["stages"][0].clone();
        last = json!([stage["selected"], stage["taken"]]);
        Ok((last == wanted).then_some(()))
    });
    done.with_context(|| format!("selected and taken were {last}"))
}

#[test]
fn a_canary_takes_the_same_pods_of_a_stateful_set_however_often_they_start() -> Result<()> {
    World::with_each_driver("kube-canary", by_their_names)
}

/// Fails where a pod is its uid or its cgroup to a canary: half of those that start anew would be in another mode.
fn by_their_names(world: &World) -> Result<()> {
    world.put_far("server", "server")?;
    let agent = world.agent()?.mode("observe");
    let mut agent = agent.policy("rollout.yaml", &rollout())?.start()?;
    let first = put_all(world, 0)?;
    let mut probes = start_all(world, &agent, &first, "app")?;
    assert_eq!(refused(world, &mut probes)?, TAKEN);
    wait_taken(&agent)?;
    // Another container of the same pods, and another agent.
    let mut others = start_all(world, &agent, &first, "sidecar")?;
    assert_eq!(refused(world, &mut others)?, TAKEN);
    agent.terminate()?;
    agent.restart()?;
    assert_eq!(refused(world, &mut others)?, TAKEN);

    // Each pod starts anew: it has its name, and all else is another one's.
    drop((probes, others));
    for (number, uid) in first.iter().enumerate() {
        world.api.delete(PODS, "shop", &name(number));
        world.pod_cgroup(uid)?.remove()?;
    }
    let second = put_all(world, 1)?;
    assert!(
        first.iter().all(|uid| !second.contains(uid)),
        "{first:?} {second:?}"
    );
    let mut probes = start_all(world, &agent, &second, "app")?;
    assert_eq!(refused(world, &mut probes)?, TAKEN);
    wait_taken(&agent)?;

    // What is recorded says the same, pod by pod.
    let records = agent.wait_audit(&format!("decision=DENY&port={OPEN}"), LATER, |records| {
        records.len() >= 4 * TAKEN.len()
    })?;
    for record in records {
        let source = &record["source"];
        assert_eq!(source["spiffe_id"], WEB);
        let taken = (0..TAKEN.len()).find(|number| source["pod"] == format!("shop/{}", name(*number)));
        let number = taken.with_context(|| format!("none of these pods: {source}"))?;
        assert_eq!(record["enforced"], TAKEN[number], "{record}");
    }
    Ok(())
}
