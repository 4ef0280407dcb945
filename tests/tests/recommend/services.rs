// SPDX-License-Identifier: Apache-2.0
//! A Service of several identities and ports, and a raw socket: what is recommended allows them, too, and a replay says what
//! breaks them.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use zt_tests::agent::DEADLINE;
use zt_tests::probe::Operation;
use zt_tests::services::{SERVICES, SLICES, Served, service, slice};
use zt_tests::trail::party;
use zt_tests::{Agent, Party, Policy, eventually};

use super::{Flow, flows_of, lesser};

/// What `a` has besides its own addresses.
const WEB: Ipv4Addr = Ipv4Addr::new(10, 96, 7, 3);
const SERVICE: &str = "service:hanzo/web";
const RAW: &str = "raw-sockets";

/// A client, and a Service with `a` behind it at port 80 and `b` at port 81. Nobody enforces.
fn world() -> Result<Served> {
    let world = Served::at(WEB, "recommended", &Policy::new("nothing"), |agent| {
        agent.mode("observe").config("handshake", json!("off"))
    })?;
    world.api.put(SERVICES, service("web", "u1", WEB, &[(80, 80)]));
    world.api.put(SLICES, slice("web", "u1", &[80], &[&world.a]));
    let mut other = slice("web", "u1", &[80], &[&world.b]);
    other["metadata"]["name"] = json!("web-y");
    other["metadata"]["uid"] = json!("other-slice-of-u1");
    other["ports"][0]["port"] = json!(81);
    world.api.put(SLICES, other);
    wait_known(&world.agent)?;
    Ok(world)
}

/// Waits until the agent knows both of those behind the Service.
fn wait_known(agent: &Agent) -> Result<()> {
    eventually("the Service to be known", DEADLINE, || {
        let shown = agent.get("/v1/identities")?["services"].clone();
        let mut services = shown.as_array().into_iter().flatten();
        Ok(services.any(|one| one["group"] == true && one["backends"].as_array().map(Vec::len) == Some(2)))
    })
}

/// Calls the Service, and opens a socket as `ping` does: what of it is refused.
fn act(client: &mut Party) -> Result<BTreeSet<Flow>> {
    let called = client.talk(SocketAddr::new(IpAddr::V4(WEB), 80))?;
    let opened = client.call(Operation::Socket {
        family: libc::AF_INET,
        kind: libc::SOCK_RAW,
        protocol: libc::IPPROTO_ICMP,
    })?;
    if let Some(socket) = opened.socket {
        client.close(socket)?;
    }
    let flow = |to: &str, port, protocol: &str| (client.id.clone(), to.to_owned(), port, protocol.to_owned());
    let all = [
        (flow(SERVICE, 80, "TCP"), called.as_str()),
        (flow(RAW, 0, "ICMP"), opened.outcome()),
    ];
    let refused = all.into_iter().filter(|(_, outcome)| *outcome != "ok");
    Ok(refused.map(|(flow, _)| flow).collect())
}

/// Waits until both are in the trail, decided by this revision or later ones; all such records.
fn wait_recorded(agent: &Agent, since: u64) -> Result<Vec<Value>> {
    let is_meant = |record: &&Value| record["revision"].as_u64().is_some_and(|of| of >= since);
    let records = agent.wait_audit("type=decision&limit=1000", DEADLINE, |records| {
        [SERVICE, RAW].iter().all(|name| {
            let mut meant = records.iter().filter(is_meant);
            meant.any(|record| party(&record["destination"]) == *name)
        })
    })?;
    Ok(records.into_iter().filter(|record| is_meant(&record)).collect())
}

#[test]
fn services_and_raw_sockets_are_recommended_and_their_loss_is_foretold() -> Result<()> {
    let mut world = world()?;
    assert_eq!(act(&mut world.client)?, BTreeSet::new(), "nobody enforces");
    wait_recorded(&world.agent, 0)?;
    let api = format!("http://{}", world.agent.api());
    let by = ["--since", "1h", "--api", api.as_str()];
    // It would fail if anything were not in it.
    let made = world
        .agent
        .policy_says(&[&["recommend", "--fail"], by.as_slice()].concat())?;
    assert_eq!(made["unsaid"], json!([]), "{made}");
    let text = made["policy"].as_str().context("a policy")?.to_owned();

    // Enforced, the same traffic goes through, and nothing of it is denied.
    world.agent.change_policy(&text)?;
    world.agent.restart_with("mode", json!("enforce"))?;
    wait_known(&world.agent)?;
    let revision = world.agent.revision()?;
    assert_eq!(act(&mut world.client)?, BTreeSet::new(), "{text}");
    for record in wait_recorded(&world.agent, revision)? {
        assert_eq!(record["decision"], "ALLOW", "{record}\n{text}");
    }

    // Without any part of it something of that is refused, and a replay has said just what.
    let document = world.agent.get("/v1/policies/recommended")?["document"].clone();
    let all = lesser(&document);
    assert_eq!(
        all.len(),
        4,
        "two rules, and two targets of one of them: {document}"
    );
    let candidates = world.agent.files.policies().with_file_name("candidate");
    std::fs::create_dir_all(&candidates)?;
    for (what, document) in all {
        std::fs::write(candidates.join("policy.yaml"), document.to_string())?;
        let path = candidates.display().to_string();
        let replayed = world
            .agent
            .policy_says(&[&["replay", path.as_str()], by.as_slice()].concat())?;
        let rows = replayed["changes"].as_array().context("changes")?;
        let denied = flows_of(rows.iter().filter(|row| row["change"] == "newly_denied"));
        world.agent.change_policy(&document.to_string())?;
        let refused = act(&mut world.client)?;
        assert!(!refused.is_empty(), "{what}: nothing is refused without it");
        assert_eq!(denied, refused, "{what}: {replayed}");
    }
    Ok(())
}
