// SPDX-License-Identifier: Apache-2.0
//! Identity proven in the handshake through Services: who answers from behind a virtual address says so, and who calls it
//! proves it to him, although neither knows the address that the other has used.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};
use zt_tests::nat::{nat, translate_to};
use zt_tests::pair::any;
use zt_tests::services::{SERVICES, SLICES, service, slice};
use zt_tests::trail::{party, says};
use zt_tests::wire::{ACK, SYN, Segment, Wire};
use zt_tests::{Agent, KubeApi, Party, Policy, Scene, TCP, eventually};

const PATIENCE: Duration = Duration::from_secs(60);
/// No interface has it.
const VIRTUAL: Ipv4Addr = Ipv4Addr::new(10, 96, 7, 1);
const PORT: u16 = 8000;

struct World {
    scene: Scene,
    api: KubeApi,
    agent: Agent,
    client: Party,
    a: Party,
    b: Party,
}

/// `a` and `b` serve at port 80 and at 81; of Services nothing is known yet.
fn world(label: &str, policy: &Policy) -> Result<World> {
    let mut scene = Scene::new(label)?;
    let (mut a, mut b, client) = (
        scene.workload("a")?,
        scene.workload("b")?,
        scene.workload("client")?,
    );
    client.host.add_route("10.96.0.0/16")?;
    let api = KubeApi::start()?;
    let kubeconfig = api.kubeconfig(scene.sandbox().directory())?;
    let agent = scene
        .agent(policy)?
        .config("handshake", json!("auto"))
        .env("ZT_IDENTITY_SOURCE", "file,kubernetes")
        .env("ZT_KUBECONFIG", &kubeconfig.display().to_string())
        .start()?;
    for party in [&mut a, &mut b] {
        for port in [80, 81] {
            party.serve(any(port))?.local()?;
        }
    }
    Ok(World {
        scene,
        api,
        agent,
        client,
        a,
        b,
    })
}

fn to() -> SocketAddr {
    SocketAddr::new(IpAddr::V4(VIRTUAL), PORT)
}

/// Has a namespace translate the virtual address, as a node does.
fn translate(party: &Party, to: &Party, port: u16) -> Result<()> {
    translate_to(party, VIRTUAL, PORT, to, port).map(drop)
}

impl World {
    /// The API says that these are behind the virtual address, at port 80.
    fn behind(&self, ports: &[u16], parties: &[&Party]) -> Result<()> {
        self.api
            .put(SERVICES, service("web", "u1", VIRTUAL, &[(PORT, ports[0])]));
        self.api.put(SLICES, slice("web", "u1", ports, parties));
        let agent = &self.agent;
        eventually("the Service to be known", PATIENCE, || {
            let services = agent.get("/v1/identities")?["services"].clone();
            let ends = |service: &Value| service["backends"].as_array().map(Vec::len) == Some(parties.len());
            Ok(services.as_array().into_iter().flatten().any(ends))
        })
    }

    /// The client talks to who is behind the virtual address. The records of both ends, and what its interface saw.
    fn talk(&mut self) -> Result<(Vec<Value>, Vec<Segment>)> {
        let wire = Wire::open(&self.client.host, "eth0")?;
        assert_eq!(self.client.talk(to())?, "ok");
        let id = self.client.id.clone();
        let records = self
            .agent
            .records("decision=ALLOW", 1, |record| party(&record["source"]) == id)?;
        Ok((records, wire.seen()?))
    }
}

fn flags(seen: &[Segment]) -> Vec<u8> {
    let bearing = seen.iter().filter(|segment| segment.option(253).is_some());
    bearing.map(|segment| segment.flags).collect()
}

#[test]
fn a_service_of_one_identity_is_proven_through_its_translation() -> Result<()> {
    let policy = Policy::new("one").allow("client", "a", TCP, "80");
    let mut world = world("front-one", &policy)?;
    world.behind(&[80], &[&world.a])?;
    translate(&world.client, &world.a, 80)?;
    let (records, seen) = world.talk()?;
    let record = &records[0];
    assert!(
        says(record, &world.client.id, &world.a.id, "ALLOW", "rule"),
        "{record}"
    );
    assert_eq!(record["proof"], "mutual");
    assert_eq!(record["destination"]["port"], 80);
    assert_eq!(record["destination"]["address"], json!(VIRTUAL));
    let bearing = flags(&seen);
    assert_eq!(bearing[..3], [SYN, SYN | ACK, ACK], "{seen:?}");
    let first = seen.iter().position(|segment| !segment.data.is_empty());
    assert!(first.is_some_and(|first| first >= 3), "{seen:?}");
    assert_eq!(
        world.agent.counter("agreed")?,
        1,
        "the destination's end has the same name"
    );
    assert_eq!(world.agent.counter("tags_invalid")?, 0);
    Ok(())
}

#[test]
fn of_several_behind_a_service_the_one_that_answers_is_named() -> Result<()> {
    let policy = Policy::new("both")
        .allow("client", "a", TCP, "80")
        .allow("client", "b", TCP, "80");
    let mut world = world("front-group", &policy)?;
    world.behind(&[80], &[&world.a, &world.b])?;
    translate(&world.client, &world.b, 80)?;
    let (records, _) = world.talk()?;
    let record = &records[0];
    assert!(
        says(record, &world.client.id, &world.b.id, "ALLOW", "rule"),
        "{record}"
    );
    assert_eq!(record["proof"], "mutual");
    assert_eq!(world.agent.counter("agreed")?, 1);
    assert_eq!(world.agent.counter("identity_mismatches")?, 0);
    // What it was admitted by is judged as what it is, after a change of policy too.
    let connected = world.client.connect(to())?.handle()?;
    let less = Policy::new("both").allow("client", "a", TCP, "80");
    world.agent.change_policy(&less.text())?;
    world.client.dies(connected)
}

/// A rule may require proof of who is behind a virtual address: it is there, of one identity and of several.
#[test]
fn who_is_behind_a_service_can_be_required_to_prove_it() -> Result<()> {
    for (label, several) in [("front-required-one", false), ("front-required-group", true)] {
        let mut policy = Policy::new("required").allow_proven("client", "a", TCP, "80");
        if several {
            policy = policy.allow("client", "b", TCP, "80");
        }
        let mut world = world(label, &policy)?;
        let mut parties = vec![&world.a];
        parties.extend(several.then_some(&world.b));
        world.behind(&[80], &parties)?;
        translate(&world.client, &world.a, 80)?;
        let (records, _) = world.talk()?;
        let record = &records[0];
        assert!(
            says(record, &world.client.id, &world.a.id, "ALLOW", "rule"),
            "{record}"
        );
        assert_eq!(record["proof"], "mutual", "{label}");
    }
    Ok(())
}

/// An address behind the Service was given to somebody else, and the API does not know yet.
#[test]
fn who_is_not_behind_a_service_and_answers_is_found_out() -> Result<()> {
    for (label, others) in [("front-stale-one", false), ("front-stale-group", true)] {
        let mut policy = Policy::new("stale").allow("client", "a", TCP, "80");
        let mut scene_parties = Vec::new();
        if others {
            policy = policy.allow("client", "b", TCP, "80");
        }
        let mut world = world(label, &policy)?;
        let mut stranger = world
            .scene
            .workload_in("stranger", &world.scene.host("stranger")?)?;
        let workloads = world.scene.workloads();
        world.agent.files.write_workloads(&workloads)?;
        let id = stranger.id.clone();
        let agent = &world.agent;
        eventually("the stranger to be known", PATIENCE, || {
            Ok(agent.get("/v1/identities")?.to_string().contains(&id))
        })?;
        stranger.serve(any(80))?.local()?;
        scene_parties.push(&world.a);
        if others {
            scene_parties.push(&world.b);
        }
        world.behind(&[80], &scene_parties)?;
        translate(&world.client, &stranger, 80)?;
        let World { client, agent, .. } = &mut world;
        // The API lists a Service a moment before the kernel knows it.
        eventually("the stranger to be found out", PATIENCE, || {
            assert_ne!(client.talk(to())?, "ok", "{label}");
            let denied = agent.audit("decision=DENY&limit=100")?;
            let found_out =
                |record: &Value| says(record, &client.id, &stranger.id, "DENY", "identity_mismatch");
            Ok(denied.iter().any(found_out))
        })?;
        world.agent.records("decision=ALLOW", 0, |_| true)?;
    }
    Ok(())
}

/// Which of them listens at which port is not known to the one who calls: it does not say that it knows who it is.
#[test]
fn behind_several_ports_the_source_alone_is_proven() -> Result<()> {
    let policy = Policy::new("ports").allow("client", "a", TCP, "80 81");
    let mut world = world("front-ports", &policy)?;
    let (host, agent) = (world.a.host.ipv4.to_string(), &world.agent);
    let front = service("web", "u1", VIRTUAL, &[(PORT, 80)]);
    world.api.put(SERVICES, front);
    for port in [80, 81] {
        let mut slice = slice("web", "u1", &[80], &[&world.a]);
        slice["metadata"]["name"] = json!(format!("web-{port}"));
        slice["metadata"]["uid"] = json!(format!("slice-{port}"));
        slice["ports"][0]["port"] = json!(port);
        world.api.put(SLICES, slice);
    }
    eventually("the Service to be known", PATIENCE, || {
        let services = agent.get("/v1/identities")?["services"].clone();
        let ends = |service: &Value| service["backends"].as_array().map(Vec::len) == Some(2);
        Ok(services.as_array().into_iter().flatten().any(ends))
    })?;
    translate(&world.client, &world.a, 81)?;
    let (records, _) = world.talk()?;
    let record = &records[0];
    assert_eq!(
        party(&record["destination"]),
        "service:hanzo/web",
        "{record} {host}"
    );
    assert_eq!(record["proof"], "source");
    assert_eq!(world.agent.counter("agreed")?, 1, "the destination knows both");
    Ok(())
}

/// Where the source's address is translated too, the destination goes by the address that arrives, and nobody signs anything.
#[test]
fn behind_a_masquerade_names_are_those_of_addresses() -> Result<()> {
    let other: Ipv4Addr = Ipv4Addr::new(10, 99, 77, 7);
    let policy =
        Policy::new("masquerade")
            .allow("client", "a", TCP, "80")
            .allow("10.99.77.0/24", "a", TCP, "80");
    let mut world = world("front-masquerade", &policy)?;
    world.client.host.add_address(&format!("{other}/16"))?;
    world.behind(&[80], &[&world.a])?;
    translate(&world.client, &world.a, 80)?;
    nat(
        &world.client,
        &format!("POSTROUTING -d {} -j SNAT --to-source {other}", world.a.host.ipv4),
    )?;
    let (records, seen) = world.talk()?;
    let record = &records[0];
    assert!(
        says(record, &world.client.id, &world.a.id, "ALLOW", "rule"),
        "{record}"
    );
    assert_eq!(record["proof"], "none:absent");
    assert_eq!(flags(&seen), [SYN], "{seen:?}");
    let arrived = world.agent.records("decision=ALLOW", 1, |record| {
        record["observer"] == "destination" && record["source"]["address"] == json!(other)
    })?;
    assert_ne!(party(&arrived[0]["source"]), world.client.id);
    Ok(())
}

/// A workload that is led back to itself, without a masquerade, is proven to itself.
#[test]
fn who_is_behind_its_own_service_is_proven() -> Result<()> {
    let policy = Policy::new("hairpin").allow("client", "client", TCP, "80");
    let mut world = world("front-hairpin", &policy)?;
    world.client.serve(any(80))?.local()?;
    world.behind(&[80], &[&world.client])?;
    translate(&world.client, &world.client, 80)?;
    assert_eq!(world.client.talk(to())?, "ok");
    let id = world.client.id.clone();
    let records = world
        .agent
        .records("decision=ALLOW", 1, |record| party(&record["source"]) == id)?;
    assert_eq!(party(&records[0]["destination"]), id, "{records:?}");
    assert_eq!(records[0]["proof"], "mutual", "{records:?}");
    assert_eq!(world.agent.counter("agreed")?, 1);
    Ok(())
}
