// SPDX-License-Identifier: Apache-2.0
//! The API of an agent that enforces: what is changed over it happens in the kernel.

use std::fs;
use std::net::{Ipv6Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Output};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use zt_tests::agent::binary;
use zt_tests::{Agent, Policy, Scene, TCP, spiffe};

fn any(port: u16) -> SocketAddr {
    SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port)
}

/// `zt-agent …` against the agent's socket.
fn over_socket(agent: &Agent, arguments: &[&str]) -> Result<Output> {
    let api = format!("unix://{}", agent.socket().display());
    Ok(Command::new(binary()?)
        .args(arguments)
        .env("ZT_API", api)
        .output()?)
}

fn json_of(output: &Output) -> Result<Value> {
    let said = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout).with_context(|| said.into_owned())
}

#[test]
fn a_policy_applied_is_enforced_when_the_command_returns() -> Result<()> {
    let mut scene = Scene::new("apply")?;
    let (mut server, mut client) = (scene.workload("server")?, scene.workload("client")?);
    server.serve(any(80))?.local()?;
    let agent = scene.agent(&Policy::new("empty"))?.start()?;
    assert_eq!(client.tcp(server.v4(80))?, "EPERM");

    let file = agent.files.policies().with_file_name("extra.json");
    let extra = Policy::new("extra").allow("client", "server", TCP, "80");
    fs::write(&file, extra.text())?;
    let path = file.to_str().context("UTF-8")?;
    let diff = over_socket(&agent, &["policy", "diff", "-f", path, "--fail"])?;
    assert_eq!(diff.status.code(), Some(1));
    let said = String::from_utf8(diff.stdout)?;
    let wanted = format!("+ ALLOW {} -> {} TCP 80\n", spiffe("client"), spiffe("server"));
    assert!(said.starts_with(&wanted), "{said}");
    assert_eq!(
        client.tcp(server.v4(80))?,
        "EPERM",
        "a difference changes nothing"
    );

    for _ in 0..20 {
        let applied = json_of(&over_socket(
            &agent,
            &["policy", "apply", "-f", path, "-o", "json"],
        )?)?;
        assert_eq!(applied["created"], json!(true));
        assert_eq!(client.tcp(server.v4(80))?, "ok", "at once");
        let etag = applied["etag"].as_str().context("etag")?;
        let refused = over_socket(&agent, &["policy", "delete", "extra", "--if-match", "0123"])?;
        assert_eq!(refused.status.code(), Some(1));
        let gone = over_socket(&agent, &["policy", "delete", "extra", "--if-match", etag])?;
        assert!(gone.status.success(), "{}", String::from_utf8_lossy(&gone.stderr));
        assert_eq!(client.tcp(server.v4(80))?, "EPERM", "at once");
    }
    let changes = agent.records("type=policy_change", 40, |_| true)?;
    assert!(
        changes.iter().all(|change| change["caller"]
            .as_str()
            .is_some_and(|caller| caller.starts_with("uid:0 pid:"))),
        "{:?}",
        changes[0]
    );

    fs::write(&file, extra.text().replace("\"ports\"", "\"portz\""))?;
    let invalid = over_socket(&agent, &["policy", "apply", "-f", path])?;
    assert_eq!(invalid.status.code(), Some(64));
    let said = String::from_utf8(invalid.stderr)?;
    assert!(
        said.contains(&format!("{path}:")) && said.contains("did you mean `ports`?"),
        "{said}"
    );
    Ok(())
}

#[test]
fn the_socket_outlives_nobody() -> Result<()> {
    let scene = Scene::new("socket")?;
    let mut agent = scene.agent(&Policy::new("empty"))?.start()?;
    let mode = fs::metadata(agent.socket())?.permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    agent.kill()?;
    assert!(agent.socket().exists(), "nobody could remove it");
    agent.restart()?;
    assert!(over_socket(&agent, &["status"])?.status.success());
    assert!(agent.terminate()?.success());
    assert!(!agent.socket().exists());
    Ok(())
}

#[test]
fn nothing_is_served_beyond_this_machine_without_tls() -> Result<()> {
    let scene = Scene::new("no-tls")?;
    for (api, said) in [
        (
            json!({"listen": "0.0.0.0:0"}),
            "beyond this machine the API needs `api.tls`",
        ),
        (
            json!({"listen": "0.0.0.0:0", "tls": {"cert": "/c", "key": "/k", "clientCa": "/ca"},
                "callers": [{"spiffe": "*", "role": "read"}]}),
            "api.tls.cert: /c cannot be read",
        ),
    ] {
        let mut agent = scene.agent(&Policy::new("empty"))?.config("api", api).launch()?;
        assert_eq!(agent.wait_exit()?.code(), Some(64));
        let log = agent.log()?;
        assert!(log.contains(said), "{log}");
    }
    Ok(())
}
