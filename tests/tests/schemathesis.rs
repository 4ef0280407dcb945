// SPDX-License-Identifier: Apache-2.0
//! Hundreds of requests, made up from the `OpenAPI` document by schemathesis: none is answered with a 5xx, and every
//! answer is one that the document describes.
//!
//! `cargo xtask test services` installs schemathesis and sets `ZT_SCHEMATHESIS`.

use std::process::Command;

use anyhow::{Context as _, Result};
use zt_tests::{Policy, Scene, TCP};

/// What every answer must be.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,\
    response_headers_conformance,response_schema_conformance,unsupported_method,allow_header_conformance";

#[test]
fn no_request_breaks_the_api() -> Result<()> {
    let program = std::env::var_os("ZT_SCHEMATHESIS")
        .context("ZT_SCHEMATHESIS does not say where schemathesis is: run `cargo xtask test services`")?;
    let scene = Scene::new("schemathesis")?;
    let agent = scene
        .agent(&Policy::new("core").allow("client", "server", TCP, "80"))?
        .start()?;
    let url = format!("http://{}/openapi.json", agent.api());
    let status = Command::new(program)
        .args(["run", &url, "--checks", CHECKS, "--phases", "examples,coverage,fuzzing"])
        .args(["--max-examples", "60", "--seed", "1", "--workers", "2"])
        .args(["--request-timeout", "20", "--warnings", "off", "--no-color"])
        // It has no end; the stream has tests of its own.
        .args(["--exclude-path", "/v1/decisions/stream"])
        .args(["--exclude-path", "/v1/revisions/stream"])
        .current_dir(agent.files.policies().parent().context("a directory")?)
        .status()
        .context("cannot run schemathesis")?;
    assert!(status.success(), "schemathesis found something: see above");
    // Whatever it made up, the agent is as it was.
    assert_eq!(
        agent.get("/v1/policies")?["errors"].as_array().map(Vec::len),
        Some(0)
    );
    Ok(())
}
