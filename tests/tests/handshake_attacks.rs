// SPDX-License-Identifier: Apache-2.0
//! Somebody with packet sockets against the identity option: nothing that he makes up, cuts, repeats or puts elsewhere names
//! anybody, and good connections go on.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use anyhow::{Context as _, Result};
use aya::maps::{HashMap, Map, MapData};
use serde_json::json;
use zt_agent::spiffe_id::number_of;
use zt_common::abi::{Source, SourceKey};
use zt_common::handshake::IdentityOption;
use zt_common::names;
use zt_tests::pair::any;
use zt_tests::trail::{RECORDED, party};
use zt_tests::wire::{ACK, RST, SYN, Segment, Wire};
use zt_tests::{Agent, Party, Policy, Scene, TCP, eventually};

/// Where the attacker is. No kernel has this address.
const ATTACKER: Ipv4Addr = Ipv4Addr::new(10, 99, 66, 6);
const ANSWERED: Duration = Duration::from_secs(30);

struct Stage {
    scene: Scene,
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
        scene,
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
        let mut all = self.all_named(from, 1)?;
        Ok(all.swap_remove(0))
    }

    /// The same of so many connections from one place.
    fn all_named(&self, from: SocketAddrV4, count: usize) -> Result<Vec<(String, String, String)>> {
        let records = self.agent.records("", count, |record| {
            record["observer"] == "destination"
                && record["source"]["address"] == from.ip().to_string()
                && record["source"]["port"] == from.port()
        })?;
        let named = records.iter().map(|record| {
            let text = |field: &str| record[field].as_str().unwrap_or_default().to_owned();
            (party(&record["source"]).to_owned(), text("reason"), text("proof"))
        });
        Ok(named.collect())
    }

    /// What is sent to the client's address from now on reaches the attacker.
    fn takes_over(&self) -> Result<()> {
        let hardware = self.attacker.host.hardware()?;
        for host in [&self.server.host, &self.other.host] {
            host.neighbour(self.client.host.ipv4.into(), hardware)?;
        }
        Ok(())
    }

    /// Undoes [`Self::takes_over`].
    fn gives_back(&self) -> Result<()> {
        let hardware = self.client.host.hardware()?;
        for host in [&self.server.host, &self.other.host] {
            host.neighbour(self.client.host.ipv4.into(), hardware)?;
        }
        Ok(())
    }

    /// Nothing that this node's own sockets have sent is known any more: only what is proven names their workloads.
    fn forget_sources(&self) -> Result<()> {
        let map =
            MapData::from_pin(self.scene.sandbox().maps()?.join(names::SOURCES)).context("no zt_sources")?;
        let mut map: HashMap<_, SourceKey, Source> = HashMap::try_from(Map::LruHashMap(map))?;
        let keys = map.keys().collect::<Result<Vec<_>, _>>()?;
        for key in keys {
            map.remove(&key)?;
        }
        Ok(())
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
        // One whose forgery is believed leaves no record at this end: its source's end is thought to have made it.
        assert_eq!(self.agent.counter("agreed")?, talks as u64 + 1);
        Ok(())
    }
}

/// Who is nobody because of a tag.
fn nobody() -> (String, String, String) {
    ("unknown".into(), "tag_invalid".into(), "none:tag_invalid".into())
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
    let nobody = nobody();
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

    // From the client's address, which the attacker has taken over: from another port, at another time, to another audience,
    // to another port of the same audience.
    stage.takes_over()?;
    let client = stage.client.host.ipv4;
    let elsewhere = SocketAddrV4::new(client, syn.from.port() ^ 1);
    stage.shake(elsewhere, v4(stage.server.v4(80)), syn.sequence, &option)?;
    assert_eq!(stage.named(elsewhere)?, nobody);
    let mut count = 0;
    for (to, sequence) in [
        (stage.server.v4(80), syn.sequence.wrapping_add(1)),
        (stage.other.v4(80), syn.sequence),
        (stage.server.v4(81), syn.sequence),
    ] {
        let (_, answer) = stage.shake(syn.from, v4(to), sequence, &option)?;
        assert_eq!(answer.option(253), None, "{to}: who proves nothing gets no proof");
        count += 1;
        let named = stage.all_named(syn.from, count)?;
        assert!(named.iter().all(|named| *named == nobody), "{to}: {named:?}");
    }
    // And with none at all.
    let silent = SocketAddrV4::new(client, 39_002);
    stage.shake(silent, v4(stage.server.v4(80)), 1, &[])?;
    assert_eq!(
        stage.named(silent)?,
        ("unknown".into(), "proof_missing".into(), "none:absent".into())
    );
    stage.gives_back()?;
    stage.ends_well(1)
}

/// Every single bit of an option that is good otherwise, from the place and with the sequence number that it was made for.
#[test]
fn a_bit_that_is_turned_over_names_nobody() -> Result<()> {
    let mut stage = stage("attack-bits")?;
    let [syn, _] = stage.overheard()?;
    let option = syn.option(253).context("the SYN bears one")?.to_vec();
    let to = v4(stage.server.v4(80));
    stage.takes_over()?;
    stage.forget_sources()?;
    // The kind, the length and the identifier make it another option or none: those are in the other tests.
    let bits = 32..160;
    for bit in bits.clone() {
        let mut turned = option.clone();
        turned[bit / 8] ^= 1 << (bit % 8);
        stage.shake(syn.from, to, syn.sequence, &turned)?;
        stage.wire.receive("the reset", ANSWERED, |segment| {
            segment.from == to && segment.to == syn.from && segment.flags & RST != 0
        })?;
    }
    let named = stage.all_named(syn.from, bits.len())?;
    for (bit, named) in bits.zip(named) {
        // With the bit of an option that is deferred it claims nothing, and bears nothing afterwards.
        let expected = if bit == 12 * 8 + 4 {
            ("unknown".into(), "proof_missing".into(), "none:absent".into())
        } else {
            nobody()
        };
        assert_eq!(named, expected, "bit {bit}");
    }
    assert_eq!(stage.agent.counter("agreed")?, 1, "the client itself");
    // It was for nothing else: unchanged it verifies, once more and at this place.
    stage.shake(syn.from, to, syn.sequence, &option)?;
    eventually("the whole option to be believed", RECORDED, || {
        Ok(stage.agent.counter("agreed")? == 2)
    })
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

/// Nobody gets an answer that proves who the server is but he who has proven who he is himself: such an answer could be
/// repeated to a client who has been lured elsewhere.
#[test]
fn an_answer_is_signed_for_no_stranger() -> Result<()> {
    let mut stage = stage("attack-answer")?;
    let [syn, _] = stage.overheard()?;
    let heard = syn.option(253).context("the SYN bears one")?.to_vec();
    let guessed = forged(&stage.client.id);
    let deferred = IdentityOption::deferred(number_of(&stage.client.id)).to_bytes();
    for (what, option) in [
        ("what was overheard", heard.as_slice()),
        ("what was guessed", guessed.as_slice()),
        ("what leaves the proof for later", deferred.as_slice()),
    ] {
        let from = stage.fresh();
        let (_, answer) = stage.shake(from, v4(stage.server.v4(80)), syn.sequence, option)?;
        assert_eq!(answer.option(253), None, "{what}");
        let (source, ..) = stage.named(from)?;
        assert!(
            ["unknown", "world"].contains(&source.as_str()),
            "{what}: {source}"
        );
    }
    // Nor at the client's own address, where no kernel of this node has sent it.
    stage.takes_over()?;
    let from = SocketAddrV4::new(stage.client.host.ipv4, 39_003);
    let (_, answer) = stage.shake(from, v4(stage.server.v4(80)), syn.sequence, &deferred)?;
    assert_eq!(answer.option(253), None);
    let (source, reason, _) = stage.named(from)?;
    assert_eq!((source.as_str(), reason.as_str()), ("unknown", "proof_missing"));
    stage.gives_back()?;
    stage.ends_well(1)
}

/// A flood of SYNs that nobody completes, with and without options, has the listener send cookies. Whoever is honest gets through
/// and is known, and nobody else is taken for him.
#[test]
fn cookies_under_a_flood_lose_nobody() -> Result<()> {
    let mut stage = stage("attack-flood")?;
    stage.server.host.sysctl("net/ipv4/tcp_syncookies", "1")?;
    let to = v4(stage.server.v4(80));
    let option = forged(&stage.client.id);
    let talks = 20;
    let flood = |stage: &Stage, count: u32| -> Result<()> {
        for number in 0..count {
            let from = SocketAddrV4::new(ATTACKER, (1024 + number % 60_000) as u16);
            let options: &[u8] = if number % 2 == 0 { &option } else { &[] };
            stage
                .wire
                .send(&Segment::syn(from, to, number, options), stage.hardware[0])?;
        }
        Ok(())
    };
    for _ in 0..talks {
        flood(&stage, 5_000)?;
        assert_eq!(stage.client.talk(stage.server.v4(80))?, "ok");
    }
    assert!(stage.agent.counter("option_cookies")? > 0, "no cookies were sent");
    assert_eq!(
        stage.agent.counter("tags_invalid")?,
        0,
        "nobody completed a handshake"
    );
    stage.ends_well(talks)
}
