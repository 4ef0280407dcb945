// SPDX-License-Identifier: Apache-2.0
//! The life of an identity: attested, enforced, rotated, taken back, given again.

use std::time::Instant;

use anyhow::ensure;

use super::*;

/// How often an SVID was not renewed before it ended, which on a machine that is too busy is SPIRE's doing.
fn ended(agent: &Agent) -> Result<u64> {
    Ok(agent
        .metrics()?
        .sum("zt_spire_withdrawn_total", &[("cause", "expired")]))
}

/// The client reaches the server, unless an SVID has ended.
fn allowed(world: &mut World, agent: &Agent) -> Result<()> {
    let outcome = world.connect(OPEN)?;
    ensure!(
        outcome == "ok" || ended(agent)? > 0,
        "{outcome} while all SVIDs were valid"
    );
    Ok(())
}

/// No name was taken back but with its SVID.
fn none_withdrawn(agent: &Agent) -> Result<()> {
    let withdrawn = agent.metrics()?.sum("zt_spire_withdrawn_total", &[]);
    ensure!(withdrawn == ended(agent)?, "{withdrawn} were withdrawn");
    Ok(())
}

#[test]
fn attested_enforced_rotated_and_withdrawn() -> Result<()> {
    let mut world = World::new("spire-life", Duration::from_secs(12), true)?;
    let client = world.register(CLIENT, "client")?;
    let server = world.register(SERVER, "server")?;
    let agent = world.agent()?.start()?;
    wait_identity(&agent, &world.cgroup("client")?, Some(CLIENT))?;
    wait_identity(&agent, &world.cgroup("server")?, Some(SERVER))?;
    assert_eq!(world.connect(OPEN)?, "ok");
    assert_eq!(world.connect(SHUT)?, "EPERM");
    agent.records("decision=ALLOW", 1, |record| {
        record["source"]["spiffe_id"] == CLIENT && record["destination"]["spiffe_id"] == SERVER
    })?;
    agent.records("decision=DENY", 1, |record| {
        record["source"]["spiffe_id"] == CLIENT && record["enforced"] == true
    })?;
    assert_eq!(ready(&agent)?, json!({ "status": "ready" }));
    let status = wait_spire(&agent, "both to be named", |spire| spire["named"] == 2)?;
    assert_eq!(
        (&status["connected"], &status["waiting"]),
        (&json!(true), &json!(0))
    );

    // SPIRE renews SVIDs as short as these about each second. Longer than the first one was valid, nothing is refused:
    // not for a moment.
    let held = world
        .client
        .connect(SocketAddr::from((Ipv4Addr::LOCALHOST, OPEN)))?
        .socket
        .context("connected")?;
    let rotated = [("service", CLIENT)];
    let deadline = Instant::now() + LATER;
    while agent.metrics()?.sum("zt_svid_rotations_total", &rotated) < 14 {
        ensure!(Instant::now() < deadline, "fewer than 14 rotations");
        allowed(&mut world, &agent)?;
    }
    wait_metric(&agent, "zt_svid_rotations_total", &[("service", SERVER)], 2)?;
    world.client.send_text(held, "still here")?.ok()?;
    assert_eq!(world.client.receive(held)?.data.as_deref(), Some("still here"));
    none_withdrawn(&agent)?;
    // They are short, and SPIRE's keys are of the kind that is wanted.
    assert_eq!(agent.metrics()?.sum("zt_spire_svids_outside_total", &[]), 0);

    // The server's entry goes: whoever is connected to it is cut off, and it is nobody.
    world.spire.unregister(&server)?;
    wait_identity(&agent, &world.cgroup("server")?, None)?;
    world.connects(OPEN, "EPERM")?;
    agent.records("decision=DENY&port=8000", 1, |record| {
        record["destination"]["entity"] == "unknown"
            && record["reason"] == "revoked"
            && record["observer"] == "destination"
    })?;
    assert_eq!(world.client.receive(held)?.errno.as_deref(), Some("ECONNRESET"));
    wait_metric(&agent, "zt_spire_withdrawn_total", &[("cause", "no_entry")], 1)?;
    let lost = agent.records("type=identity_change", 1, |_| true)?;
    assert_eq!(
        (&lost[0]["caller"], &lost[0]["change"]),
        (
            &json!("spire"),
            &json!({
                "cgroup": world.cgroup("server")?.relative(), "from": SERVER, "to": null, "cause": "no_entry",
            })
        )
    );

    // So does the client's: it stays enforced, and the record says that nobody knows it.
    world.spire.unregister(&client)?;
    wait_identity(&agent, &world.cgroup("client")?, None)?;
    assert_eq!(world.connect(OPEN)?, "EPERM");
    let refused = agent.wait_audit("decision=DENY&source=unknown", LATER, |records| {
        !records.is_empty()
    })?;
    assert_eq!(
        (&refused[0]["reason"], &refused[0]["enforced"]),
        (&json!("unknown_source"), &json!(true))
    );

    // Given back, they are who they were.
    world.register(CLIENT, "client")?;
    world.register(SERVER, "server")?;
    world.connects(OPEN, "ok")
}

#[test]
fn who_has_no_entry_yet_is_nobody_until_it_has() -> Result<()> {
    let mut world = World::new("spire-late", Duration::from_secs(3600), true)?;
    let agent = world.agent()?.start()?;
    wait_spire(&agent, "both to wait", |spire| spire["waiting"] == 2)?;
    // Nobody was ever enforced upon here: that is `unknownWorkload`, by default recorded.
    assert_eq!(world.connect(OPEN)?, "ok");
    agent.records("source=unknown", 1, |record| {
        record["reason"] == "unknown_source" && record["enforced"] == false
    })?;
    world.register(CLIENT, "client")?;
    world.register(SERVER, "server")?;
    wait_identity(&agent, &world.cgroup("client")?, Some(CLIENT))?;
    wait_identity(&agent, &world.cgroup("server")?, Some(SERVER))?;
    // The listeners are older than the names of their owner.
    assert_eq!(world.connect(OPEN)?, "ok");
    assert_eq!(world.connect(SHUT)?, "EPERM");

    // A process ends, and another program runs in its place.
    let other = Probe::start_as(
        &program(&world.sandbox, "server"),
        &world.cgroup("other")?,
        Some(&world.host),
    )?;
    drop(std::mem::replace(&mut world.client, other));
    wait_identity(&agent, &world.cgroup("other")?, Some(SERVER))?;
    wait_identity(&agent, &world.cgroup("client")?, None)?;
    world.client.move_to(&world.cgroup("client")?)?.ok()?;
    wait_identity(&agent, &world.cgroup("client")?, Some(SERVER))?;
    wait_identity(&agent, &world.cgroup("other")?, None)?;
    assert_eq!(world.connect(SHUT)?, "ok", "the server to itself");
    drop(world.server);
    Ok(())
}

#[test]
fn svids_of_a_new_authority_are_believed_when_spire_says_so() -> Result<()> {
    let mut world = World::new("spire-authority", Duration::from_secs(12), true)?;
    world.register(CLIENT, "client")?;
    world.register(SERVER, "server")?;
    let agent = world.agent()?.start()?;
    world.connects(SHUT, "EPERM")?;
    world.connects(OPEN, "ok")?;
    world.spire.rotate_authority()?;
    let rotated = [("service", CLIENT)];
    let before = agent.metrics()?.sum("zt_svid_rotations_total", &rotated);
    let deadline = Instant::now() + LATER;
    while agent.metrics()?.sum("zt_svid_rotations_total", &rotated) < before + 2 {
        ensure!(Instant::now() < deadline, "no rotation after the authority's");
        allowed(&mut world, &agent)?;
    }
    none_withdrawn(&agent)?;
    Ok(())
}
