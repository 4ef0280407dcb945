// SPDX-License-Identifier: Apache-2.0
//! The SVID that says which node an agent is on, beside that of its pod, which all agents of a cluster share.

use zt_tests::eventually;

use super::*;

#[test]
fn the_agent_shows_the_svid_of_its_node() -> Result<()> {
    let world = World::new("spire-node", Duration::from_secs(3600), false)?;
    let binary = format!("unix:path:{}", zt_tests::agent::binary()?.display());
    let delegate = Spire::delegate();
    let node = format!("{delegate}/nodes/worker-1");
    // SPIRE sends them in the order of their entries' ids.
    let entries: [(&str, &[&str]); 3] = [
        (&delegate, &["-entryID", "a", "-hint", "zt"]),
        (&node, &["-entryID", "b", "-hint", "zt-node"]),
        ("spiffe://hanzo.ai/hanzo-k8s/test/other", &["-entryID", "c"]),
    ];
    for (id, more) in entries {
        world.spire.register(id, &[&binary], more)?;
    }
    world.register(SERVER, "server")?;
    let agent = world
        .agent()?
        .env("ZT_API_TLS", "spire")
        .env("ZT_API_CALLERS", "spiffe://hanzo.ai/ops/*=read")
        .start()?;
    // Its API answers over TLS alone: what it says of itself is read from its log.
    let says = |what: &str, who: &str| -> Result<bool> {
        let log = agent.log()?;
        Ok(log.lines().any(|line| line.contains(what) && line.contains(who)))
    };
    eventually("the SVID of the node to be shown", LATER, || {
        says("a new certificate of this agent", &node)
    })?;
    // The other one still opens SPIRE's admin socket to it.
    eventually("the server to be attested", LATER, || {
        says("attested by SPIRE", SERVER)
    })
}
