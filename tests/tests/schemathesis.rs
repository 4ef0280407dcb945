// SPDX-License-Identifier: Apache-2.0
//! Hundreds of requests, made up from the `OpenAPI` document by schemathesis: none is answered with a 5xx, and every
//! answer is one that the document describes.
//!
//! `cargo xtask test services` installs schemathesis and sets `ZT_SCHEMATHESIS`.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use serde_json::{Value, json};
use zt_tests::postgres::Server;
use zt_tests::{Engine, Policy, Sandbox, Scene, TCP, eventually, http};

/// What every answer must be; what the document does not allow is refused.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,\
    response_headers_conformance,response_schema_conformance,negative_data_rejection";
/// And what is told of methods that there are not, to who may use those that there are.
const OF_METHODS: &str = "unsupported_method,allow_header_conformance";

/// Has schemathesis ask, with that many examples of each operation and these further arguments: the same each time, or as
/// `ZT_SEED` says. As the operator, where there are none.
fn ask(document: &str, examples: u32, directory: &Path, more: &[&OsStr]) -> Result<()> {
    let program = std::env::var_os("ZT_SCHEMATHESIS")
        .context("ZT_SCHEMATHESIS does not say where schemathesis is: run `cargo xtask test services`")?;
    let seed = std::env::var("ZT_SEED").unwrap_or_else(|_| "1".to_owned());
    let checks = if more.is_empty() {
        format!("{CHECKS},{OF_METHODS}")
    } else {
        CHECKS.to_owned()
    };
    let output = Command::new(program)
        .args(["run", document, "--checks", &checks, "--phases", "examples,coverage,fuzzing"])
        .args(["--max-examples", &examples.to_string(), "--seed", &seed])
        // More than one at a time is more than the syntax trees of Python 3.11 bear.
        .args(["--workers", "1"])
        .args(["--request-timeout", "20", "--warnings", "off", "--no-color", "--no-shrink"])
        // It has no end; the stream has tests of its own.
        .args(["--exclude-path", "/v1/decisions/stream"])
        .args(["--exclude-path", "/v1/revisions/stream"])
        .args(more)
        .current_dir(directory)
        .output()
        .context("cannot run schemathesis")?;
    ensure!(
        output.status.success(),
        "schemathesis found something, or did not come to an end; ZT_SEED={seed} asks the same again:\n{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
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
        &format!("http://{}/openapi.json", agent.api()),
        40,
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
    let policy = Policy::new("core").allow("client", "server", TCP, "80");
    let engine = Engine::with_policy(&sandbox, "engine", &policy)?;
    let mut engine = engine.on_server(&server.dsn("engine"), 365);
    engine.start()?;
    eventually("tables", Duration::from_secs(60), || {
        Ok(http::get(engine.api(), "/v1/graph")?.status == 200)
    })?;
    let document = format!("{}/openapi.json", engine.url());
    ask(&document, 15, sandbox.directory(), &[])?;
    assert_eq!(
        engine.get("/v1/policies")?["errors"].as_array().map(Vec::len),
        Some(0)
    );
    // What was asked was recorded, and has arrived; of what it makes up nothing may be a question that makes sense.
    engine.evaluate(80)?;
    eventually("records to be shipped", Duration::from_secs(60), || {
        Ok(engine.metrics()?.sum("zt_audit_spool_records", &[]) == 0)
    })?;
    assert!(server.number("SELECT count(*) FROM zt_audit.record")? > 0);
    Ok(())
}

/// An authority, and what it issues: of different names, or clients take a certificate for one that has signed itself.
struct Authority {
    directory: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new(directory: &Path) -> Result<Self> {
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, "authority of a test");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        fs::write(directory.join("ca.pem"), params.self_signed(&key)?.pem())?;
        Ok(Self {
            directory: directory.to_owned(),
            issuer: Issuer::new(params, key),
        })
    }

    fn certificate(&self) -> PathBuf {
        self.directory.join("ca.pem")
    }

    /// Certificate and key of this identity.
    fn issue(&self, name: &str, id: &str) -> Result<[PathBuf; 2]> {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()])?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.subject_alt_names.push(SanType::URI(id.try_into()?));
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let paths = ["pem", "key"].map(|suffix| self.directory.join(format!("{name}.{suffix}")));
        fs::write(&paths[0], certificate.pem())?;
        fs::write(&paths[1], key.serialize_pem())?;
        Ok(paths)
    }
}

#[test]
fn who_may_not_change_anything_changes_nothing_over_tls() -> Result<()> {
    const ROLES: [&str; 3] = ["evaluate", "read", "follow"];
    let sandbox = Sandbox::new("schemathesis-roles")?;
    let directory = sandbox.directory();
    let policy = Policy::new("core").allow("client", "server", TCP, "80");
    let authority = Authority::new(directory)?;
    let [cert, key] = authority.issue("engine", "spiffe://hanzo.ai/zt/engine")?;
    let (api, health) = zt_tests::ports::two()?;
    let socket = directory.join("agent.sock");
    let id = |role: &str| format!("spiffe://hanzo.ai/app/{role}");
    let callers: Vec<Value> = ROLES
        .map(|role| json!({ "spiffe": id(role), "role": role }))
        .into();
    let mut engine = Engine::with_policy(&sandbox, "engine", &policy)?.config(
        "api",
        json!({
            "listen": api, "health": health, "socket": socket, "drain": "0s",
            "tls": { "cert": cert, "key": key, "clientCa": authority.certificate() }, "callers": callers,
        }),
    );
    engine.launch()?;
    eventually("the engine to be ready", Duration::from_secs(60), || {
        Ok(http::get(health, "/readyz").is_ok_and(|answer| answer.status == 200))
    })?;
    // As the operator sees it.
    let seen = |path: &str| -> Result<Value> { http::get_over(&socket, path)?.success()?.json() };
    let refused = || -> Result<u64> {
        let text = http::get(health, "/metrics")?.success()?.body;
        let name = "zt_api_refused_total{cause=\"role_insufficient\"} ";
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        Ok(line.context("a count")?.parse()?)
    };
    let before = seen("/v1/policies")?;
    // Not everybody may read it.
    let document = directory.join("openapi.json");
    fs::write(&document, seen("/openapi.json")?.to_string())?;
    let url = format!("https://localhost:{}", api.port());
    let mut counted = refused()?;
    for role in ROLES {
        let [own, own_key] = authority.issue(role, &id(role))?;
        let certificate = authority.certificate();
        let more = [
            OsStr::new("--url"),
            OsStr::new(&url),
            // It says nothing of those who may not read it.
            OsStr::new("--exclude-path"),
            OsStr::new("/openapi.json"),
            OsStr::new("--tls-verify"),
            certificate.as_os_str(),
            OsStr::new("--request-cert"),
            own.as_os_str(),
            OsStr::new("--request-cert-key"),
            own_key.as_os_str(),
        ];
        ask(&document.display().to_string(), 5, directory, &more).with_context(|| role.to_owned())?;
        assert_eq!(seen("/v1/policies")?, before, "{role}");
        for kind in ["policy_change", "mode_change"] {
            let path = format!("/v1/audit?type={kind}");
            assert_eq!(seen(&path)?["records"], json!([]), "{role}");
        }
        // It was asked, and refused for what it is not for.
        let now = refused()?;
        assert!(now > counted + 20, "{role}: {counted}, {now}");
        counted = now;
    }
    Ok(())
}
