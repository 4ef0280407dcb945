// SPDX-License-Identifier: Apache-2.0
//! From observing to enforcing: stages come and go with real traffic, policy and modes change in one step, a node stops by itself.

#[path = "rollout/advance.rs"]
mod advance;
#[path = "rollout/canary.rs"]
mod canary;
#[path = "rollout/churn.rs"]
mod churn;
#[path = "rollout/first_name.rs"]
mod first_name;
#[path = "rollout/in_cluster.rs"]
mod in_cluster;
#[path = "rollout/modes.rs"]
mod modes;
#[path = "rollout/require.rs"]
mod require;
#[path = "rollout/stops.rs"]
mod stops;
#[path = "rollout/through_engine.rs"]
mod through_engine;
#[path = "rollout/under_load.rs"]
mod under_load;
#[path = "rollout/way_back.rs"]
mod way_back;

use std::net::{Ipv6Addr, SocketAddr};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use zt_tests::agent::{DEADLINE, binary};
use zt_tests::probe::{Flood, Operation};
use zt_tests::wait::slowness;
use zt_tests::{Agent, Policy, Scene, TCP, UDP, spiffe, trail};

/// How long the changes of the test of one step go on, and how many there must have been.
const HAMMER: Duration = Duration::from_secs(8);
/// See [`HAMMER`].
const LEAST_CHANGES: u64 = 10;
/// One attempt in this time, for each of the loops.
const PACE: Duration = Duration::from_micros(500);

fn any(port: u16) -> SocketAddr {
    SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port)
}

/// A rollout with these stages, at one of them.
fn rollout(stage: Option<&str>, stages: &Value) -> String {
    let mut spec = json!({ "stages": stages });
    if let Some(stage) = stage {
        spec["stage"] = stage.into();
    }
    let document = json!({
        "apiVersion": "zt.hanzo.ai/v1",
        "kind": "EnforcementRollout",
        "metadata": { "name": "to-enforcing" },
        "spec": spec,
    });
    format!("{document:#}\n")
}

fn stage(name: &str, identity: &str) -> Value {
    json!({ "name": name, "identities": [spiffe(identity)] })
}

/// `zt-agent rollout …`, of this agent.
fn cli(agent: &Agent, arguments: &[&str]) -> Result<Output> {
    cli_at(&format!("unix://{}", agent.socket().display()), arguments)
}

/// The same, of whoever is there.
fn cli_at(api: &str, arguments: &[&str]) -> Result<Output> {
    let mut command = Command::new(binary()?);
    command.arg("rollout").args(arguments).args(["--api", api]);
    Ok(command.output()?)
}

fn json_of(agent: &Agent, arguments: &[&str]) -> Result<Value> {
    let output = cli(agent, &[arguments, &["-o", "json"]].concat())?;
    ensure!(output.status.success(), "{output:?}");
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn error_of(agent: &Agent, arguments: &[&str], code: i32) -> Result<String> {
    let output = cli(agent, arguments)?;
    ensure!(output.status.code() == Some(code), "{output:?}");
    Ok(String::from_utf8(output.stderr)?)
}

/// Records of a rollout's moves, oldest first.
fn moves(agent: &Agent) -> Result<Vec<Value>> {
    let records = agent.all_records("type=mode_change")?;
    let moves = records.into_iter().map(|record| record["change"].clone());
    Ok(moves.filter(|change| change["mode"] == "rollout").collect())
}

#[test]
fn stages_come_and_go_with_the_traffic_that_they_are_about() -> Result<()> {
    let mut scene = Scene::new("stages")?;
    let mut server = scene.workload("server")?;
    let (mut chat, mut iam) = (scene.workload("chat")?, scene.workload("iam")?);
    let mut stranger = scene.workload("stranger")?;
    for port in [80, 81, 82] {
        server.serve(any(port))?.local()?;
    }
    let policy = Policy::new("policy")
        .allow("chat", "server", TCP, "80")
        .allow("iam", "server", TCP, "80")
        .allow("*", "server", TCP, "82");
    let stages = json!([
        stage("chat", "chat"),
        stage("iam", "iam"),
        { "name": "all", "requirePolicy": true },
    ]);
    let agent = scene
        .agent(&policy)?
        .policy("rollout.yaml", &rollout(None, &stages))?
        .mode("observe")
        .start()?;
    let status = json_of(&agent, &["status"])?;
    assert_eq!(status["rollout"]["in_force"], Value::Null);
    assert_eq!(status["rollout"]["stages"][0]["state"], "next");
    assert_eq!(chat.tcp(server.v4(81))?, "ok", "nobody enforces yet");
    let open = chat.connect(server.v6(81))?.handle()?;
    let fine = chat.connect(server.v6(80))?.handle()?;

    let change = json_of(&agent, &["advance", "--dry-run"])?;
    assert_eq!(
        (&change["to"], &change["in_force"]),
        (&json!("chat"), &json!(false))
    );
    assert_eq!(chat.tcp(server.v4(81))?, "ok");

    // In force when the command returns, for what is open too.
    let change = json_of(&agent, &["advance"])?;
    assert_eq!((&change["from"], &change["to"]), (&Value::Null, &json!("chat")));
    assert_eq!(chat.tcp(server.v4(81))?, "EPERM");
    assert_eq!(chat.tcp(server.v6(80))?, "ok");
    assert_eq!(iam.tcp(server.v6(81))?, "ok", "it observes");
    chat.dies(open)?;
    assert_eq!(chat.end(fine, Duration::from_millis(10))?, "alive");
    let status = json_of(&agent, &["status"])?;
    assert_eq!(status["rollout"]["in_force"], "chat");
    assert_eq!(
        status["rollout"]["workloads"],
        json!({ "total": 4, "enforced": 1, "newly_enforced": 1, "enforced_without_name": 0 })
    );

    json_of(&agent, &["advance"])?;
    assert_eq!(iam.tcp(server.v6(81))?, "EPERM");
    assert_eq!(chat.tcp(server.v4(81))?, "EPERM");

    // Whom no policy names is refused where it was allowed what everybody is; its node reaches it.
    assert_eq!(stranger.tcp(server.v4(82))?, "ok");
    json_of(&agent, &["advance", "--to", "all"])?;
    assert_eq!(stranger.tcp(server.v4(82))?, "EPERM");
    assert_eq!(iam.tcp(server.v4(82))?, "ok");
    let query = format!("source={}&decision=DENY", stranger.id);
    let denied = agent.wait_audit(&query, DEADLINE, |found| !found.is_empty())?;
    assert_eq!(denied[0]["policy_matched"], "builtin/require-policy");
    assert!(error_of(&agent, &["advance"], 1)?.contains("`all` is the last stage"));
    assert!(error_of(&agent, &["advance", "--to", "chat"], 2)?.contains("rollback --to"));

    // And back, one and then all.
    json_of(&agent, &["rollback"])?;
    assert_eq!(stranger.tcp(server.v4(82))?, "ok");
    assert_eq!(iam.tcp(server.v6(81))?, "EPERM");
    json_of(&agent, &["rollback", "--all"])?;
    for party in [&mut chat, &mut iam, &mut stranger] {
        assert_eq!(party.tcp(server.v4(81))?, "ok");
    }
    assert!(error_of(&agent, &["rollback"], 1)?.contains("no stage of to-enforcing is reached"));

    let moves = moves(&agent)?;
    let stages: Vec<(&Value, &Value)> = moves
        .iter()
        .map(|change| (&change["from"], &change["to"]))
        .collect();
    let none = Value::Null;
    let [chat, iam, all] = ["chat", "iam", "all"].map(Value::from);
    assert_eq!(
        stages,
        [
            (&none, &chat),
            (&chat, &iam),
            (&iam, &all),
            (&all, &iam),
            (&iam, &none)
        ]
    );
    assert_eq!(
        (&moves[0]["to_enforce"], &moves[0]["to_observe"]),
        (&json!(1), &json!(0))
    );
    assert_eq!(
        (&moves[4]["to_enforce"], &moves[4]["to_observe"]),
        (&json!(0), &json!(2))
    );
    let policies = agent.all_records("type=policy_change")?;
    let of_rollout =
        |record: &&Value| record["change"]["diff"]["policies"][0]["kind"] == "EnforcementRollout";
    assert_eq!(policies.iter().filter(of_rollout).count(), 5);
    Ok(())
}

/// Two documents that must never mix: one allows and enforces, the other observes and allows nothing. Under each of them everything
/// goes through; under the policy of one in the modes of the other it would not.
#[test]
fn policy_and_modes_change_in_one_step() -> Result<()> {
    let mut scene = Scene::new("one-step")?;
    let (mut server, mut client) = (scene.workload("server")?, scene.workload("client")?);
    let mut stranger = scene.outsider("stranger")?;
    server.serve(any(80))?.local()?;
    server.udp_bind(any(80))?.handle()?;
    let mut enforcing = Policy::new("policy");
    for protocol in [TCP, UDP] {
        enforcing = enforcing.allow("client", "server", protocol, "80").allow(
            "10.99.0.0/16",
            "server",
            protocol,
            "80",
        );
    }
    let stages = json!([{ "name": "both", "identities": [spiffe("client"), spiffe("server")] }]);
    // In one file: they come and go together.
    let odd = format!("{}---\n{}", enforcing.text(), rollout(Some("both"), &stages));
    let even = format!("{}---\n{}", Policy::new("policy").text(), rollout(None, &stages));
    let agent = scene
        .agent(&enforcing)?
        .mode("observe")
        .policy("policy.yaml", &odd)?
        .start()?;
    assert_eq!(agent.revision()?, 1);

    // In a slow guest changes take longer, and so does reading what there is on record of each attempt.
    let (hammer, pace) = (HAMMER * slowness(), PACE * slowness().pow(2));
    let forever = |echo| Flood {
        duration: Some(hammer),
        pace: Some(pace),
        echo,
        ..Flood::new(server.v4(80), u64::MAX)
    };
    let mut sender = scene.start("sender", &client.cgroup, &client.host)?;
    client.send(Operation::ConnectMany(forever(true)))?;
    sender.send(Operation::SendMany(forever(false)))?;
    stranger.send(Operation::ConnectMany(forever(true)))?;
    let start = Instant::now();
    let mut revision = 1;
    // The loops end by themselves a little later than this one.
    while start.elapsed() < hammer {
        let next = if revision % 2 == 1 { &even } else { &odd };
        revision = agent.change_policy(next)?;
    }
    println!("{} changes in {:?}", revision - 1, start.elapsed());
    // A guest without the help of hardware has not taken in one in the time of ten.
    let least = if slowness() > 1 { 2 } else { LEAST_CHANGES };
    assert!(revision > least, "only {revision} changes");
    for (party, who) in [
        (&mut client, "connections"),
        (&mut sender, "datagrams"),
        (&mut stranger, "connections from outside"),
    ] {
        let reply = party.wait()?.ok()?;
        let counts = &reply.outcomes[0].counts;
        println!("{who}: {counts:?}");
        assert_eq!(counts.keys().collect::<Vec<_>>(), ["ok"], "{who}");
    }
    // Each decision is of the revision that it names, and happened by the mode of that.
    let records = agent.all_records("port=80&type=decision")?;
    assert!(trail::decided(&records) > 1000, "{} records", records.len());
    for record in &records {
        let revision = record["revision"].as_u64().context("a revision")?;
        let wanted = if revision % 2 == 1 {
            ("ALLOW", true)
        } else {
            ("DENY", false)
        };
        let found = (
            record["decision"].as_str().context("a decision")?,
            record["enforced"] == true,
        );
        assert_eq!(found, wanted, "{record}");
    }
    Ok(())
}

#[test]
fn a_rollout_that_is_wrong_changes_nothing_and_says_where() -> Result<()> {
    let (scene, server, mut client) = Scene::served("wrong", &[80])?;
    let stages = json!([stage("client", "client")]);
    let good = rollout(Some("client"), &stages);
    let agent = scene
        .agent(&Policy::new("policy"))?
        .mode("observe")
        .policy("rollout.yaml", &good)?
        .start()?;
    assert_eq!(client.tcp(server.v4(80))?, "EPERM");
    let (path, revision) = (agent.files.policies(), agent.revision()?);
    for (what, text, wanted) in [
        (
            "a percentage out of range",
            good.replace(
                "\"name\": \"client\"",
                "\"canary\": {\"percent\": 150}, \"name\": \"client\"",
            ),
            "spec.stages[0].canary.percent: 150 is out of range",
        ),
        (
            "a stage that selects nothing",
            rollout(None, &json!([{ "name": "none", "identities": [] }])),
            "spec.stages[0].identities: the list is empty, so that the stage selects nobody",
        ),
        (
            "a stage that is not there",
            good.replace("\"stage\": \"client\"", "\"stage\": \"clients\""),
            "spec.stage: no stage is called `clients`: did you mean `client`?",
        ),
    ] {
        agent.files.write_policy("rollout.yaml", &text)?;
        let told = agent.wait_policies(what, |answer| {
            answer["errors"]
                .as_array()
                .is_some_and(|errors| !errors.is_empty())
        })?;
        let error = &told["errors"][0];
        let found = format!(
            "{}: {}",
            error["field"].as_str().unwrap_or_default(),
            error["message"].as_str().unwrap_or_default()
        );
        assert!(found.starts_with(wanted), "{what}: {found}");
        assert_eq!(
            error["file"],
            path.join("rollout.yaml").display().to_string(),
            "{what}"
        );
        assert!(
            error["line"].as_u64().is_some_and(|line| line > 0),
            "{what}: {error}"
        );
        assert_eq!(client.tcp(server.v4(80))?, "EPERM", "{what}");
        agent.files.write_policy("rollout.yaml", &good)?;
        agent.wait_policies("the good one", |answer| answer["errors"] == json!([]))?;
    }
    agent
        .files
        .write_policy("second.yaml", &good.replace("to-enforcing", "another"))?;
    let told = agent.wait_policies("a conflict", |answer| answer["errors"] != json!([]))?;
    let message = told["errors"][0]["message"].as_str().context("a message")?;
    assert!(
        message.contains("`another` conflicts with the EnforcementRollout `to-enforcing`"),
        "{message}"
    );
    assert_eq!(told["revision"], revision);
    assert_eq!(client.tcp(server.v4(80))?, "EPERM");

    // The way back is open all the same, on disk and over the API; the way on is not, nor is it written for later.
    let change = json_of(&agent, &["rollback"])?;
    assert_eq!((&change["to"], &change["in_force"]), (&Value::Null, &json!(true)));
    assert_ne!(change["errors"], json!([]), "{change}");
    assert_eq!(client.tcp(server.v4(80))?, "ok");
    let written = || std::fs::read_to_string(path.join("rollout.yaml"));
    let back = written()?;
    for arguments in [&["advance"][..], &["advance", "--dry-run"]] {
        let error = error_of(&agent, arguments, 1)?;
        assert!(
            error.contains("`another` conflicts with") && error.contains("second.yaml"),
            "{error}"
        );
    }
    assert_eq!(written()?, back);
    std::fs::remove_file(path.join("second.yaml"))?;
    let mended = |answer: &Value| answer["errors"] == json!([]);
    agent.wait_policies("all to be valid", mended)?;
    assert_eq!(client.tcp(server.v4(80))?, "ok");
    // Whoever wants it has it written all the same, for when all is valid.
    agent.files.write_policy("bad.yaml", "a: [")?;
    agent.wait_policies("a problem", |answer| answer["errors"] != json!([]))?;
    assert_eq!(cli(&agent, &["advance", "--force"])?.status.code(), Some(1));
    assert_eq!(client.tcp(server.v4(80))?, "ok");
    agent.files.remove_policy("bad.yaml")?;
    agent.wait_policies("what was written to be in force", mended)?;
    assert_eq!(client.tcp(server.v4(80))?, "EPERM");
    Ok(())
}
