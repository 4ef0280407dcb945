// SPDX-License-Identifier: Apache-2.0
//! Somebody with packet sockets against the identity option: nothing that he makes up, cuts, repeats or puts elsewhere names
//! anybody, and good connections go on.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::json;
use zt_agent::spiffe_id::number_of;
use zt_common::handshake::IdentityOption;
use zt_tests::pair::any;
use zt_tests::trail::{RECORDED, party};
use zt_tests::wire::{ACK, SYN, Segment, Wire};
use zt_tests::{Agent, Party, Policy, Scene, TCP, eventually};

/// Where the attacker is. No kernel has this address.
const ATTACKER: Ipv4Addr = Ipv4Addr::new(10, 99, 66, 6);
const ANSWERED: Duration = Duration::from_secs(30);

struct Stage {
    _scene: Scene,
    server: Party,
    other: Party,
    client: Party,
    attacker: Party,
    agent: Agent,
    wire: Wire,
    hardware: [[u8; 6]; 2],
    port: u16,
}

/// `client` may reach `server` and `other` at port 80, and the world may reach `server` at port 81.
fn stage(label: &str) -> Result<Stage> {
    let mut scene = Scene::new(label)?;
    let mut server = scene.workload("server")?;
    let mut other = scene.workload("other")?;
    let client = scene.workload("client")?;
    let attacker = scene.outsider("attacker")?;
    let policy = Policy::new("attacks")
        .allow("client", "server", TCP, "80")
        .allow("client", "other", TCP, "80")
        .allow("world", "server", TCP, "81");
    let agent = scene.agent(&policy)?.config("handshake", json!("auto")).start()?;
    for port in [80, 81] {
        server.serve(any(port))?.local()?;
    }
    other.serve(any(80))?.local()?;
    for host in [&server.host, &other.host] {
        host.neighbour(ATTACKER.into(), attacker.host.hardware()?)?;
    }
    Ok(Stage {
        wire: Wire::open(&attacker.host, "eth0")?,
        hardware: [server.host.hardware()?, other.host.hardware()?],
        _scene: scene,
        server,
        other,
        client,
        attacker,
        agent,
        port: 40_000,
    })
}

fn v4(address: SocketAddr) -> SocketAddrV4 {
    match address {
        SocketAddr::V4(v4) => v4,
        SocketAddr::V6(v6) => unreachable!("{v6} is not IPv4"),
    }
}

impl Stage {
    /// An address of the attacker's that nobody has used.
    fn fresh(&mut self) -> SocketAddrV4 {
        self.port += 1;
        SocketAddrV4::new(ATTACKER, self.port)
    }

    /// A whole handshake, of which the attacker makes every segment; his SYN and what answered it.
    fn shake(
        &self,
        from: SocketAddrV4,
        to: SocketAddrV4,
        sequence: u32,
        options: &[u8],
    ) -> Result<(Segment, Segment)> {
        let hardware = self.hardware[usize::from(*to.ip() == self.other.host.ipv4)];
        let syn = Segment::syn(from, to, sequence, options);
        self.wire.send(&syn, hardware)?;
        let answer = self.wire.receive("an answer", ANSWERED, |segment| {
            segment.from == to && segment.to == from && segment.flags == SYN | ACK
        })?;
        self.wire.send(&syn.completes(&answer), hardware)?;
        Ok((syn, answer))
    }

    /// Waits for the one record of a connection, and says who the destination's end took for its source.
    fn named(&self, from: SocketAddrV4) -> Result<(String, String, String)> {
        let records = self.agent.records("", 1, |record| {
            record["observer"] == "destination"
                && record["source"]["address"] == from.ip().to_string()
                && record["source"]["port"] == from.port()
        })?;
        let record = records.first().context("one was asked for")?;
        let text = |field: &str| record[field].as_str().unwrap_or_default().to_owned();
        Ok((party(&record["source"]).to_owned(), text("reason"), text("proof")))
    }

    /// The attacker shakes hands with these options, and is nobody.
    fn is_nobody(&mut self, what: &str, options: &[u8]) -> Result<()> {
        let from = self.fresh();
        self.shake(from, v4(self.server.v4(80)), 7_000_000, options)?;
        let (source, reason, proof) = self.named(from)?;
        assert_eq!(
            (source.as_str(), reason.as_str(), proof.as_str()),
            ("unknown", "tag_invalid", "none:tag_invalid"),
            "{what}"
        );
        Ok(())
    }

    /// What the client's kernel puts into a SYN to the server, and the server's into its answer.
    fn overheard(&mut self) -> Result<[Segment; 2]> {
        let to = Wire::open(&self.server.host, "eth0")?;
        let back = Wire::open(&self.client.host, "eth0")?;
        assert_eq!(self.client.talk(self.server.v4(80))?, "ok");
        let syn = to.receive("the client's SYN", ANSWERED, |segment| segment.flags == SYN)?;
        let answer = back.receive("the answer", ANSWERED, |segment| segment.flags == SYN | ACK)?;
        Ok([syn, answer])
    }

    /// Nobody was ever taken for the client but the client, and it still gets through.
    fn ends_well(&mut self, talks: usize) -> Result<()> {
        assert_eq!(self.client.talk(self.server.v4(80))?, "ok");
        let id = self.client.id.clone();
        self.agent.records("decision=ALLOW", talks + 1, |record| {
            party(&record["source"]) == id && record["proof"] == "mutual"
        })?;
        let named = self.agent.all_records("")?;
        let wrong = named
            .iter()
            .find(|record| record["observer"] == "destination" && party(&record["source"]) == id);
        assert_eq!(wrong, None);
        Ok(())
    }
}

/// An option with this identity and a tag that was guessed.
fn forged(name: &str) -> [u8; 20] {
    let mut option = [0; 20];
    option[..4].copy_from_slice(&[253, 20, b'Z', b'T']);
    option[4..12].copy_from_slice(&number_of(name).to_be_bytes());
    option[12..].copy_from_slice(&0x4123_4567_89ab_cdef_u64.to_be_bytes());
    option
}

#[test]
fn what_is_made_up_or_cut_names_nobody() -> Result<()> {
    let mut stage = stage("attack-forged")?;
    let option = forged(&stage.client.id);
    stage.is_nobody("a guessed tag", &option)?;
    for epoch in 0..4_u8 {
        let mut option = option;
        option[12] = option[12] & 0x0f | epoch << 6;
        stage.is_nobody("a guessed tag of every epoch", &option)?;
    }
    for length in [4, 5, 12, 19] {
        let mut cut = option[..length].to_vec();
        cut[1] = length as u8;
        stage.is_nobody("a short option", &cut)?;
    }
    let mut long = option.to_vec();
    long.extend([0; 12]);
    for length in [21, 24, 32] {
        long[1] = length;
        stage.is_nobody("a long option", &long)?;
    }
    stage.is_nobody("twice", &[option, option].concat())?;
    assert!(stage.agent.counter("tags_invalid")? >= 13);
    stage.ends_well(0)
}

#[test]
fn what_is_repeated_elsewhere_names_nobody() -> Result<()> {
    let mut stage = stage("attack-replay")?;
    let [syn, answer] = stage.overheard()?;
    let option = syn.option(253).context("the SYN bears one")?.to_vec();
    let reflected = answer.option(253).context("so does its answer")?.to_vec();
    let nobody = (
        "unknown".to_owned(),
        "tag_invalid".to_owned(),
        "none:tag_invalid".to_owned(),
    );

    // From an address and ports of the attacker's own, with the very sequence number.
    let from = stage.fresh();
    stage.shake(from, v4(stage.server.v4(80)), syn.sequence, &option)?;
    assert_eq!(stage.named(from)?, nobody);
    let from = SocketAddrV4::new(ATTACKER, syn.from.port());
    stage.shake(from, v4(stage.server.v4(80)), syn.sequence, &option)?;
    assert_eq!(stage.named(from)?, nobody);
    // What the server itself said.
    let from = stage.fresh();
    stage.shake(from, v4(stage.server.v4(80)), syn.sequence, &reflected)?;
    assert_eq!(stage.named(from)?, nobody);

    // From the client's address, which the attacker has taken over: at another port, at another time, to another audience.
    let hardware = stage.attacker.host.hardware()?;
    for host in [&stage.server.host, &stage.other.host] {
        host.neighbour(stage.client.host.ipv4.into(), hardware)?;
    }
    let client = stage.client.host.ipv4;
    let elsewhere = SocketAddrV4::new(client, syn.from.port() ^ 1);
    stage.shake(elsewhere, v4(stage.server.v4(80)), syn.sequence, &option)?;
    assert_eq!(stage.named(elsewhere)?, nobody);
    let later = SocketAddrV4::new(client, 39_001);
    stage.shake(
        later,
        v4(stage.server.v4(80)),
        syn.sequence.wrapping_add(1),
        &option,
    )?;
    assert_eq!(stage.named(later)?, nobody);
    stage.shake(syn.from, v4(stage.other.v4(80)), syn.sequence, &option)?;
    assert_eq!(stage.named(syn.from)?, nobody);
    // And with none at all.
    let silent = SocketAddrV4::new(client, 39_002);
    stage.shake(silent, v4(stage.server.v4(80)), 1, &[])?;
    assert_eq!(
        stage.named(silent)?,
        ("unknown".into(), "proof_missing".into(), "none:absent".into())
    );
    let hardware = stage.client.host.hardware()?;
    stage.server.host.neighbour(client.into(), hardware)?;
    stage.ends_well(1)
}

/// Every single bit of an option that is good otherwise.
#[test]
fn a_bit_that_is_turned_over_names_nobody() -> Result<()> {
    let mut stage = stage("attack-bits")?;
    let [syn, _] = stage.overheard()?;
    let option = syn.option(253).context("the SYN bears one")?.to_vec();
    let hardware = stage.attacker.host.hardware()?;
    let client = stage.client.host.ipv4;
    stage.server.host.neighbour(client.into(), hardware)?;
    // The kind, the length and the identifier make it another option or none: those are in the other tests.
    for bit in (32..160).step_by(5) {
        let mut turned = option.clone();
        turned[bit / 8] ^= 1 << (bit % 8);
        let from = SocketAddrV4::new(client, 38_000 + bit as u16);
        stage.shake(from, v4(stage.server.v4(80)), syn.sequence, &turned)?;
        let (source, reason, _) = stage.named(from)?;
        assert_eq!(
            (source.as_str(), reason.as_str()),
            ("unknown", "tag_invalid"),
            "bit {bit}"
        );
    }
    Ok(())
}

/// Behind the handshake nobody looks for options any more.
#[test]
fn an_option_on_a_data_segment_changes_nothing() -> Result<()> {
    let mut stage = stage("attack-data")?;
    let from = stage.fresh();
    let to = v4(stage.server.v4(81));
    let (syn, answer) = stage.shake(from, to, 1_000, &[])?;
    assert_eq!(answer.option(253), None, "who bears none is answered with none");
    let (source, ..) = stage.named(from)?;
    assert_eq!(source, "world");
    let data = Segment {
        options: forged(&stage.client.id).to_vec(),
        data: b"word".to_vec(),
        ..syn.completes(&answer)
    };
    stage.wire.send(&data, stage.hardware[0])?;
    let echo = stage.wire.receive("the echo", ANSWERED, |segment| {
        segment.from == to && segment.to == from && !segment.data.is_empty()
    })?;
    assert_eq!(echo.data, b"word");
    assert_eq!(echo.option(253), None);
    let (source, ..) = stage.named(from)?;
    assert_eq!(source, "world", "still one record, and of nobody else");
    stage.ends_well(0)
}

/// The server's answer proves its identity only to the one who asked, with what he asked.
#[test]
fn an_answer_is_bound_to_its_question() -> Result<()> {
    let mut stage = stage("attack-answer")?;
    let from = stage.fresh();
    let option = forged(&stage.client.id);
    let (_, one) = stage.shake(from, v4(stage.server.v4(80)), 1_000, &option)?;
    let from = stage.fresh();
    let (_, two) = stage.shake(from, v4(stage.server.v4(80)), 1_000, &option)?;
    let read = |segment: &Segment| -> Result<IdentityOption> {
        let bytes: [u8; 20] = segment.option(253).context("an answer")?.try_into()?;
        Ok(IdentityOption::from_bytes(&bytes))
    };
    assert_eq!(read(&one)?.identity(), number_of(&stage.server.id));
    assert_ne!(read(&one)?, read(&two)?, "each has its own sequence number");
    eventually("both are refused", RECORDED, || {
        Ok(stage.agent.counter("tags_invalid")? == 2)
    })?;
    stage.ends_well(0)
}
