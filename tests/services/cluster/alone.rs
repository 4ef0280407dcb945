// SPDX-License-Identifier: Apache-2.0
//! One engine by itself, started again and told to read its configuration again.

use std::fs;

use anyhow::Result;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use zt_tests::{Engine, Policy, Sandbox, TCP, eventually};

use super::LATER;

fn engine(sandbox: &Sandbox, name: &str) -> Result<Engine> {
    let policy = Policy::new("core").allow("client", "server", TCP, "80");
    Engine::with_policy(sandbox, name, &policy)
}

#[test]
fn the_last_checkpoint_is_told_from_the_start_of_the_next_run_on() -> Result<()> {
    let sandbox = Sandbox::new("checkpoint")?;
    let mut engine = engine(&sandbox, "alone")?;
    engine.start()?;
    assert!(
        !engine.metrics()?.text.contains("zt_audit_checkpoint_seq "),
        "nothing is signed yet"
    );
    engine.evaluate(80)?;
    // It signs at the end.
    assert!(engine.terminate()?.success());
    engine.start()?;
    // Nothing is recorded: the chain stands where it stood.
    let metrics = engine.metrics()?;
    assert_eq!(metrics.sum("zt_audit_checkpoint_seq", &[]), 1);
    assert!(metrics.text.contains("zt_audit_checkpoint_timestamp_seconds "));
    Ok(())
}

#[test]
fn callers_are_read_again_and_a_bad_file_changes_nothing() -> Result<()> {
    let sandbox = Sandbox::new("callers")?;
    let mut engine = engine(&sandbox, "alone")?;
    engine.start()?;
    let status =
        |engine: &Engine| -> Result<Value> { Ok(engine.get("/v1/status")?["configuration"].clone()) };
    let with = |callers: Value, mode: &str| -> Result<String> {
        let mut config: Value = serde_json::from_str(&fs::read_to_string(engine.config_file())?)?;
        config["api"]["callers"] = callers;
        config["mode"] = json!(mode);
        Ok(config.to_string())
    };
    let rule =
        |name: &str, role: &str| json!({ "spiffe": format!("spiffe://hanzo.ai/{name}"), "role": role });
    let two = json!([rule("ops/alice", "admin"), rule("audit/reader", "read")]);
    let (good, bad, other) = (
        with(two.clone(), "observe")?,
        with(json!([rule("ops/alice", "root")]), "observe")?,
        with(two, "enforce")?,
    );
    let refused = |engine: &Engine| -> Result<u64> {
        Ok(engine
            .metrics()?
            .sum("zt_config_reloads_total", &[("result", "refused")]))
    };
    assert_eq!(
        status(&engine)?,
        json!({ "callers": 0, "errors": [], "restart_needed": false })
    );
    fs::write(engine.config_file(), &good)?;
    eventually("the callers to be taken", LATER, || {
        Ok(status(&engine)?["callers"] == 2)
    })?;
    assert_eq!(
        engine
            .metrics()?
            .sum("zt_config_reloads_total", &[("result", "taken")]),
        1
    );

    fs::write(engine.config_file(), bad)?;
    eventually("the refusal", LATER, || Ok(refused(&engine)? > 0))?;
    let told = status(&engine)?;
    assert_eq!(told["callers"], 2, "{told}");
    assert!(told["errors"].to_string().contains("api.callers"), "{told}");
    assert_eq!(engine.metrics()?.sum("zt_config_valid", &[]), 0);
    assert!(engine.log()?.contains("the configuration is not taken"));
    let before = refused(&engine)?;
    engine.signal(Signal::SIGHUP)?;
    eventually("SIGHUP to be heard", LATER, || Ok(refused(&engine)? > before))?;

    // Another key waits for the next start.
    fs::write(engine.config_file(), other)?;
    eventually("the file to be valid", LATER, || {
        let told = status(&engine)?;
        Ok(told["restart_needed"] == true && told["errors"] == json!([]))
    })?;
    assert_eq!(engine.metrics()?.sum("zt_config_valid", &[]), 1);
    assert_eq!(engine.get("/v1/status")?["modes"]["default"], "observe");
    Ok(())
}
