// SPDX-License-Identifier: Apache-2.0
//! A SYN of a workload, repeated by whoever is at that workload's address now: what the kernel has noted of the first one names
//! nobody but the one whose socket takes the answer.

use std::net::SocketAddrV4;

use anyhow::Result;
use zt_tests::attacker::{ANSWERED, ATTACKER, Stage, silent, stage_with};
use zt_tests::probe::{ConnectOptions, Operation};
use zt_tests::trail::RECORDED;
use zt_tests::wire::{ACK, SYN, Segment, Wire};
use zt_tests::{Policy, TCP, eventually};

/// As always, and `client` may reach the attacker's address.
fn policy() -> Policy {
    Policy::new("attacks")
        .allow("client", "server", TCP, "80")
        .allow("client", "other", TCP, "80")
        .allow("client", "10.99.66.0/24", TCP, "80")
}

fn stage(label: &str) -> Result<Stage> {
    stage_with(label, &policy(), "auto")
}

/// Nobody is taken for the client when this SYN comes once more, at these places; `before` are those records that there are.
fn is_past(stage: &Stage, syn: &Segment, before: usize) -> Result<()> {
    for to in [stage.server.socket_v4(80), stage.other.socket_v4(80)] {
        let (syn, answer) = stage.shake(syn.from, to, syn.sequence, &[])?;
        stage.refused(&syn, &answer)?;
    }
    let named = stage.all_named(syn.from, before + 2)?;
    assert!(named.iter().all(|named| *named == silent()), "{named:?}");
    Ok(())
}

/// A connection that was proven leaves nothing behind.
#[test]
fn of_a_connection_that_was_proven_nothing_is_left() -> Result<()> {
    let mut stage = stage("repeat-proven")?;
    let [syn, _] = stage.overheard()?;
    stage
        .agent
        .records("decision=ALLOW", 1, |record| record["proof"] == "mutual")?;
    assert!(!stage.is_noted(syn.sequence)?);
    stage.takes_over()?;
    is_past(&stage, &syn, 0)?;
    stage.gives_back()?;
    assert_eq!(stage.client.talk(stage.server.v4(80))?, "ok");
    assert_eq!(stage.agent.counter("agreed")?, 2, "the client itself");
    Ok(())
}

/// Of one that proves nothing the kernel knows who began it, and whose answer was taken: by the attacker himself, who knows
/// all of its numbers.
#[test]
fn of_a_connection_to_a_stranger_nothing_is_believed_elsewhere() -> Result<()> {
    let mut stage = stage("repeat-stranger")?;
    let attacker = stage.attacker.host.hardware()?;
    stage.client.host.neighbour(ATTACKER.into(), attacker)?;
    // He does not answer: the client goes on asking for it.
    let to = SocketAddrV4::new(ATTACKER, 80);
    stage.client.send(Operation::TcpConnect {
        to: to.into(),
        options: ConnectOptions {
            timeout: ANSWERED,
            ..ConnectOptions::default()
        },
    })?;
    let syn = stage.wire.receive("the client's SYN", ANSWERED, |segment| {
        segment.flags == SYN && segment.to == to
    })?;
    assert_eq!(syn.option(253), None, "none for a stranger");
    stage.takes_over()?;
    is_past(&stage, &syn, 0)?;
    stage.gives_back()?;
    // Nor afterwards.
    let answer = Segment {
        from: to,
        to: syn.from,
        sequence: 77,
        acknowledged: syn.sequence.wrapping_add(1),
        flags: SYN | ACK,
        options: Vec::new(),
        data: Vec::new(),
    };
    stage.wire.send(&answer, stage.client.host.hardware()?)?;
    stage.client.wait()?.ok()?;
    stage.takes_over()?;
    is_past(&stage, &syn, 2)?;
    assert_eq!(stage.agent.counter("agreed")?, 0, "nobody is believed");
    Ok(())
}

/// Where handshakes bear no identities, what the kernel has noted is all that there is. It names the one whose socket took the
/// answer, and nobody whose workload is gone, least of all who has its address by now.
#[test]
fn without_identities_who_is_gone_is_nobody() -> Result<()> {
    let mut stage = stage_with("repeat-gone", &policy(), "off")?;
    let wire = Wire::open(&stage.client.host, "eth0")?;
    assert_eq!(stage.client.talk(stage.server.v4(80))?, "ok");
    let syn = wire.receive("the client's SYN", ANSWERED, |segment| segment.flags == SYN)?;
    let to = stage.server.socket_v4(80);
    stage.takes_over()?;
    let (again, answer) = stage.shake(syn.from, to, syn.sequence, &[])?;
    stage.refused(&again, &answer)?;
    assert_eq!(stage.named(syn.from)?.0, "unknown");
    assert_eq!(stage.agent.counter("agreed")?, 1, "the client itself");

    // And one of a workload of which nothing is left, a moment ago.
    stage.gives_back()?;
    assert_eq!(stage.client.talk(stage.server.v4(80))?, "ok");
    let syn = wire.receive("the client's SYN", ANSWERED, |segment| segment.flags == SYN)?;
    let workloads = stage.workloads()?;
    stage.client.cgroup.remove()?;
    eventually("the client to be forgotten", RECORDED, || {
        Ok(stage.workloads()? < workloads)
    })?;
    stage.takes_over()?;
    let (again, answer) = stage.shake(syn.from, stage.other.socket_v4(80), syn.sequence, &[])?;
    stage.refused(&again, &answer)?;
    assert_eq!(stage.named(syn.from)?.0, "unknown");
    Ok(())
}
