// SPDX-License-Identifier: Apache-2.0
//! Not a byte of the application's is under way before both ends of a handshake are checked: not from a sender that waits in
//! `send`, and not in a SYN.

use std::fs;

use anyhow::{Context as _, Result};
use serde_json::json;
use zt_tests::pair::{any, pair_after_agent, policy};
use zt_tests::probe::{ConnectOptions, ListenOptions, Operation, TIMEOUT};
use zt_tests::trail::{RECORDED, says};
use zt_tests::wire::{SYN, Segment, Wire};
use zt_tests::{Host, Party, Policy, Scene, TCP, eventually};

const FAST_OPEN: &str = "net/ipv4/tcp_fastopen";
/// A client, a server, and both without a cookie: the first SYN carries data already.
const ALWAYS: &str = "519";

fn fast_open(host: &Host) -> Result<String> {
    let path = format!("/proc/sys/{FAST_OPEN}");
    let output = host.command("cat").arg(path).output()?;
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

fn bytes_of(segments: &[Segment]) -> usize {
    segments.iter().map(|segment| segment.data.len()).sum()
}

/// `chat` answers at the address of `iam`, which `client` may reach.
fn deceived(label: &str) -> Result<(Scene, Party, Party, Party)> {
    let mut scene = Scene::new(label)?;
    let iam = scene.workload("iam")?;
    let mut chat = scene.workload("chat")?;
    let client = scene.workload("client")?;
    for host in [&chat.host, &client.host] {
        host.sysctl(FAST_OPEN, ALWAYS)?;
    }
    iam.host.remove_address(&format!("{}/16", iam.host.ipv4))?;
    chat.host.add_address(&format!("{}/16", iam.host.ipv4))?;
    client
        .host
        .neighbour(iam.host.ipv4.into(), chat.host.hardware()?)?;
    chat.call(Operation::Serve {
        at: any(80),
        options: ListenOptions {
            fast_open: Some(16),
            ..ListenOptions::default()
        },
    })?
    .ok()?;
    Ok((scene, iam, chat, client))
}

#[test]
fn who_waits_to_send_sends_nothing_to_somebody_else() -> Result<()> {
    let (scene, iam, chat, mut client) = deceived("check-send")?;
    let policy = Policy::new("check").allow("client", "iam", TCP, "80");
    let agent = scene.agent(&policy)?.config("handshake", json!("auto")).start()?;
    let wire = Wire::open(&chat.host, "eth0")?;
    for round in 1..=5 {
        let sent = client.call(Operation::SendWhileConnecting {
            to: iam.v4(80),
            data: "secret".to_owned(),
            timeout: TIMEOUT,
        })?;
        assert_ne!(sent.outcome(), "ok", "round {round}");
    }
    agent.records("", 5, |record| {
        says(record, &client.id, &chat.id, "DENY", "identity_mismatch") && record["enforced"] == true
    })?;
    let seen = wire.seen()?;
    let syns = seen.iter().filter(|segment| segment.flags & SYN != 0).count();
    assert!(syns >= 5, "the wire saw the connections: {seen:?}");
    assert_eq!(bytes_of(&seen), 0, "{seen:?}");
    Ok(())
}

#[test]
fn no_syn_carries_data() -> Result<()> {
    let (scene, iam, chat, mut client) = deceived("check-syn")?;
    let policy = Policy::new("check").allow("client", "iam", TCP, "80");
    let agent = scene.agent(&policy)?.config("handshake", json!("auto")).start()?;
    for party in [&chat, &client] {
        assert_eq!(fast_open(&party.host)?, "0");
    }
    let status = agent.get("/v1/status")?;
    assert!(
        status["handshake"]["fast_open_off"].as_u64() >= Some(2),
        "{status}"
    );
    assert_eq!(status["handshake"]["fast_open_left"], 0);
    let wire = Wire::open(&chat.host, "eth0")?;
    let with_data = ConnectOptions {
        fast_open: Some("secret".to_owned()),
        ..ConnectOptions::default()
    };
    let deferred = ConnectOptions {
        fast_open_connect: true,
        ..ConnectOptions::default()
    };
    for options in [with_data, deferred] {
        assert_eq!(client.connect_with(iam.v4(80), options)?.outcome(), "EOPNOTSUPP");
    }
    // One that is refused marks the end of what there is to see.
    assert_ne!(client.talk(iam.v4(80))?, "ok");
    agent.records("", 1, |record| {
        says(record, &client.id, &chat.id, "DENY", "identity_mismatch")
    })?;
    let seen = wire.seen()?;
    assert!(seen.iter().any(|segment| segment.flags & SYN != 0), "{seen:?}");
    assert_eq!(bytes_of(&seen), 0, "{seen:?}");
    Ok(())
}

/// As long as Fast Open is on, the SYN carries the data: what the test above would see.
#[test]
fn with_fast_open_on_a_syn_carries_data() -> Result<()> {
    let (scene, iam, chat, mut client) = deceived("check-open")?;
    let policy = Policy::new("check").allow("client", "iam", TCP, "80");
    let _agent = scene.agent(&policy)?.config("handshake", json!("off")).start()?;
    assert_eq!(
        fast_open(&client.host)?,
        ALWAYS,
        "without identities in handshakes it is left alone"
    );
    let wire = Wire::open(&chat.host, "eth0")?;
    let options = ConnectOptions {
        fast_open: Some("secret".to_owned()),
        ..ConnectOptions::default()
    };
    client.connect_with(iam.v4(80), options)?;
    wire.receive("a SYN with data", TIMEOUT, |segment| {
        segment.flags & SYN != 0 && !segment.data.is_empty()
    })?;
    Ok(())
}

/// A workload cannot switch it on again; whoever else does is overruled.
#[test]
fn fast_open_stays_off() -> Result<()> {
    let host = || fs::read_to_string(format!("/proc/sys/{FAST_OPEN}")).context("cannot read the host's");
    let before = host()?;
    let (_scene, server, client, agent) = pair_after_agent("check-sysctl", &policy(), |agent| agent)?;
    let script = format!(
        "echo $$ > {}/cgroup.procs && echo {ALWAYS} > /proc/sys/{FAST_OPEN}",
        client.cgroup.path().display()
    );
    let written = client.host.command("sh").args(["-c", &script]).status()?;
    assert!(written.success(), "the write does not fail: {written}");
    assert_eq!(fast_open(&client.host)?, "0");
    assert_eq!(agent.counter("fast_open_kept_off")?, 1);
    server.host.sysctl(FAST_OPEN, ALWAYS)?;
    eventually("the agent to switch it off again", RECORDED, || {
        Ok(fast_open(&server.host)? == "0")
    })?;
    // The test's own namespace, which is the agent's: nobody who is managed lives there.
    assert_eq!(host()?, before);
    Ok(())
}
