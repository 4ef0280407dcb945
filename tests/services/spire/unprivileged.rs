// SPDX-License-Identifier: Apache-2.0
//! A SPIRE agent that is not root, and an agent with the capabilities of its manifests: only as a member of SPIRE's group it opens the
//! admin socket.

use zt_tests::contained::{granted, through};
use zt_tests::spire::{Node, USER};

use super::*;

/// The words before a program that make it run as the chart has it run, in these groups beside root's.
fn in_groups(groups: &str) -> Result<Vec<String>> {
    let mut words = vec!["setpriv".to_owned(), "--groups".to_owned(), groups.to_owned()];
    words.extend(through(&granted()?)?);
    Ok(words)
}

fn agent(world: &World, node: &Node, groups: &str) -> Result<Agent> {
    let identity = json!({
        "source": "spire",
        "spireAdminSocket": node.admin_socket,
        "spireSocket": node.socket,
    });
    world
        .agent()?
        .config("identity", identity)
        .config("unknownWorkload", json!("deny"))
        .through(in_groups(groups)?)
        .start()
}

/// What the doctor says of the admin socket when it is started by these words: how it stands, and what was found.
fn doctor(agent: &Agent, words: &[String]) -> Result<(String, String)> {
    let output = agent.command_through(words, &["doctor", "-o", "json"]).output()?;
    let said = || String::from_utf8_lossy(&output.stderr).into_owned();
    let report: Value = serde_json::from_slice(&output.stdout).with_context(said)?;
    let findings = report["findings"].as_array().context("findings")?;
    let of_socket = findings
        .iter()
        .find(|finding| finding["check"] == "spire.admin_socket");
    let of_socket = of_socket.context("a finding about the admin socket")?;
    let text = |field: &str| of_socket[field].as_str().unwrap_or_default().to_owned();
    Ok((text("status"), text("found")))
}

#[test]
fn an_agent_opens_the_admin_socket_of_a_spire_that_is_not_root_as_a_member_of_its_group() -> Result<()> {
    let mut world = World::new("spire-group", Duration::from_secs(3600), false)?;
    let node = world.spire.join_unprivileged("unprivileged")?;
    let binary = zt_tests::agent::binary()?;
    let programs = ["client", "server"].map(|name| program(&world.sandbox, name));
    for (id, path) in [
        (Spire::delegate().as_str(), &binary),
        (CLIENT, &programs[0]),
        (SERVER, &programs[1]),
    ] {
        let selector = format!("unix:path:{}", path.display());
        world.spire.register_on(&node.id, id, &[&selector], &[])?;
    }

    let mut without = agent(&world, &node, "4")?;
    let closed = format!(
        "{} (user {USER}, group {USER}, mode 0770) is closed to user 0 with the groups 0, 4 and without CAP_DAC_OVERRIDE",
        node.admin_socket.display()
    );
    let status = wait_spire(&without, "why the socket is not opened", |spire| {
        says(&spire["error"], &closed)
    })?;
    for remedy in [
        format!("`spire.adminGroup: {USER}`"),
        format!("`SupplementaryGroups={USER}`"),
    ] {
        assert!(says(&status["error"], &remedy), "{status}");
    }
    assert_eq!(status["connected"], false, "{status}");
    assert_eq!(world.connect(OPEN)?, "EPERM");
    // The doctor is told the same; one that has more rights says what an agent has not.
    let (status, found) = doctor(&without, &in_groups("4")?)?;
    assert!(status == "failed" && found.contains(&closed), "{status}: {found}");
    // That one is answered as soon as SPIRE's own agent has heard of the entries: it asks for them every few seconds.
    let found = wait_for("SPIRE to answer a delegate", Duration::from_secs(30), || {
        let (status, found) = doctor(&without, &[])?;
        let heard = !found.contains("no identity issued");
        assert!(!heard || status == "warning", "{status}: {found}");
        Ok(heard.then_some(found))
    })?;
    assert!(found.contains(&closed), "{found}");
    without.terminate()?;
    // Before there is an agent as well.
    let (status, found) = doctor(&without, &[])?;
    assert_eq!(status, "warning", "{found}");
    assert!(found.contains(&format!("group {USER}, mode 0770")), "{found}");
    drop(without);

    let with = agent(&world, &node, &USER.to_string())?;
    for (name, id) in [("client", CLIENT), ("server", SERVER)] {
        wait_identity(&with, &world.cgroup(name)?, Some(id))?;
    }
    world.connects(OPEN, "ok")?;
    assert_eq!(world.connect(SHUT)?, "EPERM");
    for words in [in_groups(&USER.to_string())?, Vec::new()] {
        let (status, found) = doctor(&with, &words)?;
        assert_eq!(status, "ok", "{found}");
    }
    Ok(())
}
