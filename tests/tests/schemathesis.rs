// SPDX-License-Identifier: Apache-2.0
//! Hundreds of requests, made up from the `OpenAPI` document by schemathesis: none is answered with a 5xx, and every
//! answer is one that the document describes.
//!
//! `cargo xtask test services` installs schemathesis and sets `ZT_SCHEMATHESIS`.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use serde_json::{Value, json};
use zt_tests::postgres::Server;
use zt_tests::{Engine, Policy, Sandbox, Scene, TCP, eventually, http};

/// What every answer must be. `negative_data_rejection`: what the document does not allow is refused.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,\
    response_headers_conformance,response_schema_conformance,unsupported_method,allow_header_conformance,\
    negative_data_rejection";

/// Another one each time, so that in time more is tried; `ZT_SEED` repeats one.
fn seed() -> Result<u32> {
    if let Ok(seed) = std::env::var("ZT_SEED") {
        return seed.parse().context("ZT_SEED is a number");
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    Ok(now.subsec_nanos())
}

/// Has schemathesis ask, with that many examples of each operation and these further arguments.
fn ask(url: &str, examples: u32, directory: &Path, more: &[&OsStr]) -> Result<()> {
    let seed = seed()?;
    eprintln!("ZT_SEED={seed}");
    let program = std::env::var_os("ZT_SCHEMATHESIS")
        .context("ZT_SCHEMATHESIS does not say where schemathesis is: run `cargo xtask test services`")?;
    let url = format!("{url}/openapi.json");
    let status = Command::new(program)
        .args(["run", &url, "--checks", CHECKS, "--phases", "examples,coverage,fuzzing"])
        .args(["--max-examples", &examples.to_string(), "--seed", &seed.to_string(), "--workers", "2"])
        .args(["--request-timeout", "20", "--warnings", "off", "--no-color"])
        // It has no end; the stream has tests of its own.
        .args(["--exclude-path", "/v1/decisions/stream"])
        .args(["--exclude-path", "/v1/revisions/stream"])
        .args(more)
        .current_dir(directory)
        .status()
        .context("cannot run schemathesis")?;
    ensure!(
        status.success(),
        "schemathesis found something: see above; ZT_SEED={seed} asks the same again"
    );
    Ok(())
}

#[test]
fn no_request_breaks_the_api() -> Result<()> {
    let scene = Scene::new("schemathesis")?;
    let agent = scene
        .agent(&Policy::new("core").allow("client", "server", TCP, "80"))?
        .start()?;
    ask(
        &format!("http://{}", agent.api()),
        60,
        agent.files.policies().parent().context("a directory")?,
        &[],
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
    ask(&engine.url(), 15, sandbox.directory(), &[])?;
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

/// Writes an authority, and what it issued for this identity: the paths of both certificates and of the key.
fn issue(directory: &Path, name: &str, id: &str, issuer: &Issuer<'static, KeyPair>) -> Result<[PathBuf; 2]> {
    let mut params = CertificateParams::new(vec!["localhost".to_owned()])?;
    params.subject_alt_names.push(SanType::URI(id.try_into()?));
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, issuer)?;
    let paths = ["pem", "key"].map(|suffix| directory.join(format!("{name}.{suffix}")));
    fs::write(&paths[0], certificate.pem())?;
    fs::write(&paths[1], key.serialize_pem())?;
    Ok(paths)
}

#[test]
fn who_may_only_evaluate_changes_and_reads_nothing_else() -> Result<()> {
    let sandbox = Sandbox::new("schemathesis-evaluate")?;
    let directory = sandbox.directory();
    let policies = directory.join("policies");
    fs::create_dir_all(&policies)?;
    let policy = Policy::new("core").allow("client", "server", TCP, "80");
    fs::write(policies.join("core.yaml"), policy.text())?;
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate()?;
    let ca = directory.join("ca.pem");
    fs::write(&ca, params.self_signed(&key)?.pem())?;
    let issuer = Issuer::new(params, key);
    let [cert, key] = issue(directory, "engine", "spiffe://hanzo.ai/zt/engine", &issuer)?;
    let [own, own_key] = issue(directory, "app", "spiffe://hanzo.ai/app/web", &issuer)?;
    let (api, health) = zt_tests::ports::two()?;
    let socket = directory.join("agent.sock");
    let mut engine = Engine::new(&sandbox, "engine", &policies)?.config(
        "api",
        json!({
            "listen": api, "health": health, "socket": socket, "drain": "0s",
            "tls": { "cert": cert, "key": key, "clientCa": ca },
            "callers": [{ "spiffe": "spiffe://hanzo.ai/app/*", "role": "evaluate" }],
        }),
    );
    engine.launch()?;
    eventually("the engine to be ready", Duration::from_secs(60), || {
        Ok(http::get(health, "/readyz").is_ok_and(|answer| answer.status == 200))
    })?;
    // As the operator sees it.
    let seen = |path: &str| -> Result<Value> { http::get_over(&socket, path)?.success()?.json() };
    let before = seen("/v1/policies")?;
    ask(
        &format!("https://localhost:{}", api.port()),
        15,
        directory,
        &[
            OsStr::new("--tls-verify"),
            ca.as_os_str(),
            OsStr::new("--request-cert"),
            own.as_os_str(),
            OsStr::new("--request-cert-key"),
            own_key.as_os_str(),
        ],
    )?;
    assert_eq!(seen("/v1/policies")?, before);
    assert_eq!(seen("/v1/audit?type=policy_change")?["records"], json!([]));
    assert_eq!(seen("/v1/audit?type=mode_change")?["records"], json!([]));
    // It was asked, and refused for what it is not for.
    let text = http::get(health, "/metrics")?.success()?.body;
    let refused = "zt_api_refused_total{cause=\"role_insufficient\"} ";
    let line = text.lines().find_map(|line| line.strip_prefix(refused));
    assert!(line.context("a count")?.parse::<u64>()? > 20, "{line:?}");
    Ok(())
}
