// SPDX-License-Identifier: Apache-2.0
//! Two nodes with a network of pods between them, as the usual plugin makes it, and addresses that are translated on the way as
//! kube-proxy does it: whoever is proven is named, and whoever is not is never named falsely.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;
use zt_tests::agent_files::Workload;
use zt_tests::nodes::{Nodes, Overlay};
use zt_tests::pair::any;
use zt_tests::services::{SERVICES, SLICES, service, slice};
use zt_tests::trail::party;
use zt_tests::{Agent, KubeApi, Party, Policy, Scene, TCP, eventually};

const PATIENCE: Duration = Duration::from_secs(90);
/// No interface has it.
const VIRTUAL: Ipv4Addr = Ipv4Addr::new(10, 96, 7, 1);
/// Where the Service is, and where the one that leads back to its own pod.
const PORTS: [u16; 2] = [8000, 8001];

struct World {
    agents: [Agent; 2],
    _api: KubeApi,
    chat: Party,
    iam: Party,
    _overlay: Overlay,
    _scene: Scene,
}

/// `chat` on node one, `iam` on node two, whose ports 9090 and 9091 are reached with a node's address as the source.
fn world() -> Result<World> {
    let scene = Scene::new("peers-nat")?;
    let overlay = Overlay::new(&scene)?;
    let start = |name: &str, index: usize, node: &str| -> Result<Party> {
        let cgroup = scene.sandbox().cgroup(&format!("{node}/{name}"))?;
        let mut host = scene.host(name)?;
        overlay.pod(index, 2, &mut host)?;
        scene.start(name, &cgroup, &host)
    };
    let (chat, mut iam) = (start("chat", 0, "one")?, start("iam", 1, "two")?);
    let [first, second] = PORTS;
    let (to, back) = (iam.host.ipv4, chat.host.ipv4);
    let one = &overlay.nodes[0];
    one.nat(&format!(
        "PREROUTING -d {VIRTUAL} -p tcp --dport {first} -j DNAT --to-destination {to}:8080"
    ))?;
    one.nat(&format!(
        "PREROUTING -d {VIRTUAL} -p tcp --dport {second} -j DNAT --to-destination {back}:8081"
    ))?;
    one.nat("POSTROUTING -s 10.244.1.0/24 -d 10.244.1.0/24 -j MASQUERADE")?;
    one.nat("POSTROUTING -s 10.244.1.0/24 -p tcp --dport 9090:9091 -j MASQUERADE")?;

    let api = KubeApi::start()?;
    let kubeconfig = api.kubeconfig(scene.sandbox().directory())?;
    let nets = [1, 2].map(|node| vec![format!("10.244.{node}.0/24")]);
    let nodes = Nodes::new(scene.sandbox(), nets)?;
    let policy = Policy::new("nat")
        .allow("chat", "iam", TCP, "8080 9090 9091")
        .allow("chat", "chat", TCP, "8081")
        .allow("10.245.0.0/24", "iam", TCP, "9091");
    let agent = |index: usize, party: &Party| -> Result<Agent> {
        let at = IpAddr::V4(party.host.ipv4);
        nodes
            .agent(scene.sandbox(), index, "*", &["kubernetes"])?
            .workload(Workload::new(&party.id, &party.cgroup).at([at]))
            .policy("policy.yaml", &policy.text())?
            .env("ZT_KUBECONFIG", &kubeconfig.display().to_string())
            .start()
    };
    let agents = [agent(0, &chat)?, agent(1, &iam)?];
    for port in [8080, 9090, 9091] {
        iam.serve(any(port))?.local()?;
    }
    api.put(SERVICES, service("web", "u1", VIRTUAL, &[(first, 8080)]));
    api.put(SLICES, slice("web", "u1", &[8080], &[&iam]));
    api.put(SERVICES, service("back", "u2", VIRTUAL, &[(second, 8081)]));
    api.put(SLICES, slice("back", "u2", &[8081], &[&chat]));
    Ok(World {
        agents,
        _api: api,
        chat,
        iam,
        _overlay: overlay,
        _scene: scene,
    })
}

impl World {
    /// Both know the other node, and what is behind the Services.
    fn settled(&self) -> Result<()> {
        for agent in &self.agents {
            eventually("the other node to be known", PATIENCE, || {
                let peer = agent.get("/v1/status")?["peers"]["nodes"][0].clone();
                Ok(peer["addresses"].as_u64() == Some(1) && peer["epoch"].as_u64() > Some(0))
            })?;
            eventually("the Services to be known", PATIENCE, || {
                let services = agent.get("/v1/identities")?["services"].clone();
                let is_led = |service: &Value| service["backends"].as_array().map(Vec::len) == Some(1);
                let led = services
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter(|service| is_led(service));
                Ok(led.count() == 2)
            })?;
        }
        Ok(())
    }

    /// What the agent of a node recorded of one end, at a port.
    fn record(&self, index: usize, observer: &str, port: u16) -> Result<Value> {
        let records = self.agents[index].records("", 1, |record| {
            record["observer"] == observer && record["destination"]["port"] == port
        })?;
        records.into_iter().next().context("one record")
    }
}

#[test]
fn whoever_is_translated_on_the_way_is_proven_or_not_named() -> Result<()> {
    let mut world = world()?;
    world.settled()?;
    let [chat, iam] = [world.chat.id.clone(), world.iam.id.clone()];
    // From pod to pod, through both bridges and VXLAN.
    let to = world.iam.v4(8080);
    assert_eq!(world.chat.talk(to)?, "ok");
    let record = world.record(0, "source", 8080)?;
    assert_eq!(
        (party(&record["destination"]), &record["proof"]),
        (&*iam, &"mutual".into()),
        "{record}"
    );
    let record = world.record(1, "destination", 8080)?;
    assert_eq!(
        (party(&record["source"]), &record["proof"]),
        (&*chat, &"source".into()),
        "{record}"
    );

    // Through a Service: its address is translated on node one.
    let to = SocketAddr::from((VIRTUAL, PORTS[0]));
    assert_eq!(world.chat.talk(to)?, "ok");
    let records = world.agents[0].records("", 2, |record| record["observer"] == "source")?;
    let record = records.last().context("a record")?;
    assert_eq!(
        (party(&record["destination"]), &record["proof"]),
        (&*iam, &"mutual".into()),
        "{record}"
    );
    let records = world.agents[1].records("", 2, |record| record["observer"] == "destination")?;
    let record = records.last().context("a record")?;
    assert_eq!(
        (party(&record["source"]), &record["proof"]),
        (&*chat, &"source".into()),
        "{record}"
    );

    // With another source address: whoever it is then, he is named by proof or not at all.
    for port in [9090, 9091] {
        let to = world.iam.v4(port);
        let outcome = world.chat.talk(to)?;
        let record = world.record(1, "destination", port)?;
        let is_named = party(&record["source"]) == chat;
        assert!(!is_named || record["proof"] == "source", "{record}");
        assert_eq!(
            outcome == "ok",
            record["decision"] == "ALLOW",
            "{outcome}: {record}"
        );
        assert!(is_named || port == 9091 || outcome != "ok", "{record}");
    }

    // Back into the same pod, from the bridge's address.
    world.chat.serve(any(8081))?.local()?;
    let to = SocketAddr::from((VIRTUAL, PORTS[1]));
    let outcome = world.chat.talk(to)?;
    let found = world.agents[0].all_records("")?;
    let wrong = found.iter().find(|record| {
        record["observer"] == "destination" && ![&*chat, "unknown"].contains(&party(&record["source"]))
    });
    assert!(wrong.is_none(), "{outcome}: {wrong:?}");
    Ok(())
}
