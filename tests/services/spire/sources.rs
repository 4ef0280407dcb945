// SPDX-License-Identifier: Apache-2.0
//! SPIRE beside the file, and SPIRE that does not know us.

use zt_tests::agent_files::Workload;

use super::*;

#[test]
fn a_cgroup_that_file_and_spire_name_differently_is_nobody() -> Result<()> {
    let mut world = World::new("spire-dispute", Duration::from_secs(3600), true)?;
    world.register(CLIENT, "client")?;
    world.register(SERVER, "server")?;
    let (client, server) = (world.cgroup("client")?, world.cgroup("server")?);
    let agent = world
        .agent()?
        .config("identity", {
            let mut identity = world.identity(&json!(["spire", "file"]));
            identity["file"] = json!(world.sandbox.directory().join("workloads.yaml"));
            identity
        })
        .workload(Workload::new(SERVER, &client))
        .workload(Workload::new(SERVER, &server).mode("observe"))
        .start()?;
    let disputes = wait_for("a dispute", LATER, || {
        let disputes = agent.get("/v1/status")?["disputes"].clone();
        Ok((disputes != json!([])).then_some(disputes))
    })?;
    let expected =
        json!([{ "cgroup": client.relative(), "file": SERVER, "kubernetes": null, "spire": CLIENT }]);
    assert_eq!(disputes, expected);
    wait_identity(&agent, &client, None)?;
    wait_identity(&agent, &server, Some(SERVER))?;
    assert_eq!(world.connect(OPEN)?, "EPERM");
    let refused = agent.wait_audit("decision=DENY&source=unknown", LATER, |records| {
        !records.is_empty()
    })?;
    assert_eq!(refused[0]["reason"], "unknown_source");
    wait_metric(
        &agent,
        "zt_node_events_total",
        &[("event", "identity_disputed")],
        1,
    )?;

    let disputed = agent.records("type=identity_change", 1, |record| {
        record["change"]["cause"] == "disputed"
    })?;
    let says = json!({ "file": SERVER, "kubernetes": null, "spire": CLIENT });
    assert_eq!(disputed[0]["change"]["says"], says);

    // Agreed: the name is SPIRE's, the mode the file's.
    agent.files.write_workloads(&[
        Workload::new(CLIENT, &client).mode("observe"),
        Workload::new(SERVER, &server).mode("observe"),
    ])?;
    wait_identity(&agent, &client, Some(CLIENT))?;
    world.connects(SHUT, "ok")?;
    assert_eq!(agent.get("/v1/status")?["disputes"], json!([]));
    agent.wait_audit("decision=DENY&port=8001", LATER, |records| {
        records
            .iter()
            .any(|record| record["source"]["spiffe_id"] == CLIENT && record["enforced"] == false)
    })?;
    Ok(())
}

#[test]
fn an_agent_that_is_no_delegate_says_what_to_do() -> Result<()> {
    let world = World::new("spire-stranger", Duration::from_secs(3600), false)?;
    world.register(CLIENT, "client")?;
    let agent = world.agent()?.start()?;
    let told = |spire: &Value| says(&spire["error"], "authorized_delegates");
    let status = wait_spire(&agent, "what to do", told)?;
    assert_eq!(
        (&status["connected"], &status["named"]),
        (&json!(false), &json!(0))
    );
    // As soon as it is one, it is let in.
    let binary = format!("unix:path:{}", zt_tests::agent::binary()?.display());
    world.spire.register(&Spire::delegate(), &[&binary], &[])?;
    wait_identity(&agent, &world.cgroup("client")?, Some(CLIENT))
}
