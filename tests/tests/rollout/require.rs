// SPDX-License-Identifier: Apache-2.0
//! The last stage: whom no policy names is refused, whoever is at the other end, over both protocols and both IP versions; his
//! node reaches him all the same.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Result;
use serde_json::json;
use zt_tests::datagram::{guarded, send, take};
use zt_tests::probe::Handle;
use zt_tests::trail::party;
use zt_tests::{Party, Policy, Scene, TCP, UDP, spiffe};

use super::{any, json_of, rollout};

/// How long what arrives may take on a busy machine.
const ARRIVAL: Duration = Duration::from_secs(60);
const STREAMS: u16 = 80;
const DATAGRAMS: u16 = 53;

/// A workload that takes connections and datagrams.
struct Service {
    party: Party,
    socket: Handle,
}

impl Service {
    fn new(scene: &mut Scene, name: &str) -> Result<Self> {
        let mut party = scene.workload(name)?;
        party.serve(any(STREAMS))?.local()?;
        let socket = party.udp_bind(any(DATAGRAMS))?.handle()?;
        Ok(Self { party, socket })
    }

    /// Somebody whom nobody manages reaches it: over TCP, then UDP, each over IPv4 and then IPv6.
    fn is_reached_by(&mut self, other: &mut Party) -> Result<()> {
        for to in [self.party.v4(STREAMS), self.party.v6(STREAMS)] {
            assert_eq!(other.talk(to)?, "ok", "{to}");
        }
        for to in [self.party.v4(DATAGRAMS), self.party.v6(DATAGRAMS)] {
            assert_eq!(other.udp(to)?, "ok", "{to}");
            let taken = take(&mut self.party, self.socket, ARRIVAL)?;
            assert_eq!(taken.outcome(), "ok", "{to}");
        }
        Ok(())
    }

    /// Nothing of one whom nobody manages reaches it, and what another sends after him does, in the same order.
    fn is_reached_after(&mut self, refused: &mut Party, other: &mut Party) -> Result<()> {
        for to in [self.party.v4(STREAMS), self.party.v6(STREAMS)] {
            assert_eq!(refused.talk(to)?, "ECONNRESET", "{to}");
            assert_eq!(other.talk(to)?, "ok", "{to}");
        }
        for to in [self.party.v4(DATAGRAMS), self.party.v6(DATAGRAMS)] {
            assert_eq!(refused.udp(to)?, "ok", "{to}");
            assert_eq!(send(other, None, to, "marker")?.outcome(), "ok", "{to}");
            let taken = take(&mut self.party, self.socket, ARRIVAL)?;
            assert_eq!(
                (taken.outcome(), taken.data.as_deref()),
                ("ok", Some("marker")),
                "{to}"
            );
        }
        let more = take(&mut self.party, self.socket, Duration::ZERO)?;
        assert_eq!(more.outcome(), "EAGAIN", "{:?}", more.data);
        Ok(())
    }

    /// What comes of its own attempts at another, in the same order.
    fn attempts(&mut self, other: &Party) -> Result<[String; 4]> {
        Ok([
            self.party.tcp(other.v4(STREAMS))?,
            self.party.tcp(other.v6(STREAMS))?,
            self.party.udp(other.v4(DATAGRAMS))?,
            self.party.udp(other.v6(DATAGRAMS))?,
        ])
    }
}

#[test]
fn whom_no_policy_names_is_refused_from_everywhere_but_his_node() -> Result<()> {
    let mut scene = Scene::new("require")?;
    let node = scene.host("node")?;
    let mut nobody = Service::new(&mut scene, "nobody")?;
    let mut web = Service::new(&mut scene, "web")?;
    let mut server = Service::new(&mut scene, "server")?;
    let mut stranger = scene.outsider("stranger")?;
    // In the agent's own namespace, as the kubelet is.
    let mut kubelet = scene.outsider_in("kubelet", &node)?;
    // What is said of everybody names nobody; a pattern names whom it matches.
    let pattern = spiffe("web").replace("/test/", "/*/");
    let everybody = ["world", "*"]
        .into_iter()
        .fold(Policy::new("policy"), |policy, from| {
            let policy = policy.allow(from, "*", TCP, &STREAMS.to_string());
            policy.allow(from, "*", UDP, &DATAGRAMS.to_string())
        });
    let agent = scene
        .agent(&everybody.allow(&pattern, "server", TCP, "81"))?
        .inside(&node)
        .policy(
            "rollout.yaml",
            &rollout(None, &json!([{ "name": "all", "requirePolicy": true }])),
        )?
        .start()?;
    for service in [&nobody, &web, &server] {
        guarded(&service.party)?;
    }
    nobody.is_reached_by(&mut stranger)?;
    let open = stranger.connect(nobody.party.v6(STREAMS))?.handle()?;
    let fine = stranger.connect(web.party.v6(STREAMS))?.handle()?;

    json_of(&agent, &["advance"])?;
    stranger.dies(open)?;
    nobody.is_reached_after(&mut stranger, &mut kubelet)?;
    assert_eq!(nobody.attempts(&server.party)?, ["EPERM"; 4]);
    assert_eq!(server.attempts(&nobody.party)?, ["EPERM"; 4]);
    let own = [nobody.party.v4(STREAMS), nobody.party.v6(STREAMS)];
    for to in own {
        assert_eq!(nobody.party.tcp(to)?, "EPERM", "not even itself, {to}");
    }
    web.is_reached_by(&mut stranger)?;
    assert_eq!(web.attempts(&server.party)?, ["ok"; 4]);
    assert_eq!(stranger.end(fine, Duration::from_millis(10))?, "alive");

    let refused = agent.records("decision=DENY", 4, |record| {
        party(&record["source"]) == "world" && record["reason"] == "deny_rule"
    })?;
    let mut kinds = BTreeSet::new();
    for record in &refused {
        assert_eq!(record["policy_matched"], "builtin/require-policy", "{record}");
        assert_eq!(party(&record["destination"]), nobody.party.id, "{record}");
        assert_eq!(
            (&record["observer"], &record["enforced"]),
            (&json!("destination"), &json!(true))
        );
        let address = record["destination"]["address"].as_str().unwrap_or_default();
        kinds.insert((record["protocol"].to_string(), address.contains(':')));
    }
    assert_eq!(kinds.len(), 4, "{kinds:?}");
    agent.records("decision=ALLOW", 4, |record| {
        party(&record["source"]) == "host"
            && party(&record["destination"]) == nobody.party.id
            && record["policy_matched"] == "builtin/host"
    })?;
    Ok(())
}
