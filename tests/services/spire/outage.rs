// SPDX-License-Identifier: Apache-2.0
//! SPIRE is away: its agent, its server, or ours.

use super::*;

#[test]
fn identities_hold_while_the_spire_agent_is_away_and_while_ours_starts_again() -> Result<()> {
    let mut world = World::new("spire-agent", Duration::from_secs(3600), true)?;
    world.register(CLIENT, "client")?;
    let server = world.register(SERVER, "server")?;
    let mut agent = world.agent()?.start()?;
    world.connects(SHUT, "EPERM")?;
    world.connects(OPEN, "ok")?;
    wait_spire(&agent, "both to be named", |spire| spire["named"] == 2)?;

    world.spire.stop_agent()?;
    // First the connection breaks, then there is no new one.
    wait_spire(&agent, "the outage to show", |spire| {
        spire["connected"] == false && says(&spire["error"], "admin.sock")
    })?;
    assert_eq!(agent.metrics()?.sum("zt_spire_connected", &[]), 0);
    let words = ready(&agent)?;
    assert_eq!(words["status"], "ready");
    assert!(says(&words["spire"], "admin.sock"), "{words}");
    let status = ask(&format!("unix://{}", agent.socket().display()))?.output()?;
    assert!(String::from_utf8_lossy(&status.stdout).contains("admin.sock"));
    assert_eq!(world.connect(OPEN)?, "ok");
    assert_eq!(world.connect(SHUT)?, "EPERM");

    // Killed and started again with nobody to ask, the agent knows whom it knew.
    agent.kill()?;
    assert_eq!(world.connect(OPEN)?, "ok");
    agent.restart()?;
    assert_eq!(world.connect(OPEN)?, "ok");
    assert_eq!(world.connect(SHUT)?, "EPERM");
    wait_identity(&agent, &world.cgroup("server")?, Some(SERVER))?;
    assert_eq!(agent.metrics()?.sum("zt_spire_connected", &[]), 0);

    // What changed meanwhile is learned when SPIRE is back.
    world.spire.unregister(&server)?;
    world.spire.restart_agent()?;
    wait_spire(&agent, "SPIRE to be back", |spire| spire["connected"] == true)?;
    wait_identity(&agent, &world.cgroup("server")?, None)?;
    wait_identity(&agent, &world.cgroup("client")?, Some(CLIENT))?;
    world.connects(OPEN, "EPERM")
}

#[test]
fn a_spire_agent_that_hangs_is_noticed_and_found_again() -> Result<()> {
    let mut world = World::new("spire-frozen", Duration::from_secs(3600), true)?;
    world.register(CLIENT, "client")?;
    world.register(SERVER, "server")?;
    let agent = world.agent()?.start()?;
    world.connects(SHUT, "EPERM")?;
    wait_spire(&agent, "both to be named", |spire| spire["named"] == 2)?;
    world.spire.freeze_agent(true)?;
    let status = wait_spire(&agent, "the outage to show", |spire| spire["connected"] == false)?;
    assert!(says(&status["error"], "did not answer"), "{status}");
    assert_eq!(world.connect(OPEN)?, "ok");
    world.spire.freeze_agent(false)?;
    wait_spire(&agent, "SPIRE to be back", |spire| spire["connected"] == true)?;
    wait_spire(&agent, "both to be named", |spire| spire["named"] == 2)?;
    assert_eq!(world.connect(OPEN)?, "ok");
    Ok(())
}

#[test]
fn without_the_server_identities_end_with_their_svids() -> Result<()> {
    let mut world = World::new("spire-server", Duration::from_secs(12), true)?;
    world.register(CLIENT, "client")?;
    world.register(SERVER, "server")?;
    let agent = world.agent()?.start()?;
    world.connects(SHUT, "EPERM")?;
    world.connects(OPEN, "ok")?;
    world.spire.stop_server()?;
    wait_metric(&agent, "zt_spire_withdrawn_total", &[("cause", "expired")], 2)?;
    // Enforced once, enforced still.
    wait_identity(&agent, &world.cgroup("client")?, None)?;
    world.connects(OPEN, "EPERM")?;
    agent.wait_audit("decision=DENY&source=unknown", LATER, |records| {
        records
            .iter()
            .any(|record| record["reason"] == "unknown_source" && record["enforced"] == true)
    })?;
    let status = wait_spire(&agent, "both to wait", |spire| spire["waiting"] == 2)?;
    assert_eq!(status["connected"], true, "it is the server that is away");

    world.spire.start_server()?;
    world.connects(OPEN, "ok")?;
    assert_eq!(world.connect(SHUT)?, "EPERM");
    Ok(())
}

#[test]
fn held_identities_outlive_their_svids() -> Result<()> {
    let mut world = World::new("spire-hold", Duration::from_secs(12), true)?;
    world.register(CLIENT, "client")?;
    world.register(SERVER, "server")?;
    let mut identity = world.identity(&json!(["spire"]));
    identity["onExpiry"] = json!("hold");
    let agent = world.agent()?.config("identity", identity).start()?;
    world.connects(SHUT, "EPERM")?;
    world.connects(OPEN, "ok")?;
    world.spire.stop_server()?;
    wait_spire(&agent, "both to be held", |spire| spire["expired"] == 2)?;
    assert_eq!(world.connect(OPEN)?, "ok");
    assert_eq!(world.connect(SHUT)?, "EPERM");
    assert_eq!(agent.metrics()?.sum("zt_spire_withdrawn_total", &[]), 0);
    assert_eq!(agent.metrics()?.sum("zt_spire_workloads_expired", &[]), 2);
    Ok(())
}

#[test]
fn who_was_observed_is_not_denied_when_its_svid_ends() -> Result<()> {
    let mut world = World::new("spire-observed", Duration::from_secs(20), true)?;
    world.register(CLIENT, "client")?;
    world.register(SERVER, "server")?;
    let agent = world
        .agent()?
        .mode("observe")
        .config("unknownWorkload", json!("deny"))
        .start()?;
    wait_identity(&agent, &world.cgroup("client")?, Some(CLIENT))?;
    wait_identity(&agent, &world.cgroup("server")?, Some(SERVER))?;
    world.connects(SHUT, "ok")?;
    world.spire.stop_server()?;
    wait_metric(&agent, "zt_spire_withdrawn_total", &[("cause", "expired")], 2)?;
    wait_identity(&agent, &world.cgroup("client")?, None)?;
    for _ in 0..10 {
        assert_eq!(world.connect(SHUT)?, "ok");
    }
    // Whoever never had a name is denied.
    let mut stranger = start(&world.sandbox, &world.host, "stranger")?;
    let reply = stranger.connect(SocketAddr::from((Ipv4Addr::LOCALHOST, SHUT)))?;
    assert_eq!(reply.outcome(), "EPERM");
    Ok(())
}
