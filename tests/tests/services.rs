// SPDX-License-Identifier: Apache-2.0
//! Kubernetes Services: a virtual address is decided by who stands behind it, as the API says at that moment.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use zt_tests::services::{SERVICES, SLICES, Served, service, slice};
use zt_tests::trail::party;
use zt_tests::{Policy, TCP, eventually};

const PATIENCE: Duration = Duration::from_secs(30);
/// What `a` has besides its own addresses.
const WEB: Ipv4Addr = Ipv4Addr::new(10, 96, 7, 1);
/// One that nobody has.
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 96, 7, 2);

fn at(address: Ipv4Addr, port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(address), port)
}

/// A client that may do what policy says, and an agent that hears of Services.
fn world(label: &str, policy: &Policy) -> Result<Served> {
    Served::at(WEB, label, policy, |agent| agent)
}

fn only_a() -> Policy {
    Policy::new("only-a").allow("client", "a", TCP, "80")
}

/// Waits until the client is told so.
fn becomes(world: &mut Served, to: SocketAddr, outcome: &str) -> Result<()> {
    let (client, agent) = (&mut world.client, &world.agent);
    eventually(&format!("{to} to become {outcome}"), PATIENCE, || {
        Ok(client.tcp(to)? == outcome)
    })?;
    // What the API of the agent says is what the kernel does, from the moment on in which the agent has told both.
    let question = json!({
        "source": {"spiffe_id": client.id},
        "destination": {"address": to.ip().to_string(), "port": to.port()},
    });
    eventually(&format!("{to}: {outcome}, to be evaluated so"), PATIENCE, || {
        let answer = agent.post("/v1/evaluate", &question)?;
        let decision = answer.success()?.json()?["decision"].clone();
        Ok((decision == "DENY") == (outcome == "EPERM"))
    })?;
    ensure!(client.tcp(to)? == outcome, "{to} did not stay {outcome}");
    Ok(())
}

#[test]
fn a_virtual_address_is_decided_by_who_is_behind_it() -> Result<()> {
    let mut world = world("services", &only_a())?;
    let denied = world.client.tcp(at(WEB, 80))?;
    ensure!(denied == "EPERM", "no Service is known yet: {denied}");

    let ports = [(80, 80), (8000, 80), (82, 81)];
    world.api.put(SERVICES, service("web", "u1", WEB, &ports));
    world.api.put(SLICES, slice("web", "u1", &[80, 81], &[&world.a]));
    becomes(&mut world, at(WEB, 80), "ok")?;
    // Allowed by the target port; and nobody translates here.
    becomes(&mut world, at(WEB, 8000), "ECONNREFUSED")?;
    // Another target port, and a port that the Service does not have.
    becomes(&mut world, at(WEB, 82), "EPERM")?;
    becomes(&mut world, at(WEB, 81), "EPERM")?;

    // One more behind it, whom the client may not reach: nobody knows which of the two it would be.
    world
        .api
        .put(SLICES, slice("web", "u1", &[80, 81], &[&world.a, &world.b]));
    becomes(&mut world, at(WEB, 80), "EPERM")?;
    let recorded = |record: &Value| {
        party(&record["destination"]) == "service:hanzo/web" && record["destination"]["port"] == 80
    };
    let records = world
        .agent
        .wait_audit("decision=DENY", PATIENCE, |records| records.iter().any(recorded))?;
    ensure!(!records.is_empty());
    let shown = world.agent.get("/v1/identities")?["services"].clone();
    let web = shown
        .as_array()
        .into_iter()
        .flatten()
        .find(|service| service["port"] == 80);
    let web = web.cloned().unwrap_or_default();
    ensure!(web["group"] == true && web["service"] == "hanzo/web", "{shown}");
    ensure!(web["backends"].as_array().map(Vec::len) == Some(2), "{web}");
    ensure!(
        world.agent.get("/v1/status")?["services"]
            == json!({"places": 3, "groups": 3, "left_out": 0, "groups_left_out": 0})
    );
    // A rule for each of them is a rule for both.
    let both = Policy::new("only-a")
        .allow("client", "a", TCP, "80")
        .allow("client", "b", TCP, "80");
    world.agent.change_policy(&both.text())?;
    becomes(&mut world, at(WEB, 80), "ok")?;
    // And a denial of one denies.
    let one = both.deny("client", "b", TCP, "80");
    world.agent.change_policy(&one.text())?;
    becomes(&mut world, at(WEB, 80), "EPERM")?;
    world.api.put(SLICES, slice("web", "u1", &[80, 81], &[&world.a]));
    becomes(&mut world, at(WEB, 80), "ok")?;

    ensure!(world.api.delete(SERVICES, "hanzo", "web"));
    becomes(&mut world, at(WEB, 80), "EPERM")
}

#[test]
fn an_address_of_another_service_never_has_the_old_name() -> Result<()> {
    let mut world = world("reused", &only_a())?;
    world.api.put(SERVICES, service("web", "u1", WEB, &[(80, 80)]));
    world.api.put(SLICES, slice("web", "u1", &[80], &[&world.a]));
    becomes(&mut world, at(WEB, 80), "ok")?;
    // Deleted, and its address given to another at once.
    world.api.delete(SERVICES, "hanzo", "web");
    world.api.put(SERVICES, service("next", "u2", WEB, &[(80, 80)]));
    world.api.put(SLICES, slice("next", "u2", &[80], &[&world.b]));
    becomes(&mut world, at(WEB, 80), "EPERM")?;
    // The endpoints of the old one come back late, and are nobody's.
    world.api.put(SLICES, slice("web", "u1", &[80], &[&world.a]));
    // Under its own name, made anew: the endpoints of before say nothing of it.
    world.api.put(SERVICES, service("web", "u3", OTHER, &[(80, 80)]));
    let client = &mut world.client;
    let id = world.a.id.clone();
    let agent = &world.agent;
    eventually("the new Service to be known", PATIENCE, || {
        let services = agent.get("/v1/identities")?["services"].clone();
        let is_other = |service: &&Value| service["address"] == OTHER.to_string();
        let other = services.as_array().into_iter().flatten().find(is_other).cloned();
        ensure!(client.tcp(at(OTHER, 80))? == "EPERM", "{other:?} names {id}");
        Ok(other.is_some())
    })?;
    Ok(())
}

#[test]
fn without_the_api_what_was_known_holds_also_for_the_next_agent() -> Result<()> {
    let mut world = world("away", &only_a())?;
    world.api.put(SERVICES, service("web", "u1", WEB, &[(80, 80)]));
    world.api.put(SLICES, slice("web", "u1", &[80], &[&world.a]));
    world
        .api
        .put(SERVICES, service("mixed", "u2", OTHER, &[(80, 80)]));
    world
        .api
        .put(SLICES, slice("mixed", "u2", &[80], &[&world.a, &world.b]));
    becomes(&mut world, at(WEB, 80), "ok")?;
    becomes(&mut world, at(OTHER, 80), "EPERM")?;
    // What is known is on disk within two seconds.
    let memory = world.agent.files.audit().with_file_name("services.json");
    eventually("what is known to be on disk", PATIENCE, || {
        Ok(std::fs::read_to_string(&memory).is_ok_and(|text| text.contains("hanzo/mixed")))
    })?;
    world.api.stop();
    ensure!(world.client.tcp(at(WEB, 80))? == "ok");
    let revision = world.agent.revision()?;
    world.agent.kill()?;
    world.agent.restart()?;
    // The same table: nothing was taken away and given back.
    ensure!(
        world.agent.revision()? == revision,
        "{} after {revision}",
        world.agent.revision()?
    );
    becomes(&mut world, at(WEB, 80), "ok")?;
    becomes(&mut world, at(OTHER, 80), "EPERM")?;
    world.api.listen()?;
    world.api.delete(SERVICES, "hanzo", "web");
    becomes(&mut world, at(WEB, 80), "EPERM")
}
