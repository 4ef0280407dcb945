// SPDX-License-Identifier: Apache-2.0
//! The agent itself, with `audit.dsn` at a real server.

use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};
use zt_tests::postgres::Server;
use zt_tests::wait::eventually;
use zt_tests::{Engine, Sandbox, http, spiffe};

const LATER: Duration = Duration::from_secs(120);

fn ask(agent: &zt_tests::Agent, port: u16) -> Result<Value> {
    let request = json!({
        "source": { "spiffe_id": spiffe("client") },
        "destination": { "spiffe_id": spiffe("server"), "port": port, "protocol": "TCP" },
    });
    agent.post("/v1/evaluate", &request)?.success()?.json()
}

#[test]
fn an_agent_ships_answers_from_the_server_and_waits_for_it() -> Result<()> {
    let server = Server::start("fsync = off")?;
    // One login for everything: each connection takes one role.
    server.sql("GRANT zt_audit_maintainer TO engine")?;
    let sandbox = Sandbox::new("postgres")?;
    let (spool, keys) = (
        sandbox.directory().join("spool.db"),
        sandbox.directory().join("keys"),
    );
    let audit = json!({ "dsn": server.dsn("engine"), "spool": spool, "keys": keys });
    let mut agent = sandbox
        .agent()?
        .config("audit", audit)
        .policy("core.yaml", &super::policy().text())?
        .start()?;

    assert_eq!(ask(&agent, 5432)?["decision"], "ALLOW");
    assert_eq!(ask(&agent, 5433)?["decision"], "DENY");
    eventually("both decisions to be shipped", LATER, || {
        Ok(agent.metrics()?.sum("zt_audit_shipped_total", &[]) >= 2)
    })?;
    // Not before: the agent makes the tables after it is ready.
    let found = agent.records("type=decision&decision=DENY", 1, |_| true)?;
    assert_eq!(found[0]["destination"]["port"], 5433);
    assert_eq!(
        server.number("SELECT count(*) FROM zt_audit.trail WHERE type = 'decision'")?,
        2
    );
    assert!(
        agent.get("/v1/status")?["audit"]["spool"]["reachable"]
            .as_bool()
            .unwrap()
    );

    server.crash()?;
    assert_eq!(ask(&agent, 5434)?["decision"], "DENY");
    let refused = http::get(agent.api(), "/v1/audit")?;
    assert!(refused.success().is_err(), "an answer without the server");
    eventually("the failure to show", LATER, || {
        Ok(agent
            .metrics()?
            .sum("zt_audit_ship_failures_total", &[("cause", "unreachable")])
            > 0)
    })?;
    assert!(agent.metrics()?.sum("zt_audit_spool_records", &[]) >= 1);
    // What waits outlives the agent.
    assert!(agent.terminate()?.success());
    agent.restart()?;
    server.up()?;
    agent.records("port=5434", 1, |_| true)?;
    eventually("nothing to wait", LATER, || {
        Ok(agent.metrics()?.sum("zt_audit_spool_records", &[]) == 0)
    })?;
    assert!(agent.terminate()?.success());

    let keys = keys.display().to_string();
    let verify = agent
        .command(&[
            "audit",
            "verify",
            "--store",
            &server.dsn("engine"),
            "--keys",
            &keys,
        ])
        .output()?;
    let said = String::from_utf8_lossy(&verify.stdout);
    assert!(
        verify.status.success(),
        "{said}{}",
        String::from_utf8_lossy(&verify.stderr)
    );
    let prune = agent
        .command(&["audit", "prune", "--store", &server.dsn("keeper")])
        .output()?;
    assert!(
        prune.status.success(),
        "{}",
        String::from_utf8_lossy(&prune.stderr)
    );
    Ok(())
}

/// A node of which only the login may insert answers nothing of what is on the server, and says who does.
#[tokio::test(flavor = "multi_thread")]
async fn who_may_only_insert_says_where_to_ask() -> Result<()> {
    let server = super::with_tables().await;
    let sandbox = Sandbox::new("writer")?;
    let engine = Engine::with_policy(&sandbox, "writer", &super::policy())?;
    let mut engine = engine.on_server(&server.dsn("node"), 365);
    tokio::task::block_in_place(|| {
        engine.start()?;
        engine.evaluate(5432)?;
        engine.wait_shipped(1)?;
        for path in ["/v1/graph", "/v1/audit", "/v1/graph?namespace=test"] {
            let answer = http::get(engine.api(), path)?;
            let said = answer.json()?;
            assert_eq!(
                (answer.status, &said["code"]),
                (409, &json!("audit_elsewhere")),
                "{path}"
            );
            let detail = said["detail"].as_str().unwrap_or_default();
            assert!(
                detail.contains("ask a policy engine") && detail.contains("zt_audit_reader"),
                "{detail}"
            );
        }
        let output = std::process::Command::new(zt_tests::agent::binary()?)
            .env_clear()
            .args(["graph", "--api", &engine.url()])
            .output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.code() == Some(1) && said.contains("ask a policy engine"),
            "{said}"
        );
        Ok::<_, anyhow::Error>(())
    })
}
