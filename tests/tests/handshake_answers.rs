// SPDX-License-Identifier: Apache-2.0
//! Somebody with packet sockets at the address of a server: what he answers to a client's SYN names nobody, unless it is what the server
//! itself has said to this very SYN.

use std::net::{SocketAddr, SocketAddrV4};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use zt_common::outcome::{Answer, Called, Named, at_source};
use zt_common::verdict::{Reason, Verdict};
use zt_tests::attacker::{ANSWERED, Stage, forged, nobody, stage};
use zt_tests::eventually;
use zt_tests::probe::{ConnectOptions, Operation};
use zt_tests::trail::{RECORDED, says};
use zt_tests::wire::{ACK, SYN, Segment, Wire};

/// What the client calls from now on at the address of one of the two servers reaches the attacker.
fn stands_in(stage: &Stage, for_other: bool) -> Result<SocketAddrV4> {
    let server = if for_other { &stage.other } else { &stage.server };
    let hardware = stage.attacker.host.hardware()?;
    stage.client.host.neighbour(server.host.ipv4.into(), hardware)?;
    Ok(server.socket_v4(80))
}

/// Undoes [`stands_in`] for the first.
fn steps_aside(stage: &Stage) -> Result<()> {
    let address = stage.server.host.ipv4.into();
    stage.client.host.neighbour(address, stage.hardware[0])
}

/// The client calls, and has something to say as soon as it may. Its SYN.
fn calls(stage: &mut Stage, to: SocketAddrV4) -> Result<Segment> {
    stage.client.send(Operation::SendWhileConnecting {
        to: SocketAddr::V4(to),
        data: "secret".to_owned(),
        timeout: ANSWERED,
    })?;
    syn_of(stage, to)
}

fn syn_of(stage: &Stage, to: SocketAddrV4) -> Result<Segment> {
    stage.wire.receive("the client's SYN", ANSWERED, |segment| {
        segment.flags == SYN && segment.to == to
    })
}

fn answer_to(syn: &Segment, sequence: u32, options: &[u8]) -> Segment {
    Segment {
        from: syn.to,
        to: syn.from,
        sequence,
        acknowledged: syn.sequence.wrapping_add(1),
        flags: SYN | ACK,
        options: options.to_vec(),
        data: Vec::new(),
    }
}

/// The client is answered.
fn answers(stage: &mut Stage, answer: &Segment) -> Result<()> {
    stage.wire.send(answer, stage.client.host.hardware()?)?;
    // What it has to say may have come as far as its own kernel before the socket was destroyed.
    stage.client.wait()?;
    Ok(())
}

/// Not a byte of the client's was under way.
fn said_nothing(watch: &Wire) -> Result<()> {
    let seen = watch.seen()?;
    ensure!(seen.iter().any(|segment| segment.flags == SYN), "{seen:?}");
    let said = seen.iter().find(|segment| !segment.data.is_empty());
    ensure!(said.is_none(), "{said:?}");
    Ok(())
}

/// The client's records of connections: so many went to nobody because of a tag, and all others to the server itself.
fn are_nobody(stage: &Stage, count: u64) -> Result<()> {
    let [client, server] = [stage.client.id.clone(), stage.server.id.clone()];
    let outcome = at_source(Called::Workload, Answer::Unverified);
    assert_eq!(outcome.named, Named::Nobody);
    let reason = outcome
        .judged(Verdict::refusal(Reason::UnknownDestination, 0))
        .reason
        .name();
    let is_refused = |record: &Value| {
        says(record, &client, "unknown", "DENY", reason) && record["proof"] == outcome.proof.name()
    };
    // Equal ones may be joined.
    let number = |record: &Value| record["count"].as_u64().unwrap_or(1);
    let mut records = Vec::new();
    let found = eventually("the records of what was refused", RECORDED, || {
        records = stage.agent.all_records("")?;
        Ok(records
            .iter()
            .filter(|record| is_refused(record))
            .map(number)
            .sum::<u64>()
            == count)
    });
    found.with_context(|| format!("{count} of {records:?}"))?;
    let rest = records.iter().filter(|record| !is_refused(record));
    for record in rest {
        ensure!(
            says(record, &client, &server, "ALLOW", "rule") && record["proof"] == "mutual",
            "{record}"
        );
    }
    Ok(())
}

/// With this bit turned over.
fn turned(segment: &Segment, bit: usize) -> Result<Segment> {
    let option = segment.option(253).context("it bears one")?;
    let at = segment
        .options
        .windows(option.len())
        .position(|bytes| bytes == option);
    let mut segment = segment.clone();
    segment.options[at.context("it is there")? + bit / 8] ^= 1 << (bit % 8);
    Ok(segment)
}

#[test]
fn what_is_made_up_or_repeated_in_an_answer_names_nobody() -> Result<()> {
    let mut stage = stage("answer-forged")?;
    let [_, earlier] = stage.overheard()?;
    let heard = earlier.option(253).context("the answer bears one")?.to_vec();
    let to = stands_in(&stage, false)?;
    let watch = Wire::open(&stage.client.host, "eth0")?;
    let option = forged(&stage.server.id);
    // A guessed tag, two of them, what was said to another SYN before, and both.
    let mut options = vec![
        option.to_vec(),
        [option, option].concat(),
        heard.clone(),
        [&option[..], &heard].concat(),
    ];
    for epoch in 0..4_u8 {
        let mut option = option;
        option[12] = option[12] & 0x0f | epoch << 6;
        options.push(option.to_vec());
    }
    for length in [4, 5, 12, 19] {
        let mut cut = option[..length].to_vec();
        cut[1] = length as u8;
        options.push(cut);
    }
    for length in [21, 24, 32] {
        let mut long = [&option[..], &[0; 12]].concat();
        long[1] = length;
        options.push(long);
    }
    for option in &options {
        let syn = calls(&mut stage, to)?;
        answers(&mut stage, &answer_to(&syn, earlier.sequence, option))?;
    }
    // What the client itself has just said.
    let syn = calls(&mut stage, to)?;
    let own = syn.option(253).context("the SYN bears one")?.to_vec();
    answers(&mut stage, &answer_to(&syn, syn.sequence, &own))?;
    are_nobody(&stage, options.len() as u64 + 1)?;
    said_nothing(&watch)?;
    steps_aside(&stage)?;
    stage.ends_well(1)
}

/// Every single bit of an answer that is good otherwise, on its way to the one for whom it was made.
#[test]
fn a_bit_that_is_turned_over_in_an_answer_names_nobody() -> Result<()> {
    let mut stage = stage("answer-bits")?;
    let to = stands_in(&stage, false)?;
    let watch = Wire::open(&stage.client.host, "eth0")?;
    stage.takes_over()?;
    // The kind, the length and the identifier make it another option or none: those are in the other tests.
    let bits = 32..160;
    for bit in bits.clone() {
        let syn = calls(&mut stage, to)?;
        let answer = passed_on(&stage, &syn)?;
        answers(&mut stage, &turned(&answer, bit)?)?;
    }
    are_nobody(&stage, bits.len() as u64)?;
    said_nothing(&watch)?;
    stage.gives_back()?;
    steps_aside(&stage)?;
    stage.ends_well(0)
}

/// One that is made up is not made good by what the server itself says to this very SYN, where that comes behind it.
#[test]
fn of_two_options_in_an_answer_the_first_counts_alone() -> Result<()> {
    let mut stage = stage("answer-two")?;
    let to = stands_in(&stage, false)?;
    let watch = Wire::open(&stage.client.host, "eth0")?;
    stage.takes_over()?;
    for name in [stage.other.id.clone(), stage.server.id.clone()] {
        let syn = calls(&mut stage, to)?;
        let answer = passed_on(&stage, &syn)?;
        let good = answer.option(253).context("the answer bears one")?;
        let both = [&forged(&name)[..], good].concat();
        answers(&mut stage, &answer_to(&syn, answer.sequence, &both))?;
    }
    are_nobody(&stage, 2)?;
    said_nothing(&watch)?;
    stage.gives_back()?;
    steps_aside(&stage)?;
    stage.ends_well(0)
}

/// The attacker is between client and server, and asks the server what it says to the client's SYN.
fn passed_on(stage: &Stage, syn: &Segment) -> Result<Segment> {
    stage.wire.send(syn, stage.hardware[0])?;
    stage.wire.receive("the server's answer", ANSWERED, |segment| {
        segment.flags == SYN | ACK && segment.to == syn.from
    })
}

/// A SYN that was for somebody else fetches no answer that would prove anything.
#[test]
fn a_syn_that_is_led_elsewhere_fetches_no_proof() -> Result<()> {
    let mut stage = stage("answer-led")?;
    let to = stands_in(&stage, true)?;
    stage.takes_over()?;
    let syn = calls(&mut stage, to)?;
    assert!(syn.option(253).is_some(), "{syn:?}");
    let led = Segment {
        to: stage.server.socket_v4(80),
        ..syn.clone()
    };
    let answer = passed_on(&stage, &led)?;
    assert_eq!(answer.option(253), None, "{answer:?}");
    // And whoever completes it is nobody to the server.
    stage.wire.send(&led.completes(&answer), stage.hardware[0])?;
    assert_eq!(stage.named(syn.from)?, nobody());
    Ok(())
}

/// What identities in handshakes do not do: whoever is on the way of a connection may let the handshake pass, and say what he likes
/// afterwards.
#[test]
fn on_the_way_of_a_connection_what_follows_can_be_changed() -> Result<()> {
    let mut stage = stage("answer-between")?;
    let to = stands_in(&stage, false)?;
    stage.takes_over()?;
    stage.client.send(Operation::TcpConnect {
        to: SocketAddr::V4(to),
        options: ConnectOptions {
            timeout: ANSWERED,
            ..ConnectOptions::default()
        },
    })?;
    let syn = syn_of(&stage, to)?;
    let answer = passed_on(&stage, &syn)?;
    stage.wire.send(&answer, stage.client.host.hardware()?)?;
    let socket = stage.client.wait()?.handle()?;
    stage.wire.send(&syn.completes(&answer), stage.hardware[0])?;
    stage.agent.records("", 1, |record| record["proof"] == "mutual")?;
    let agent = &stage.agent;
    eventually("the server to know its client", RECORDED, || {
        Ok(agent.counter("agreed")? == 1)
    })?;
    stage.client.send_text(socket, "word")?.ok()?;
    let word = stage.wire.receive("the word", ANSWERED, |segment| {
        segment.from == syn.from && segment.data == b"word"
    })?;
    let lie = Segment {
        flags: ACK,
        sequence: answer.sequence.wrapping_add(1),
        acknowledged: word.sequence.wrapping_add(4),
        options: Vec::new(),
        data: b"lies".to_vec(),
        ..answer
    };
    stage.wire.send(&lie, stage.client.host.hardware()?)?;
    assert_eq!(stage.client.receive(socket)?.data.as_deref(), Some("lies"));
    Ok(())
}
