// SPDX-License-Identifier: Apache-2.0
//! The smallest cast that has something to refuse: a server, and a client with one port that it may reach.

use std::net::{Ipv6Addr, SocketAddr};

use anyhow::{Result, ensure};
use serde_json::json;

use crate::agent::{Agent, AgentBuilder};
use crate::probe::{Flood, Handle, Operation};
use crate::rules::{Policy, TCP, UDP};
use crate::scene::{Party, Scene};

/// A port at every address, of both families.
pub fn any(port: u16) -> SocketAddr {
    SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port)
}

/// Whether a connection to an echo server still carries a word there and back.
pub fn lives(party: &mut Party, socket: Handle) -> Result<bool> {
    party.send_text(socket, "word")?.ok()?;
    Ok(party.receive(socket)?.data.as_deref() == Some("word"))
}

/// `client` may reach `server` at port 80.
pub fn policy() -> Policy {
    Policy::new("policy")
        .allow("client", "server", TCP, "80")
        .allow("client", "server", UDP, "80")
}

/// The same cast, of which `server` begins to serve when the agent is there; handshakes bear identities.
pub fn pair_after_agent(
    label: &str,
    policy: &Policy,
    change: impl FnOnce(AgentBuilder) -> AgentBuilder,
) -> Result<(Scene, Party, Party, Agent)> {
    let mut scene = Scene::new(label)?;
    let (mut server, client) = (scene.workload("server")?, scene.workload("client")?);
    let agent = scene.agent(policy)?.config("handshake", json!("auto"));
    let agent = change(agent).start()?;
    for port in [80, 81] {
        server.serve(any(port))?.local()?;
    }
    Ok((scene, server, client, agent))
}

/// `server`, which serves at a port that policy allows (80) and at one that it does not (81), and `client`.
pub fn pair(label: &str) -> Result<(Scene, Party, Party)> {
    let mut scene = Scene::new(label)?;
    let (mut server, client) = (scene.workload("server")?, scene.workload("client")?);
    for port in [80, 81] {
        server.serve(any(port))?.local()?;
    }
    Ok((scene, server, client))
}

/// The client of a [`pair`] tries so often, each second time at the port that policy does not allow; policy decides all of it.
pub fn decide(client: &mut Party, server: &Party, count: u64) -> Result<()> {
    let flood = Flood {
        to: vec![server.v4(80), server.v6(81)],
        ..Flood::new(server.v4(80), count)
    };
    let reply = client.call(Operation::ConnectMany(flood))?.ok()?;
    let outcomes = (reply.outcomes[0].count("ok"), reply.outcomes[1].count("EPERM"));
    ensure!(outcomes == (count / 2, count / 2), "{outcomes:?} of {count}");
    Ok(())
}
