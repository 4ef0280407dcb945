// SPDX-License-Identifier: Apache-2.0
//! SPIRE's settings in `deploy/spire/`, before SPIRE itself.

use std::process::Command;

use super::*;

fn settings(manifest: &str, key: &str) -> Result<String> {
    block(&read(manifest)?, key)
}

/// What SPIRE says of these settings: whether they are valid, and its words.
fn valid(program: &str, text: &str) -> Result<(bool, String)> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("settings.conf");
    fs::write(&file, text)?;
    let programs =
        std::env::var_os("ZT_SPIRE").context("ZT_SPIRE is not set: run `cargo xtask test services`")?;
    let output = Command::new(Path::new(&programs).join(program))
        .arg("validate")
        .arg("-expandEnv")
        .arg("-config")
        .arg(&file)
        .env("DATASTORE", "dbname=spire host=db.example.org user=spire")
        .output()?;
    let said = [output.stdout, output.stderr].concat();
    Ok((
        output.status.success(),
        String::from_utf8_lossy(&said).into_owned(),
    ))
}

#[test]
fn spire_takes_the_settings() -> Result<()> {
    let parts = [
        (
            "spire-server",
            settings("deploy/spire/server.yaml", "server.conf")?,
        ),
        ("spire-agent", settings("deploy/spire/agent.yaml", "agent.conf")?),
    ];
    for (program, text) in parts {
        let (taken, said) = valid(program, &text)?;
        assert!(taken, "{program}: {said}");
        // It would not take everything.
        let (taken, said) = valid(program, &text.replace("trust_domain", "trust_domian"))?;
        assert!(!taken, "{program}: {said}");
    }
    Ok(())
}

#[test]
fn certificates_live_as_the_specification_says() -> Result<()> {
    let has = |text: &str, key: &str, value: &str| {
        let found = text.lines().filter_map(|line| line.split_once('='));
        found
            .map(|(name, value)| (name.trim(), value.trim().trim_matches('"')))
            .any(|found| found == (key, value))
    };
    let server = settings("deploy/spire/server.yaml", "server.conf")?;
    for (key, value) in [
        ("ca_ttl", "24h"),
        ("default_x509_svid_ttl", "1h"),
        ("ca_key_type", "ec-p256"),
    ] {
        assert!(has(&server, key, value), "{key} {value}");
    }
    assert!(read("deploy/spire/server.yaml")?.contains("replicas: 2"));
    let agent = settings("deploy/spire/agent.yaml", "agent.conf")?;
    assert!(has(&agent, "workload_x509_svid_key_type", "ec-p256"));
    // The sockets and the delegate are those that the chart's agent uses.
    let ours = load(&block(&read("deploy/manifests/agent.yaml")?, "agent.yaml")?)?;
    for (key, path) in [
        ("socket_path", &ours.identity.spire_socket),
        ("admin_socket_path", &ours.identity.spire_admin_socket),
    ] {
        assert!(has(&agent, key, &path.display().to_string()), "{key}");
    }
    let delegate = "spiffe://hanzo.ai/hanzo-k8s/zt-system/zt-agent";
    assert!(agent.contains(&format!("authorized_delegates = [\"{delegate}\"]")));
    assert!(read("deploy/manifests/spire-ids.yaml")?.contains(&format!("spiffeIDTemplate: {delegate}\n")));
    Ok(())
}
