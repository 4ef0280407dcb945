// SPDX-License-Identifier: Apache-2.0
//! The cast of tests in which somebody with packet sockets wants to be taken for somebody else.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use aya::maps::{HashMap, Map, MapData};
use serde_json::json;
use zt_agent::spiffe_id::number_of;
use zt_common::abi::{Source, SourceKey, Workload};
use zt_common::names;
use zt_common::outcome::{Arrived, Named, Noted, Place, Shown, at_destination};
use zt_common::verdict::{Reason, Verdict};

use crate::agent::Agent;
use crate::pair::any;
use crate::rules::{Policy, TCP};
use crate::scene::{Party, Scene};
use crate::trail::party;
use crate::wait::eventually;
use crate::wire::{ACK, RST, SYN, Segment, Wire};

/// Where the attacker is. No kernel has this address.
pub const ATTACKER: Ipv4Addr = Ipv4Addr::new(10, 99, 66, 6);
/// How long an answer may take.
pub const ANSWERED: Duration = Duration::from_secs(30);

/// A server, another one, a client of both, and somebody who would like to be the client.
#[derive(Debug)]
pub struct Stage {
    /// The sandbox and who is in it.
    pub scene: Scene,
    /// Serves at ports 80 and 81.
    pub server: Party,
    /// Serves at port 80.
    pub other: Party,
    /// May reach both at port 80.
    pub client: Party,
    /// An outsider.
    pub attacker: Party,
    /// The agent.
    pub agent: Agent,
    /// The attacker's interface.
    pub wire: Wire,
    /// The hardware addresses of `server` and `other`.
    pub hardware: [[u8; 6]; 2],
    port: u16,
}

/// Handshakes bear identities; `client` may reach `server` and `other` at port 80, and the world may reach `server` at port 81.
pub fn stage(label: &str) -> Result<Stage> {
    let policy = Policy::new("attacks")
        .allow("client", "server", TCP, "80")
        .allow("client", "other", TCP, "80")
        .allow("world", "server", TCP, "81");
    stage_with(label, &policy, "auto")
}

/// The same with another policy and another `handshake`.
pub fn stage_with(label: &str, policy: &Policy, handshake: &str) -> Result<Stage> {
    let mut scene = Scene::new(label)?;
    let mut server = scene.workload("server")?;
    let mut other = scene.workload("other")?;
    let client = scene.workload("client")?;
    let attacker = scene.outsider("attacker")?;
    let agent = scene
        .agent(policy)?
        .config("handshake", json!(handshake))
        .start()?;
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

impl Stage {
    /// An address of the attacker's that nobody has used.
    pub fn fresh(&mut self) -> SocketAddrV4 {
        self.port += 1;
        SocketAddrV4::new(ATTACKER, self.port)
    }

    /// A whole handshake, of which the attacker makes every segment; his SYN and what answered it.
    pub fn shake(
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
    pub fn named(&self, from: SocketAddrV4) -> Result<(String, String, String)> {
        let mut all = self.all_named(from, 1)?;
        Ok(all.swap_remove(0))
    }

    /// The same of so many connections from one place.
    pub fn all_named(&self, from: SocketAddrV4, count: usize) -> Result<Vec<(String, String, String)>> {
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
    pub fn takes_over(&self) -> Result<()> {
        let hardware = self.attacker.host.hardware()?;
        for host in [&self.server.host, &self.other.host] {
            host.neighbour(self.client.host.ipv4.into(), hardware)?;
        }
        Ok(())
    }

    /// Undoes [`Self::takes_over`].
    pub fn gives_back(&self) -> Result<()> {
        let hardware = self.client.host.hardware()?;
        for host in [&self.server.host, &self.other.host] {
            host.neighbour(self.client.host.ipv4.into(), hardware)?;
        }
        Ok(())
    }

    /// Nothing that this node's own sockets have sent is known any more: only what is proven names their workloads.
    pub fn forget_sources(&self) -> Result<()> {
        for mut map in self.sources()? {
            let keys = map.keys().collect::<Result<Vec<_>, _>>()?;
            for key in keys {
                map.remove(&key)?;
            }
        }
        Ok(())
    }

    /// Waits until nothing is left of a connection that was refused: before that, the next SYN would be one of its own.
    pub fn refused(&self, syn: &Segment, answer: &Segment) -> Result<()> {
        let hardware = self.hardware[usize::from(*syn.to.ip() == self.other.host.ipv4)];
        eventually("the refusal", ANSWERED, || {
            self.wire.send(&syn.completes(answer), hardware)?;
            let seen = self.wire.seen()?;
            Ok(seen
                .iter()
                .any(|segment| segment.to == syn.from && segment.flags & RST != 0))
        })
    }

    /// What this node's own sockets have sent was so many seconds longer ago.
    pub fn age_sources(&self, seconds: u32) -> Result<()> {
        for mut map in self.sources()? {
            let noted = map.iter().collect::<Result<Vec<_>, _>>()?;
            for (key, source) in noted {
                let noted = source.noted.wrapping_sub(seconds);
                map.insert(key, Source { noted, ..source }, 0)?;
            }
        }
        Ok(())
    }

    /// Whether the kernel has noted a SYN with this sequence number.
    pub fn is_noted(&self, sequence: u32) -> Result<bool> {
        for map in self.sources()? {
            for key in map.keys() {
                if key?.sequence == sequence {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// How many workloads the kernel knows.
    pub fn workloads(&self) -> Result<usize> {
        let map = MapData::from_pin(self.scene.sandbox().maps()?.join(names::WORKLOADS))
            .context("no zt_workloads")?;
        let map: HashMap<_, u64, Workload> = HashMap::try_from(Map::HashMap(map))?;
        Ok(map.keys().count())
    }

    fn sources(&self) -> Result<[HashMap<MapData, SourceKey, Source>; 2]> {
        let map = |name: &str| -> Result<HashMap<MapData, SourceKey, Source>> {
            let map = MapData::from_pin(self.scene.sandbox().maps()?.join(name))
                .with_context(|| name.to_owned())?;
            Ok(HashMap::try_from(Map::LruHashMap(map))?)
        };
        Ok([map(names::SOURCES)?, map(names::STRAYS)?])
    }

    /// The attacker shakes hands with these options from an address of his own, and is who that says.
    pub fn is_nobody(&mut self, what: &str, options: &[u8]) -> Result<()> {
        let from = self.fresh();
        self.shake(from, self.server.socket_v4(80), 7_000_000, options)?;
        let named = self.named(from)?;
        ensure!(named == outsider(), "{what}: {named:?}");
        Ok(())
    }

    /// What the client's kernel puts into a SYN to the server, and the server's into its answer.
    pub fn overheard(&mut self) -> Result<[Segment; 2]> {
        let to = Wire::open(&self.server.host, "eth0")?;
        let back = Wire::open(&self.client.host, "eth0")?;
        let talk = self.client.talk(self.server.v4(80))?;
        ensure!(talk == "ok", "the client: {talk}");
        let syn = to.receive("the client's SYN", ANSWERED, |segment| segment.flags == SYN)?;
        let answer = back.receive("the answer", ANSWERED, |segment| segment.flags == SYN | ACK)?;
        Ok([syn, answer])
    }

    /// Nobody was ever taken for the client but the client, and it still gets through.
    pub fn ends_well(&mut self, talks: usize) -> Result<()> {
        let talk = self.client.talk(self.server.v4(80))?;
        ensure!(talk == "ok", "the client: {talk}");
        let id = self.client.id.clone();
        self.agent.records("decision=ALLOW", talks + 1, |record| {
            party(&record["source"]) == id && record["proof"] == "mutual"
        })?;
        let named = self.agent.all_records("")?;
        let wrong = named
            .iter()
            .find(|record| record["observer"] == "destination" && party(&record["source"]) == id);
        ensure!(wrong.is_none(), "{wrong:?}");
        // One whose forgery is believed leaves no record at this end: its source's end is thought to have made it.
        let agreed = self.agent.counter("agreed")?;
        ensure!(agreed == talks as u64 + 1, "{agreed} believed of {talks} and one");
        Ok(())
    }
}

/// What the record at the destination's end says of a connection of which nothing is noted: of its source, of the reason, and of proof, by
/// the model of what handshakes come to. `name` is who has the address, to whom policy allows nothing.
fn taken_for(shown: Shown, from: Place, name: &str) -> (String, String, String) {
    let outcome = at_destination(&Arrived {
        shown,
        noted: Noted::Nothing,
        from,
    });
    let (source, reason) = match outcome.named {
        Named::Nobody => ("unknown", Reason::UnknownSource),
        _ => (name, Reason::NoRule),
    };
    let verdict = outcome.judged(Verdict::refusal(reason, 0));
    (
        source.into(),
        verdict.reason.name().into(),
        outcome.proof.name().into(),
    )
}

/// Who is nobody because of a tag.
pub fn nobody() -> (String, String, String) {
    taken_for(Shown::Unverified, Place::Prover, "")
}

/// Who is from elsewhere, and has a tag that says nothing else.
pub fn outsider() -> (String, String, String) {
    taken_for(Shown::Unverified, Place::Elsewhere, "world")
}

/// Who has the address of a workload of this node, and no option.
pub fn silent() -> (String, String, String) {
    taken_for(Shown::Nothing, Place::Prover, "")
}

/// An option with this identity and a tag that was guessed.
pub fn forged(name: &str) -> [u8; 20] {
    let mut option = [0; 20];
    option[..4].copy_from_slice(&[253, 20, b'Z', b'T']);
    option[4..12].copy_from_slice(&number_of(name).to_be_bytes());
    option[12..].copy_from_slice(&0x4123_4567_89ab_cdef_u64.to_be_bytes());
    option
}
