// SPDX-License-Identifier: Apache-2.0
//! Hundreds of requests, made up from the `OpenAPI` document by schemathesis: none is answered with a 5xx, and every
//! answer is one that the document describes.
//!
//! `cargo xtask test services` installs schemathesis and sets `ZT_SCHEMATHESIS`.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use zt_tests::postgres::Server;
use zt_tests::{Engine, Policy, Sandbox, Scene, TCP, eventually, http};

/// What every answer must be.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,\
    response_headers_conformance,response_schema_conformance,unsupported_method,allow_header_conformance";

/// Has schemathesis ask, with that many examples of each operation.
fn ask(api: SocketAddr, examples: u32, directory: &Path) -> Result<()> {
    let program = std::env::var_os("ZT_SCHEMATHESIS")
        .context("ZT_SCHEMATHESIS does not say where schemathesis is: run `cargo xtask test services`")?;
    let url = format!("http://{api}/openapi.json");
    let status = Command::new(program)
        .args(["run", &url, "--checks", CHECKS, "--phases", "examples,coverage,fuzzing"])
        .args(["--max-examples", &examples.to_string(), "--seed", "1", "--workers", "2"])
        .args(["--request-timeout", "20", "--warnings", "off", "--no-color"])
        // It has no end; the stream has tests of its own.
        .args(["--exclude-path", "/v1/decisions/stream"])
        .args(["--exclude-path", "/v1/revisions/stream"])
        .current_dir(directory)
        .status()
        .context("cannot run schemathesis")?;
    ensure!(status.success(), "schemathesis found something: see above");
    Ok(())
}

#[test]
fn no_request_breaks_the_api() -> Result<()> {
    let scene = Scene::new("schemathesis")?;
    let agent = scene
        .agent(&Policy::new("core").allow("client", "server", TCP, "80"))?
        .start()?;
    ask(
        agent.api(),
        60,
        agent.files.policies().parent().context("a directory")?,
    )?;
    // Whatever it made up, the agent is as it was.
    assert_eq!(
        agent.get("/v1/policies")?["errors"].as_array().map(Vec::len),
        Some(0)
    );
    Ok(())
}

#[test]
fn no_request_breaks_an_engine_on_postgresql() -> Result<()> {
    let server = Server::start("fsync = off")?;
    // The engine makes its own tables.
    server.sql("GRANT zt_audit_maintainer TO engine")?;
    let sandbox = Sandbox::new("schemathesis-engine")?;
    let policies = sandbox.directory().join("policies");
    fs::create_dir_all(&policies)?;
    let policy = Policy::new("core").allow("client", "server", TCP, "80");
    fs::write(policies.join("core.yaml"), policy.text())?;
    let mut engine = Engine::new(&sandbox, "engine", &policies)?.on_server(&server.dsn("engine"), 365);
    engine.start()?;
    eventually("tables", Duration::from_secs(60), || {
        Ok(http::get(engine.api(), "/v1/graph")?.status == 200)
    })?;
    ask(engine.api(), 15, sandbox.directory())?;
    assert_eq!(
        engine.get("/v1/policies")?["errors"].as_array().map(Vec::len),
        Some(0)
    );
    // What was asked was recorded, and has arrived; of what it makes up nothing may be a question that makes sense.
    let question = json!({
        "source": {"spiffe_id": "spiffe://hanzo.ai/hanzo-k8s/test/client"},
        "destination": {"spiffe_id": "spiffe://hanzo.ai/hanzo-k8s/test/server", "port": 80},
    });
    http::post(engine.api(), "/v1/evaluate", &question)?.success()?;
    eventually("records to be shipped", Duration::from_secs(60), || {
        Ok(engine.metrics()?.sum("zt_audit_spool_records", &[]) == 0)
    })?;
    assert!(server.number("SELECT count(*) FROM zt_audit.record")? > 0);
    Ok(())
}
