// SPDX-License-Identifier: Apache-2.0
//! The agent's own SVID: the certificate of its API, and whom it believes.

use std::path::Path;

use anyhow::ensure;
use rcgen::KeyPair;
use zt_agent::identity::spire::own::{CURRENT, KEY};

use super::*;

const OPERATOR: &str = "spiffe://hanzo.ai/ops/reader";

/// What `zt-agent status` says over TLS, with the SVID in `directory`.
fn status(agent: &Agent, directory: &Path) -> Result<std::process::Output> {
    let url = format!("https://localhost:{}", agent.api().port());
    let mut command = ask(&url)?;
    for (flag, file) in [
        ("--tls-cert", "svid.0.pem"),
        ("--tls-key", "svid.0.key"),
        ("--tls-ca", "bundle.0.pem"),
    ] {
        command.arg(flag).arg(directory.join(file));
    }
    Ok(command.output()?)
}

#[test]
fn the_api_shows_the_agents_svid_and_goes_on_with_the_next() -> Result<()> {
    let world = World::new("spire-own", Duration::from_secs(12), false)?;
    let binary = format!("unix:path:{}", zt_tests::agent::binary()?.display());
    // Its name in the certificate is for clients that go by names.
    world
        .spire
        .register(&Spire::delegate(), &[&binary], &["-dns", "localhost"])?;
    let operator = world.sandbox.directory().join("operator");
    fs::create_dir(&operator)?;
    let fetcher = format!("unix:path:{}", world.spire.program("spire-agent").display());
    world.spire.register(OPERATOR, &[&fetcher], &[])?;
    let agent = world
        .agent()?
        .env("ZT_API_TLS", "spire")
        .env("ZT_API_CALLERS", "spiffe://hanzo.ai/ops/*=read")
        // As the chart has it run.
        .contained()?
        .start()?;

    let fetch = || world.spire.fetch(&operator);
    let mut last = String::new();
    let served = wait_for("the operator to be served", LATER, || {
        fetch()?;
        let output = status(&agent, &operator)?;
        last = String::from_utf8_lossy(&output.stderr).into_owned();
        Ok(output.status.success().then_some(()))
    });
    served.with_context(|| last.clone())?;
    let current = agent.socket().with_file_name("svid").join("current");
    let before = fs::read_link(&current)?;
    wait_for("two more certificates", LATER, || {
        fetch()?;
        let output = status(&agent, &operator)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        anyhow::ensure!(output.status.success(), "{said}");
        let number = |path: &Path| path.to_str().and_then(|name| name.parse::<u64>().ok());
        Ok((number(&fs::read_link(&current)?) >= number(&before).map(|before| before + 2)).then_some(()))
    })?;

    // Somebody of the trust domain who is no caller gets nothing, and neither does who shows nothing.
    let stranger = world.sandbox.directory().join("stranger");
    fs::create_dir(&stranger)?;
    for entry in world.spire.entries(OPERATOR)? {
        world.spire.unregister(&entry)?;
    }
    world
        .spire
        .register("spiffe://hanzo.ai/hanzo-k8s/test/stranger", &[&fetcher], &[])?;
    wait_for("the stranger to be refused", LATER, || {
        world.spire.fetch(&stranger)?;
        let refused = agent
            .metrics()?
            .sum("zt_api_refused_total", &[("cause", "not_a_caller")]);
        Ok((!status(&agent, &stranger)?.status.success() && refused > 0).then_some(()))
    })?;
    let nobody = ask(&format!("https://localhost:{}", agent.api().port()))?.output()?;
    assert!(!nobody.status.success());
    Ok(())
}

#[test]
fn the_agent_says_its_own_key_at_no_level_of_its_log() -> Result<()> {
    let world = World::new("spire-own-key", Duration::from_secs(12), false)?;
    let binary = format!("unix:path:{}", zt_tests::agent::binary()?.display());
    world.spire.register(&Spire::delegate(), &[&binary], &[])?;
    let agent = world
        .agent()?
        .env("ZT_API_TLS", "spire")
        .env("ZT_API_CALLERS", "spiffe://hanzo.ai/ops/*=read")
        .env("ZT_LOG", "trace")
        .start()?;
    let current = agent.socket().with_file_name("svid").join(CURRENT);
    let mut keys: Vec<String> = Vec::new();
    // Each SVID has a key of its own.
    wait_for("three keys", LATER, || {
        let key = fs::read_to_string(current.join(KEY)).unwrap_or_default();
        if !key.is_empty() && !keys.contains(&key) {
            keys.push(key);
        }
        Ok((keys.len() >= 3).then_some(()))
    })?;
    let log = agent.log()?;
    ensure!(
        log.contains("\"level\":\"TRACE\""),
        "the log is not at its most talkative"
    );
    for key in keys {
        let bytes = KeyPair::from_pem(&key)?.serialize_der();
        // PKCS #8 of a key on P-256: the number itself begins at the 36th byte. Bytes are written as numbers, or in hexadecimal.
        let part = bytes.get(36..48).context("a key on P-256")?;
        let numbers: Vec<String> = part.iter().map(u8::to_string).collect();
        let digits: Vec<String> = part.iter().map(|byte| format!("{byte:02x}")).collect();
        let digits = digits.concat();
        let lines = key
            .lines()
            .filter(|line| !line.starts_with("-----"))
            .map(str::to_owned);
        for form in lines.chain([numbers.join(", "), digits.to_uppercase(), digits]) {
            ensure!(!log.contains(&form), "a key is in the log");
        }
    }
    Ok(())
}

#[test]
fn of_several_svids_the_agent_shows_the_one_with_the_hint() -> Result<()> {
    let world = World::new("spire-hint", Duration::from_secs(3600), false)?;
    let binary = format!("unix:path:{}", zt_tests::agent::binary()?.display());
    // SPIRE sends them in the order of their entries' ids. Only one has the name that clients look for.
    let (other, delegate) = ("spiffe://hanzo.ai/hanzo-k8s/test/other", Spire::delegate());
    let entries: [(&str, &[&str]); 3] = [
        (other, &["-entryID", "a", "-hint", "internal"]),
        (&delegate, &["-entryID", "b", "-hint", "zt", "-dns", "localhost"]),
        ("spiffe://hanzo.ai/hanzo-k8s/test/third", &["-entryID", "c"]),
    ];
    for (id, more) in entries {
        world.spire.register(id, &[&binary], more)?;
    }
    let operator = world.sandbox.directory().join("operator");
    fs::create_dir(&operator)?;
    let fetcher = format!("unix:path:{}", world.spire.program("spire-agent").display());
    world.spire.register(OPERATOR, &[&fetcher], &[])?;
    world.spire.fetch(&operator)?;
    let agent = world
        .agent()?
        .env("ZT_API_TLS", "spire")
        .env("ZT_API_CALLERS", "spiffe://hanzo.ai/ops/*=read")
        .start()?;
    let mut last = String::new();
    let served = wait_for("the operator to be served", LATER, || {
        let output = status(&agent, &operator)?;
        last = String::from_utf8_lossy(&output.stderr).into_owned();
        Ok(output.status.success().then_some(()))
    });
    served.with_context(|| last.clone())
}
