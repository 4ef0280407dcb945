// SPDX-License-Identifier: Apache-2.0
//! One login that inserts, one that reads, and one that looks after the tables.

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use zt_tests::wait::eventually;
use zt_tests::{Engine, Sandbox};

const LATER: Duration = Duration::from_secs(120);

/// Runs the program with a configuration file and nothing in its environment.
fn run(config: &Path, arguments: &[&str]) -> Result<Output> {
    let output = Command::new(zt_tests::agent::binary()?)
        .env_clear()
        .args(arguments)
        .arg("--config")
        .arg(config)
        .output()?;
    Ok(output)
}

/// What `zt-agent doctor` says of one thing.
fn doctor(config: &Path, check: &str) -> Result<Value> {
    let output = run(config, &["doctor", "-o", "json"])?;
    let report: Value = serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    let findings = report["findings"].as_array().context("findings")?;
    let found = findings.iter().find(|finding| finding["check"] == check);
    Ok(found.with_context(|| format!("{check} in {report}"))?.clone())
}

#[test]
fn each_login_does_what_it_is_for_and_may_do_nothing_else() -> Result<()> {
    let server = super::server();
    server.sql("CREATE ROLE asker LOGIN NOINHERIT IN ROLE zt_audit_reader")?;
    let sandbox = Sandbox::new("logins")?;
    let engine = Engine::with_policy(&sandbox, "logins", &super::policy())?;
    let audit = |read: &str| {
        json!({
            "dsn": server.dsn("node"), "readDsn": server.dsn(read), "maintainDsn": server.dsn("keeper"),
            "spool": engine.spool(), "keys": sandbox.directory().join("keys"),
        })
    };
    let (audit, without) = (audit("asker"), audit("node"));
    let mut engine = engine.config("audit", audit);
    engine.start()?;
    engine.evaluate(5432)?;
    // The tables were made by one, the record inserted by another one, and a third one answers.
    engine.wait_shipped(1)?;
    let answer = engine.get("/v1/audit?type=decision")?;
    assert_eq!(answer["records"][0]["destination"]["port"], 5432, "{answer}");
    let graph = engine.get("/v1/graph")?;
    // What an engine is asked is no connection, so there is no edge.
    assert_eq!(graph["edges"].as_array().map(Vec::len), Some(0), "{graph}");
    assert_eq!(server.sql("SELECT DISTINCT login FROM zt_audit.record")?, "node");
    let of = |login: &str| {
        server.number(&format!(
            "SELECT count(*) FROM pg_stat_activity WHERE usename = '{login}' AND application_name = 'zt-agent'"
        ))
    };
    assert!(
        of("asker")? >= 1,
        "its connections are kept for the next question"
    );
    for (login, role) in [
        ("node", "zt_audit_reader"),
        ("node", "zt_audit_maintainer"),
        ("asker", "zt_audit_writer"),
        ("asker", "zt_audit_maintainer"),
        ("keeper", "zt_audit_writer"),
    ] {
        server.refusal(login, role, "SELECT 1")?;
    }
    let status = engine.get("/v1/status")?;
    assert_eq!(status["audit"]["spool"]["reachable"], true, "{status}");

    let config = engine.config_file();
    for check in ["audit.database", "audit.roles", "audit.writer"] {
        let found = doctor(&config, check)?;
        assert_eq!(found["status"], "ok", "{found}");
    }
    assert!(engine.terminate()?.success());
    // So do the commands that need no agent.
    for command in ["verify", "prune"] {
        let output = run(&config, &["audit", command])?;
        assert!(
            output.status.success(),
            "{command}: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }

    // A login that may not do what it is named for is found, and so is one that may more.
    let wrong = sandbox.directory().join("wrong.yaml");
    std::fs::write(&wrong, json!({ "audit": without }).to_string())?;
    let found = doctor(&wrong, "audit.roles")?;
    assert_eq!(found["status"], "failed", "{found}");
    let remedy = found["remedy"].as_str().unwrap_or_default();
    assert!(remedy.contains("audit.readDsn"), "{found}");
    server.sql("GRANT DELETE ON zt_audit.record TO node")?;
    let found = doctor(&config, "audit.writer")?;
    assert_eq!(found["status"], "warning", "{found}");
    assert!(found["found"].to_string().contains("DELETE"), "{found}");
    Ok(())
}

#[test]
fn a_login_that_is_named_for_the_tables_and_may_not_is_told_of_and_tried_again() -> Result<()> {
    let server = super::server();
    let sandbox = Sandbox::new("named")?;
    let engine = Engine::with_policy(&sandbox, "named", &super::policy())?;
    let audit = json!({
        "dsn": server.dsn("engine"), "maintainDsn": server.dsn("stranger"),
        "spool": engine.spool(), "keys": sandbox.directory().join("keys"),
    });
    let mut engine = engine.config("audit", audit);
    engine.start()?;
    eventually("the login to be told of", LATER, || {
        Ok(engine
            .log()?
            .contains("cannot look after the partitions of the audit trail"))
    })?;
    server.sql("GRANT zt_audit_maintainer TO stranger")?;
    eventually("the tables", LATER, || {
        Ok(server.sql("SELECT to_regclass('zt_audit.record') IS NOT NULL")? == "t")
    })?;
    assert!(!engine.log()?.contains("is no member of zt_audit_maintainer"));
    Ok(())
}
