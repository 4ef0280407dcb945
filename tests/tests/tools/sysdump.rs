// SPDX-License-Identifier: Apache-2.0
//! `zt-agent sysdump`.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use zt_tests::pair::{pair, policy};
use zt_tests::{Agent, TCP, http};

/// What nobody may find: planted wherever a secret may be, each of its own so that the place is known.
const PLANTED: [&str; 9] = [
    "planted-1-in-the-dsn",
    "planted-2-in-a-flag",
    "planted-3-in-the-environment",
    "planted-4-in-a-comment",
    "planted-5-in-a-policy",
    "planted-6-in-the-log",
    "cGxhbnRlZC03LWEta2V5",
    "planted-8-in-the-kubeconfig",
    "planted-9-in-its-own-environment",
];

/// What is in one of an agent that runs.
const WHOLE: [&str; 21] = [
    "agent/identities.json",
    "agent/metrics.txt",
    "agent/policies.json",
    "agent/process/cmdline.txt",
    "agent/process/status.txt",
    "agent/rollout.json",
    "agent/status.json",
    "config/agent.yaml",
    "config/in-effect.txt",
    "config/policies/policy.yaml",
    "config/workloads.yaml",
    "doctor.json",
    "doctor.txt",
    "host/mountinfo.txt",
    "host/sysctl.txt",
    "kernel/cgroups.json",
    "kernel/pins.json",
    "kernel/programs.json",
    "logs/stderr.txt",
    "manifest.json",
    "version.json",
];

/// What is of the trail, where it can be read: the records of which type are in it.
const TRAIL: [(&str, &str); 4] = [
    ("agent/denied.json", "decision"),
    ("agent/changes.json", "policy_change"),
    ("agent/mode_changes.json", "mode_change"),
    ("agent/identity_changes.json", "identity_change"),
];

/// Writes an archive and unpacks it; what is in it by name.
fn dump(agent: &Agent, directory: &Path, name: &str) -> Result<(BTreeMap<String, String>, Value)> {
    let file = directory.join(format!("{name}.tar.gz"));
    let path = file.to_str().context("plain letters")?;
    let mut command = agent.command(&["sysdump", "--output-file", path, "-o", "json"]);
    let output = command.env("SOMEBODYS_TOKEN", PLANTED[8]).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{said}");
    let told: Value = serde_json::from_slice(&output.stdout)?;
    assert_eq!(fs::metadata(&file)?.permissions().mode() & 0o777, 0o600);
    let to = directory.join(name);
    fs::create_dir(&to)?;
    let unpacked = Command::new("tar")
        .arg("-xzf")
        .arg(&file)
        .arg("-C")
        .arg(&to)
        .status()?;
    ensure!(unpacked.success(), "tar");
    let mut found = BTreeMap::new();
    read(&to, &to, &mut found)?;
    // There is one directory, named after the node.
    let top = found
        .keys()
        .next()
        .and_then(|path| path.split('/').next())
        .context("something")?
        .to_owned();
    assert!(top.starts_with("zt-sysdump-test-node-"), "{top}");
    let inside = |path: String| {
        path.split_once('/')
            .map_or(String::new(), |(_, rest)| rest.to_owned())
    };
    let found = found
        .into_iter()
        .map(|(path, text)| (inside(path), text))
        .collect();
    Ok((found, told))
}

fn read(root: &Path, directory: &Path, found: &mut BTreeMap<String, String>) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let path: PathBuf = entry?.path();
        if path.is_dir() {
            read(root, &path, found)?;
        } else {
            let name = path.strip_prefix(root)?.display().to_string();
            found.insert(name, fs::read_to_string(&path)?);
        }
    }
    Ok(())
}

fn look_for_secrets(found: &BTreeMap<String, String>) {
    for (name, text) in found {
        for secret in PLANTED {
            assert!(!text.contains(secret), "{secret} is in {name}:\n{text}");
        }
    }
}

/// Plants what is not planted by how the agent is started.
fn plant(agent: &Agent, directory: &Path) -> Result<()> {
    fs::write(
        directory.join("kubeconfig"),
        format!("users: [{{user: {{token: {}}}}}]\n", PLANTED[7]),
    )?;
    let append = |path: &Path, text: &str| -> Result<()> {
        Ok(OpenOptions::new()
            .append(true)
            .open(path)?
            .write_all(text.as_bytes())?)
    };
    // JSON, which is YAML, with a comment behind it.
    let key = format!(
        "-----BEGIN PRIVATE KEY-----\n# {}\n# -----END PRIVATE KEY-----",
        PLANTED[6]
    );
    append(
        &agent.files.config(),
        &format!("\n# the old password: {}\n# {key}\n", PLANTED[3]),
    )?;
    let text = policy().text();
    fs::write(
        agent.files.policies().join("policy.yaml"),
        format!("{text}\n# token={}\n", PLANTED[4]),
    )?;
    fs::write(agent.files.policies().join("key.pem"), &key)?;
    let log = format!(
        "it said {}, {} and {}\nAuthorization: Bearer {}\n",
        PLANTED[0], PLANTED[1], PLANTED[2], PLANTED[5]
    );
    append(&agent.files.log(), &log)?;
    Ok(())
}

#[test]
fn all_that_support_would_ask_for_and_no_secret() -> Result<()> {
    let (scene, _server, _client) = pair("sysdump")?;
    let directory = scene.sandbox().directory().to_path_buf();
    let dsn = |secret: &str| format!("postgres://zt:{secret}@127.0.0.1:1/zt?sslmode=require");
    let builder = scene.agent(&policy())?;
    let builder = builder
        .config(
            "audit",
            json!({ "dsn": dsn(PLANTED[0]), "spool": directory.join("spool.db") }),
        )
        .config(
            "kubernetes",
            json!({ "kubeconfig": directory.join("kubeconfig") }),
        )
        .argument("--audit-dsn")
        .argument(&dsn(PLANTED[1]))
        .env("PGPASSWORD", PLANTED[2]);
    let mut agent = builder.start()?;
    plant(&agent, &directory)?;

    let (found, told) = dump(&agent, &directory, "alive")?;
    look_for_secrets(&found);
    for name in WHOLE {
        assert!(
            found.get(name).is_some_and(|text| !text.is_empty()),
            "{name}: {told:#}"
        );
    }
    assert!(
        !found
            .keys()
            .any(|name| name.contains("key.pem") || name.contains("environ"))
    );
    assert!(found["config/agent.yaml"].contains("[removed]"));
    assert!(found["agent/process/cmdline.txt"].contains("postgres://zt:[removed]@127.0.0.1:1/zt"));
    assert!(found["agent/metrics.txt"].contains("zt_"));
    let cgroups: Value = serde_json::from_str(&found["kernel/cgroups.json"])?;
    let managed = scene.sandbox().managed().path().display().to_string();
    let ours = cgroups
        .as_array()
        .and_then(|all| all.iter().find(|one| one["cgroup"] == managed.as_str()));
    let ours = ours.with_context(|| managed.clone())?;
    assert_eq!(ours["programs"]["cgroup_inet4_connect"][0][1], "zt_connect4");
    // It knows what was not to be had, and of the server that is away.
    let missing = |name: &str| {
        told["missing"]
            .as_array()
            .is_some_and(|all| all.iter().any(|one| one["name"] == name))
    };
    for (name, _) in TRAIL {
        assert!(missing(name), "{name}: {told:#}");
    }
    assert!(
        found.contains_key("logs/pod-0.txt") || missing("logs/pod"),
        "{told:#}"
    );
    assert!(
        found["doctor.txt"].contains("audit.database"),
        "{}",
        found["doctor.txt"]
    );

    // It is not written over.
    let path = directory.join("alive.tar.gz");
    let again = agent
        .command(&["sysdump", "--output-file", path.to_str().context("plain")?])
        .output()?;
    assert_eq!(again.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&again.stderr).contains("exists already"));

    agent.kill()?;
    let (found, _) = dump(&agent, &directory, "dead")?;
    look_for_secrets(&found);
    assert!(!found.contains_key("agent/status.json"));
    assert!(
        found["manifest.json"].contains("agent/status.json"),
        "it says that it is missing"
    );
    for name in [
        "kernel/pins.json",
        "kernel/cgroups.json",
        "config/agent.yaml",
        "doctor.json",
    ] {
        assert!(found.contains_key(name), "{name}");
    }
    assert!(found["doctor.txt"].contains("no agent runs"));
    Ok(())
}

#[test]
fn what_the_trail_has_of_changes_is_in_it() -> Result<()> {
    let (scene, server, mut client) = pair("sysdump-changes")?;
    let agent = scene.agent(&policy())?.start()?;
    assert_eq!(client.tcp(server.v4(81))?, "EPERM");
    agent.change_policy(&policy().allow("client", "server", TCP, "82").text())?;
    http::post(agent.api(), "/v1/mode", &json!({ "mode": "observe" }))?.success()?;
    let files = scene.sandbox().directory().to_path_buf();
    agent.records("decision=DENY", 1, |_| true)?;
    agent.records("type=policy_change", 1, |_| true)?;
    let (found, told) = dump(&agent, &files, "with-a-trail")?;
    for (name, kind) in TRAIL {
        let text = found.get(name).with_context(|| format!("{name}: {told:#}"))?;
        let answer: Value = serde_json::from_str(text)?;
        let records = answer["records"].as_array().context("records")?;
        assert!(
            records.iter().all(|record| record["type"] == kind),
            "{name}: {text}"
        );
        // Nobody has lost a name here.
        assert_eq!(records.is_empty(), kind == "identity_change", "{name}: {text}");
    }
    Ok(())
}
