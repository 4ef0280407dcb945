// SPDX-License-Identifier: Apache-2.0
//! SPIRE says who, Kubernetes says where.

use zt_tests::spire::Spire;

use super::*;

struct Both {
    // Before the world, in which its agent is.
    agent: Agent,
    spire: Spire,
    world: World,
}

impl Both {
    fn new(label: &str) -> Result<Self> {
        let world = World::new(label)?;
        let spire = Spire::start(Duration::from_secs(3600))?;
        let path = format!("unix:path:{}", zt_tests::agent::binary()?.display());
        spire.register(&Spire::delegate(), &[&path], &[])?;
        let identity = json!({
            "source": ["spire", "kubernetes"],
            "spireAdminSocket": spire.admin_socket(),
            "spireSocket": spire.socket(),
        });
        let agent = world.agent()?.config("identity", identity).start()?;
        Ok(Self { agent, spire, world })
    }
}

#[test]
fn a_pod_has_its_name_by_its_uid_before_anybody_runs_in_it() -> Result<()> {
    let both = Both::new("kube-spire")?;
    let world = &both.world;
    world.put_far("server", "server")?;
    let uid = world.put_client("client")?;
    let cgroup = world.pod_cgroup(&uid)?;
    let entry = both
        .spire
        .register(CLIENT, &[&format!("k8s:pod-uid:{uid}")], &[])?;
    wait_cgroup(&both.agent, &cgroup)?;
    let known = wait_pod(&both.agent, "client", Some(CLIENT))?;
    assert_eq!(known["addresses"], json!([world.client.addresses()[0]]));
    assert_eq!(cgroup.processes()?, [0_u32; 0]);
    let mut client = world.start(&uid, "app")?;
    assert_eq!(world.connect(&mut client)?, "ok");
    // What SPIRE takes back is taken back.
    both.spire.unregister(&entry)?;
    world.connects(&mut client, "EPERM")?;
    wait_pod(&both.agent, "client", None)?;
    Ok(())
}

#[test]
fn what_the_two_disagree_about_is_nobody() -> Result<()> {
    let both = Both::new("kube-quarrel")?;
    let world = &both.world;
    world.put_far("server", "server")?;
    let uid = world.put_client("client")?;
    let cgroup = world.pod_cgroup(&uid)?;
    let mut client = world.start(&uid, "app")?;
    let other = "spiffe://hanzo.ai/hanzo-k8s/shop/other";
    both.spire
        .register(other, &[&format!("k8s:pod-uid:{uid}")], &[])?;
    let expected =
        json!([{ "cgroup": cgroup.relative(), "file": null, "kubernetes": CLIENT, "spire": other }]);
    let mut last = Value::Null;
    let disputed = wait_for("a dispute", LATER, || {
        last = both.agent.get("/v1/status")?["disputes"].clone();
        Ok((last == expected).then_some(()))
    });
    disputed.with_context(|| format!("last: {last}"))?;
    assert_eq!(world.connect(&mut client)?, "EPERM");
    both.agent
        .wait_audit("decision=DENY&source=unknown&port=8000", LATER, |records| {
            !records.is_empty()
        })?;
    assert!(
        both.agent
            .metrics()?
            .sum("zt_node_events_total", &[("event", "identity_disputed")])
            >= 1
    );
    Ok(())
}
