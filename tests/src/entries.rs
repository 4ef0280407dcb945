// SPDX-License-Identifier: Apache-2.0
//! Entries of the trail in any number, the same for the same number.

use std::sync::Arc;

use uuid::Uuid;
use zt_agent::audit::chain::Head;
use zt_agent::audit::record::{
    Change, Destination, Entry, Kept, Latency, Mode, Observer, Outcome, Protocol, Source, Timestamp, party,
};
use zt_agent::audit::{AuditRecord, record};

use crate::random::Random;

/// Makes entries of `parties` workloads, one every `step` nanoseconds.
#[derive(Clone, Debug)]
pub struct Maker {
    /// Time of the first entry.
    pub start: i64,
    /// Between two entries.
    pub step: i64,
    /// Workloads; each talks to few of the others.
    pub parties: u64,
}

/// As spread as tests need it.
pub fn spread(number: u64) -> u64 {
    Random(number).next()
}

/// What a record can say of proof.
const PROOFS: [&str; 8] = [
    "none",
    "mutual",
    "source",
    "destination",
    "none:unanswered",
    "none:absent",
    "none:unsaved",
    "none:tag_invalid",
];

impl Maker {
    /// The SPIFFE ID of a workload.
    pub fn name(&self, number: u64) -> String {
        let namespace = ["hanzo", "monitoring", "kube-system"][(number % 3) as usize];
        format!("spiffe://hanzo.ai/hanzo-k8s/{namespace}/workload-{number}")
    }

    /// The id of an entry.
    pub fn id(&self, number: u64) -> Uuid {
        let milliseconds = self.time(number).0 as u64 / 1_000_000;
        let mut tail = [0; 10];
        tail[2..].copy_from_slice(&number.to_be_bytes());
        uuid::Builder::from_unix_timestamp_millis(milliseconds, &tail).into_uuid()
    }

    fn time(&self, number: u64) -> Timestamp {
        Timestamp(self.start + self.step * number as i64)
    }

    /// The record of this number, which stands for one decision: what is lost counts decisions.
    pub fn single(&self, number: u64) -> Entry {
        let mut entry = self.entry(number);
        if let Entry::Decision(record) = &mut entry {
            record.count = 1;
        }
        entry
    }

    /// One entry; about every five-thousandth is a change and no decision.
    pub fn entry(&self, number: u64) -> Entry {
        let random = spread(number);
        let node: Arc<str> = Arc::from(format!("worker-{}", random % 4));
        if random.is_multiple_of(5000) {
            let change = Change::new(
                (self.id(number), self.time(number)),
                (Arc::from("hanzo-k8s"), node),
                Arc::from("spiffe://hanzo.ai/ops/admin"),
                number,
                serde_json::json!({"to": "b", "from": "a", "diff": ["é", 1.50, {"z": null, "a": true}]}),
            );
            return match (random / 5000) % 3 {
                0 => Entry::PolicyChange(change),
                1 => Entry::ModeChange(change),
                _ => Entry::IdentityChange(change),
            };
        }
        Entry::Decision(self.decision(number, random, node))
    }

    fn decision(&self, number: u64, random: u64, node: Arc<str>) -> AuditRecord {
        let (from, hop) = ((random >> 8) % self.parties, 1 + (random >> 40) % 3);
        let to = (from + hop) % self.parties;
        let denied = (random >> 16).is_multiple_of(10);
        let enforced = to.is_multiple_of(2);
        let entity = (random >> 24).is_multiple_of(16);
        let (source, source_entity) = party(Arc::from(self.name(from)));
        let destination = if entity { "world".to_owned() } else { self.name(to) };
        let (destination, destination_entity) = party(Arc::from(destination));
        let port = [5432, 6379, 443, 8080][(to % 4) as usize];
        AuditRecord {
            id: self.id(number),
            timestamp: self.time(number),
            decision: if denied { Outcome::Deny } else { Outcome::Allow },
            source: Source {
                spiffe_id: source,
                entity: source_entity,
                pod: Some(Arc::from(format!("hanzo/pod-{from}"))),
                node: Some(node),
                address: Some(
                    format!("10.99.{}.{}", from / 200, from % 200)
                        .parse()
                        .expect("address"),
                ),
                port: (random & 1 == 1).then_some((random >> 3) as u16),
                pid: (random & 2 == 2).then_some(u32::MAX - number as u32),
                comm: Some(Arc::from("it's \"é\"")),
            },
            destination: Destination {
                spiffe_id: destination,
                entity: destination_entity,
                port,
                address: Some(
                    if entity { "2001:db8::7" } else { "10.99.0.3" }
                        .parse()
                        .expect("address"),
                ),
                pod: None,
                node: entity.then(|| Arc::from("worker-9")),
            },
            policy_matched: (!denied).then(|| Arc::from(format!("policy_{}/rule-{}", to % 8, to))),
            latency: Latency(random % 100_000),
            cluster: Arc::from("hanzo-k8s"),
            protocol: Protocol(if port == 443 { 17 } else { 6 }),
            hook: record::Hook::from_name("connect").expect("hook"),
            observer: Observer::Source,
            mode: if enforced { Mode::Enforce } else { Mode::Observe },
            enforced,
            revision: 7,
            reason: record::Reason::from_name(if denied { "no_rule" } else { "rule" }).expect("reason"),
            proof: record::Proof::None,
            count: 1 + (random >> 50) % 2,
            caller: None,
            mfa: (random >> 54).is_multiple_of(8).then_some(denied),
            incident: (random >> 54).is_multiple_of(16).then(|| Arc::from("INC-\"7\"")),
        }
    }

    /// One entry that says something in every field, and in turn everything that a field with few words can say. Each
    /// seventh is a change and no decision.
    pub fn full(&self, number: u64) -> Entry {
        let random = spread(number);
        let node: Arc<str> = Arc::from(format!("worker-{}", random % 4));
        let caller: Arc<str> = Arc::from(format!("uid:{number} pid:{}", number + 1));
        if number.is_multiple_of(7) {
            let change = Change::new(
                (self.id(number), self.time(number)),
                (Arc::from("hanzo-k8s"), node),
                caller,
                number,
                serde_json::json!({"to": "b", "from": "a", "number": number}),
            );
            return match number / 7 % 3 {
                0 => Entry::PolicyChange(change),
                1 => Entry::ModeChange(change),
                _ => Entry::IdentityChange(change),
            };
        }
        let hooks: Vec<record::Hook> = (1..=u8::MAX)
            .map_while(zt_common::event::Hook::from_number)
            .map(record::Hook::Kernel)
            .chain([record::Hook::Api])
            .collect();
        let turn = usize::try_from(number).expect("few");
        let word = |words: &[&'static str]| words[turn % words.len()];
        let reasons = zt_common::verdict::Reason::ALL;
        let mut record = self.decision(number, random, node);
        record.hook = hooks[turn % hooks.len()];
        record.reason = record::Reason::Verdict(reasons[turn % reasons.len()]);
        record.proof = record::Proof::from_name(word(&PROOFS)).expect("a proof");
        record.observer = Observer::from_name(word(&["source", "destination"])).expect("an end");
        record.policy_matched = Some(Arc::from(format!("policy-{}/rule-{number}", number % 3)));
        record.source.port = Some(1024 + turn as u16 % 60_000);
        record.source.pid = Some(u32::MAX - number as u32);
        record.destination.pod = Some(Arc::from("hanzo/postgres-0"));
        record.destination.node = Some(Arc::from("worker-9"));
        record.revision = number;
        record.latency = Latency(1 + number);
        record.count = 1 + number % 5;
        record.caller = Some(caller);
        record.mfa = Some(number.is_multiple_of(2));
        record.incident = Some(Arc::from(format!("INC-{number}")));
        Entry::Decision(record)
    }

    /// Entries with their places in a chain that goes on from `head`.
    pub fn kept(&self, numbers: std::ops::Range<u64>, head: &mut Head) -> Vec<Kept> {
        linked(numbers.map(|number| self.entry(number)), head)
    }
}

/// These, with their places in a chain that goes on from `head`.
pub fn linked(entries: impl IntoIterator<Item = Entry>, head: &mut Head) -> Vec<Kept> {
    let link = |entry: Entry| {
        let link = Some(head.link(&entry));
        Kept { entry, link }
    };
    entries.into_iter().map(link).collect()
}
