// SPDX-License-Identifier: Apache-2.0
//! Policies on a volume that is mounted read-only: who wants to change them over the API is told so, and neither they nor what is in
//! force nor the trail are others than before.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;

use anyhow::Result;
use serde_json::Value;
use zt_tests::mounts::Mounts;
use zt_tests::pair::{decide, pair, policy};
use zt_tests::{Agent, Policy, TCP, http};

const SOME: u64 = 20;

/// What is to stay as it is: the files, the digest of what is in force, and how many changes are on record.
fn state(agent: &Agent) -> Result<(BTreeMap<OsString, String>, Value, usize)> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(agent.files.policies())? {
        let entry = entry?;
        files.insert(entry.file_name(), fs::read_to_string(entry.path())?);
    }
    let digest = agent.get("/v1/policies")?["digest"].clone();
    Ok((files, digest, agent.all_records("type=policy_change")?.len()))
}

#[test]
fn policies_on_a_volume_that_is_mounted_read_only_stay_as_they_are() -> Result<()> {
    let (scene, server, mut client) = pair("read-only-policies")?;
    let mounts = Mounts::of_container(scene.sandbox())?;
    let wider = Policy::new("policy")
        .allow("client", "server", TCP, "80-81")
        .text();
    let more = Policy::new("more").allow("client", "server", TCP, "82").text();
    let agent = scene.agent(&policy())?.policy("more.yaml", &more)?;
    let mut agent = agent.through(mounts.enter()).start()?;
    assert!(agent.terminate()?.success());

    let volume = agent.files.policies().display().to_string();
    mounts.run(&["mount", "--bind", &volume, &volume])?;
    mounts.run(&["mount", "-o", "remount,bind,ro", &volume])?;
    agent.restart()?;
    let before = state(&agent)?;
    let new = Policy::new("new").allow("client", "server", TCP, "81").text();
    for (method, name, body) in [
        ("PUT", "policy", Some(&wider)),
        ("PUT", "new", Some(&new)),
        ("DELETE", "more", None),
    ] {
        let path = format!("/v1/policies/{name}");
        let answer = http::request(agent.api(), method, &path, body.map(String::as_str))?;
        let told = (answer.status, answer.json()?["code"].clone());
        assert_eq!(told, (409, Value::from("read_only")), "{method} {name}");
    }
    assert_eq!(state(&agent)?, before);
    decide(&mut client, &server, SOME)?;

    // Nothing but the mount was in the way.
    mounts.run(&["mount", "-o", "remount,bind,rw", &volume])?;
    http::request(agent.api(), "PUT", "/v1/policies/policy", Some(wider.as_str()))?.success()?;
    assert_eq!(client.tcp(server.v4(81))?, "ok");
    Ok(())
}
