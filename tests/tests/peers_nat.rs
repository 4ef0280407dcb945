// SPDX-License-Identifier: Apache-2.0
//! Two nodes with a network of pods between them, as the usual plugin makes it, and a Service whose address is translated on the
//! way as kube-proxy does it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;
use zt_tests::agent_files::Workload;
use zt_tests::nodes::{NODES, Nodes, Overlay};
use zt_tests::pair::any;
use zt_tests::probe::ConnectOptions;
use zt_tests::services::{SERVICES, SLICES, service, slice};
use zt_tests::trail::party;
use zt_tests::{Agent, KubeApi, Party, Policy, Scene, TCP, eventually, wait_for};

const PATIENCE: Duration = Duration::from_secs(90);
/// No interface has it.
const VIRTUAL: Ipv4Addr = Ipv4Addr::new(10, 96, 7, 1);
/// Where the Service is.
const PORT: u16 = 8000;

struct World {
    agents: [Agent; 2],
    _api: KubeApi,
    chat: Party,
    iam: Party,
    overlay: Overlay,
    _scene: Scene,
}

/// `chat` on node one, `iam` on node two and behind the Service.
fn world(label: &str, policy: &Policy) -> Result<World> {
    let scene = Scene::new(label)?;
    let overlay = Overlay::new(&scene)?;
    let start = |name: &str, index: usize, node: &str| -> Result<Party> {
        let cgroup = scene.sandbox().cgroup(&format!("{node}/{name}"))?;
        let mut host = scene.host(name)?;
        overlay.pod(index, 2, &mut host)?;
        scene.start(name, &cgroup, &host)
    };
    let (chat, mut iam) = (start("chat", 0, "one")?, start("iam", 1, "two")?);
    let to = iam.host.ipv4;
    let one = &overlay.nodes[0];
    one.nat(&format!(
        "PREROUTING -d {VIRTUAL} -p tcp --dport {PORT} -j DNAT --to-destination {to}:8080"
    ))?;

    let api = KubeApi::start()?;
    let kubeconfig = api.kubeconfig(scene.sandbox().directory())?;
    let nets = [1, 2].map(|node| vec![format!("10.244.{node}.0/24")]);
    let nodes = Nodes::new(scene.sandbox(), nets)?;
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
    iam.serve(any(8080))?.local()?;
    api.put(SERVICES, service("web", "u1", VIRTUAL, &[(PORT, 8080)]));
    api.put(SLICES, slice("web", "u1", &[8080], &[&iam]));
    Ok(World {
        agents,
        _api: api,
        chat,
        iam,
        overlay,
        _scene: scene,
    })
}

impl World {
    /// Both know the other node, and what is behind the Service.
    fn settled(&self) -> Result<()> {
        for agent in &self.agents {
            eventually("the other node to be known", PATIENCE, || {
                let peer = agent.get("/v1/status")?["peers"]["nodes"][0].clone();
                Ok(peer["addresses"].as_u64() == Some(1) && peer["epoch"].as_u64() > Some(0))
            })?;
            eventually("the Service to be known", PATIENCE, || {
                let services = agent.get("/v1/identities")?["services"].clone();
                let is_led = |service: &Value| service["backends"].as_array().map(Vec::len) == Some(1);
                let led = services
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter(|service| is_led(service));
                Ok(led.count() == 1)
            })?;
        }
        Ok(())
    }

    /// What the agent of a node recorded of one end, at a port.
    fn record(&self, index: usize, observer: &str, port: u16) -> Result<Value> {
        let records = self.agents[index].records("", 1, |record| {
            record["observer"] == observer
                && record["destination"]["port"] == port
                && record["decision"] == "ALLOW"
        })?;
        records.into_iter().next().context("one record")
    }

    /// What the agent of a node says that was lost on the way to the other node: dropped, stripped, missing.
    fn lost(&self, index: usize) -> Result<[u64; 3]> {
        let paths = self.agents[index].get("/v1/status")?["handshake"]["paths"].clone();
        let mut paths = paths.as_array().into_iter().flatten();
        let path = paths.find(|path| path["node"] == NODES[1 - index]);
        let count = |how: &str| path.map_or(0, |path| path[how].as_u64().unwrap_or_default());
        Ok(["dropped", "stripped", "missing"].map(count))
    }
}

#[test]
fn whoever_calls_a_service_is_proven_through_its_translation_and_vxlan() -> Result<()> {
    let policy = Policy::new("nat").allow("chat", "iam", TCP, "8080");
    let mut world = world("peers-nat", &policy)?;
    world.settled()?;
    let [chat, iam] = [world.chat.id.clone(), world.iam.id.clone()];
    // From pod to pod, through both bridges and VXLAN.
    let to = world.iam.v4(8080);
    // What the status says of the other node is in the kernel's map a moment later.
    wait_for("the other node's pod to be reached", PATIENCE, || {
        Ok((world.chat.talk(to)? == "ok").then_some(()))
    })?;
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
    let to = SocketAddr::from((VIRTUAL, PORT));
    assert_eq!(world.chat.talk(to)?, "ok");
    let records = world.agents[0].records("decision=ALLOW", 2, |record| record["observer"] == "source")?;
    let record = records.last().context("a record")?;
    assert_eq!(
        (party(&record["destination"]), &record["proof"]),
        (&*iam, &"mutual".into()),
        "{record}"
    );
    let records =
        world.agents[1].records("decision=ALLOW", 2, |record| record["observer"] == "destination")?;
    let record = records.last().context("a record")?;
    assert_eq!(
        (party(&record["source"]), &record["proof"]),
        (&*chat, &"source".into()),
        "{record}"
    );
    Ok(())
}

/// What node one masquerades on its way to node two has its address there: it is named as that address is, and is refused where policy
/// says nothing of it. It has nobody's name, least of all that of another workload of the node.
#[test]
fn whoever_is_masqueraded_between_nodes_is_the_address_that_arrives() -> Result<()> {
    let node = Ipv4Addr::new(10, 245, 0, 1);
    let by_name = Policy::new("nat").allow("chat", "iam", TCP, "8080");
    let by_address = by_name.clone().allow("10.245.0.0/16", "iam", TCP, "8080");
    let mut world = world("peers-masquerade", &by_address)?;
    world.settled()?;
    let to = world.iam.v4(8080);
    wait_for("the other node's pod to be reached", PATIENCE, || {
        Ok((world.chat.talk(to)? == "ok").then_some(()))
    })?;
    let proven = world.record(1, "destination", 8080)?;
    assert_eq!(proven["proof"], "source", "{proven}");
    world.overlay.nodes[0].nat("POSTROUTING -s 10.244.1.0/24 -o vx0 -j MASQUERADE")?;

    let translated = |record: &Value| {
        record["observer"] == "destination" && record["source"]["address"] == node.to_string()
    };
    for to in [to, SocketAddr::from((VIRTUAL, PORT))] {
        assert_eq!(world.chat.talk(to)?, "ok", "{to}");
    }
    let records = world.agents[1].records("decision=ALLOW", 2, translated)?;
    // What is called through a Service says who it is when it is asked, and nobody asks.
    for (record, proof) in records.iter().zip(["none:tag_invalid", "none:absent"]) {
        assert_eq!(party(&record["source"]), "cidr:10.245.0.0/16", "{record}");
        assert_eq!(record["proof"], proof, "{record}");
    }
    let records = world.agents[0].records("decision=ALLOW", 2, |record| record["proof"] == "none:absent")?;
    for record in records {
        assert_eq!(party(&record["destination"]), world.iam.id, "{record}");
    }

    world.agents[1].change_policy(&by_name.text())?;
    assert_ne!(world.chat.talk(to)?, "ok");
    let records = world.agents[1].records("decision=DENY", 1, translated)?;
    assert_eq!(party(&records[0]["source"]), "world", "{}", records[0]);
    Ok(())
}

/// What drops the option between two nodes, or takes it out, is told of at both, each time by the other one's name.
#[test]
fn a_way_on_which_identities_do_not_arrive_is_named() -> Result<()> {
    let policy = Policy::new("nat").allow("chat", "iam", TCP, "8080");
    let mut world = world("peers-middlebox", &policy)?;
    world.settled()?;
    let to = world.iam.v4(8080);
    wait_for("the other node's pod to be reached", PATIENCE, || {
        Ok((world.chat.talk(to)? == "ok").then_some(()))
    })?;
    // One end may have had the keys before the other.
    let (one, two) = (world.lost(0)?, world.lost(1)?);

    let middlebox = "-t mangle -A FORWARD -s 10.244.1.0/24 -p tcp --tcp-flags SYN,ACK SYN";
    world.overlay.nodes[0].iptables(&format!("{middlebox} --tcp-option 253 -j DROP"))?;
    // It is reached when the SYN goes without, and refuses who proves nothing: before or after this end looks.
    let options = ConnectOptions {
        timeout: PATIENCE,
        ..ConnectOptions::default()
    };
    world.chat.connect_with(to, options)?;
    eventually("what drops options to be named at both ends", PATIENCE, || {
        Ok(world.lost(0)? == [one[0] + 1, one[1], one[2]] && world.lost(1)? == [two[0], two[1], two[2] + 1])
    })?;

    world.overlay.nodes[0].iptables("-t mangle -F FORWARD")?;
    world.overlay.nodes[0].iptables(&format!("{middlebox} -j TCPOPTSTRIP --strip-options 253"))?;
    assert_ne!(world.chat.talk(to)?, "ok");
    eventually(
        "what takes options out to be named at both ends",
        PATIENCE,
        || {
            let ends = [world.lost(0)?, world.lost(1)?];
            Ok(ends == [[one[0] + 1, one[1] + 1, one[2]], [two[0], two[1], two[2] + 2]])
        },
    )?;
    for (index, how) in [(0, "dropped"), (0, "stripped"), (1, "missing")] {
        let counted = world.agents[index]
            .metrics()?
            .sum("zt_options_lost_total", &[("how", how)]);
        assert!(counted > 0, "{how}");
    }

    world.overlay.nodes[0].iptables("-t mangle -F FORWARD")?;
    assert_eq!(world.chat.talk(to)?, "ok");
    Ok(())
}
