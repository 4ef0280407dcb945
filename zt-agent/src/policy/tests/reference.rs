// SPDX-License-Identifier: Apache-2.0
//! The compiled table decides as the semantics say: a naive evaluator, written from the words of the documentation
//! over addresses and texts, agrees with it on random policies and flows.

mod effects;
mod explain;
mod groups;
mod mirror;
mod outside;

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use proptest::prelude::*;
use proptest::sample::select;
use zt_common::identity;
use zt_common::verdict::Reason;

use super::{document, id, set};
use crate::policy::{
    Action, AllowTable, Endpoint, Party, PolicySet, Protocol, Rule, Settings, compile, entity_number,
};
use crate::spiffe_id::SpiffeId;

const ENDPOINTS: [&str; 21] = [
    "spiffe: spiffe://hanzo.ai/x/a",
    "spiffe: spiffe://hanzo.ai/x/b",
    "spiffe: spiffe://hanzo.ai/y/a",
    "spiffe: spiffe://hanzo.ai/x/*",
    "spiffe: spiffe://hanzo.ai/*/a",
    "spiffe: spiffe://hanzo.ai/*/*",
    "spiffe: '*'",
    "entity: host",
    "entity: remote-node",
    "entity: kube-apiserver",
    "entity: world",
    "entity: unknown",
    "cidr: 0.0.0.0/0",
    "cidr: 10.0.0.0/8",
    "cidr: 10.1.0.0/16",
    "cidr: 10.1.2.0/24",
    "cidr: 10.1.2.3/32",
    "cidr: 192.0.2.0/24",
    "cidr: '::/0'",
    "cidr: fd00::/8",
    "cidr: fd00:1::/32",
];
const IDENTITIES: [&str; 5] = ["x/a", "x/b", "y/a", "y/b", "z/a/b"];
const ADDRESSES: [&str; 10] = [
    "10.1.2.3",
    "10.1.2.4",
    "10.1.9.9",
    "10.9.9.9",
    "192.0.2.7",
    "8.8.8.8",
    "fd00:1::1",
    "fd00:2::1",
    "2001:db8::1",
    "::ffff:10.1.2.3",
];
const CLUSTERS: [&str; 6] = [
    "10.0.0.0/8",
    "10.1.0.0/16",
    "10.1.2.0/25",
    "0.0.0.0/0",
    "fd00::/16",
    "::/0",
];
const PORTS: [&str; 8] = [
    "",
    "80",
    "81",
    "80-81",
    "70-100",
    "1-65535",
    "64-79, 81",
    "96-4095, 8192-12287",
];

/// Who is really at one end.
#[derive(Clone, Debug)]
enum Who {
    Workload(SpiffeId),
    Entity(u64),
    Address(IpAddr),
}

impl Who {
    fn party(&self) -> Party<'_> {
        match self {
            Self::Workload(id) => Party::Spiffe(id),
            Self::Entity(number) => Party::Number(*number),
            Self::Address(address) => Party::Address(*address),
        }
    }
}

struct Reference<'a> {
    set: &'a PolicySet,
    settings: &'a Settings,
}

/// What the longest prefix around an address says.
enum Named {
    World,
    Unknown,
    Network(IpNet),
}

impl Reference<'_> {
    fn name(&self, address: IpAddr) -> Named {
        let mut best: Option<(u8, bool, IpNet)> = None;
        let policies = self.set.networks().iter().map(|(network, _)| (*network, true));
        let cluster = self
            .settings
            .cluster_cidrs
            .iter()
            .map(|network| (*network, false));
        for (network, by_policy) in policies
            .chain(cluster)
            .filter(|(network, _)| network.contains(&address))
        {
            // The policy's name for the same network comes before the cluster's.
            let rank = (network.prefix_len(), by_policy, network);
            best = Some(best.map_or(rank, |best| best.max(rank)));
        }
        match best {
            None => Named::World,
            Some((_, false, _)) => Named::Unknown,
            Some((_, true, network)) => Named::Network(network),
        }
    }

    fn in_cluster(&self, network: &IpNet) -> bool {
        self.settings
            .cluster_cidrs
            .iter()
            .any(|cluster| cluster.contains(network))
    }

    fn is(&self, endpoint: &Endpoint, who: &Who, action: Action) -> bool {
        match (endpoint, who) {
            (Endpoint::Spiffe(pattern), Who::Workload(id)) => pattern.matches(id),
            (Endpoint::Entity(number), Who::Entity(entity)) => number == entity,
            (Endpoint::Entity(number), Who::Address(address)) => match self.name(address.to_canonical()) {
                Named::World => *number == identity::WORLD,
                Named::Unknown => *number == identity::UNKNOWN,
                Named::Network(network) => *number == identity::WORLD && !self.in_cluster(&network),
            },
            (Endpoint::Cidr(wide), Who::Address(address)) => match self.name(address.to_canonical()) {
                Named::Network(network) => {
                    let through = |cluster: &&IpNet| {
                        cluster.contains(&network) && wide.contains(*cluster) && wide != *cluster
                    };
                    let barred = self.settings.cluster_cidrs.iter().find(through).is_some();
                    wide.contains(&network) && (action == Action::Deny || !barred)
                }
                _ => false,
            },
            _ => false,
        }
    }

    fn matching(
        &self,
        source: &Who,
        destination: &Who,
        port: u16,
        protocol: Protocol,
        action: Action,
        proof: bool,
    ) -> Vec<&Rule> {
        let rules = self.set.policies().iter().flat_map(|policy| &policy.rules);
        let applies = |rule: &&Rule| {
            rule.action == action
                && self.is(&rule.from, source, action)
                && rule.to.iter().any(|target| {
                    self.is(&target.endpoint, destination, action)
                        && target.protocol == protocol
                        && (target.require_proof || !proof)
                        && (target.ports.is_empty() || target.ports.iter().any(|range| range.contains(port)))
                })
        };
        rules.filter(applies).collect()
    }

    /// The rules that ask for proof, where none denies.
    fn requiring(&self, source: &Who, destination: &Who, port: u16, protocol: Protocol) -> Vec<&Rule> {
        if self
            .matching(source, destination, port, protocol, Action::Deny, false)
            .is_empty()
        {
            self.matching(source, destination, port, protocol, Action::Allow, true)
        } else {
            Vec::new()
        }
    }

    fn decide(
        &self,
        source: &Who,
        destination: &Who,
        port: u16,
        protocol: Protocol,
    ) -> (bool, Reason, Vec<String>) {
        let name = |rule: &&Rule| {
            self.set
                .names_by_number()
                .get(rule.number)
                .map(|name| name.to_string())
        };
        let names = |rules: Vec<&Rule>| rules.iter().filter_map(name).collect::<Vec<_>>();
        let denying = self.matching(source, destination, port, protocol, Action::Deny, false);
        if !denying.is_empty() {
            return (false, Reason::DenyRule, names(denying));
        }
        let requiring = self.requiring(source, destination, port, protocol);
        if !requiring.is_empty() {
            return match protocol {
                Protocol::Tcp => (true, Reason::Rule, names(requiring)),
                Protocol::Udp => (false, Reason::ProofRequired, names(requiring)),
            };
        }
        if let (Who::Workload(one), Who::Workload(other)) = (source, destination)
            && self.settings.allow_self
            && one == other
        {
            return (true, Reason::Rule, vec!["builtin/self".to_owned()]);
        }
        if let (Who::Entity(identity::HOST), Who::Workload(_), true) =
            (source, destination, self.settings.allow_host)
        {
            return (true, Reason::Rule, vec!["builtin/host".to_owned()]);
        }
        let allowing = self.matching(source, destination, port, protocol, Action::Allow, false);
        if !allowing.is_empty() {
            return (true, Reason::Rule, names(allowing));
        }
        if self
            .set
            .policies()
            .iter()
            .all(|policy| policy.default_action == Action::Allow)
        {
            return (true, Reason::DefaultAllow, vec![]);
        }
        let unknown = |who: &Who| match who {
            Who::Entity(number) => *number == identity::UNKNOWN,
            Who::Address(address) => matches!(self.name(address.to_canonical()), Named::Unknown),
            Who::Workload(_) => false,
        };
        let reason = match (unknown(source), unknown(destination)) {
            (true, _) => Reason::UnknownSource,
            (false, true) => Reason::UnknownDestination,
            _ => Reason::NoRule,
        };
        (false, reason, vec![])
    }
}

fn rule() -> impl Strategy<Value = String> {
    let proof = proptest::bool::weighted(0.3);
    let target = (select(&ENDPOINTS[..]), select(&PORTS[..]), any::<bool>(), proof);
    let target = target.prop_map(|(to, ports, udp, proof)| {
        let ports: Vec<String> = ports
            .split(", ")
            .filter(|p| !p.is_empty())
            .map(|p| format!("'{p}'"))
            .collect();
        let ports = if ports.is_empty() {
            String::new()
        } else {
            format!(", ports: [{}]", ports.join(", "))
        };
        let text = format!("{{{to}{ports}, protocol: {}", if udp { "UDP" } else { "TCP" });
        (text, proof && to.starts_with("spiffe"))
    });
    let targets = proptest::collection::vec(target, 1..3);
    (select(&ENDPOINTS[..]), targets, proptest::bool::weighted(0.2)).prop_map(|(from, to, deny)| {
        let action = if deny { "DENY" } else { "ALLOW" };
        let to: Vec<String> = to
            .into_iter()
            .map(|(text, proof)| {
                let asked = proof && !deny && from.starts_with("spiffe");
                let proof = if asked { ", requireProof: true" } else { "" };
                format!("{text}{proof}}}")
            })
            .collect();
        format!("{{from: {{{from}}}, to: [{}], action: {action}}}", to.join(", "))
    })
}

fn documents() -> impl Strategy<Value = Vec<String>> {
    let policy = (
        proptest::collection::vec(rule(), 0..5),
        proptest::bool::weighted(0.3),
    );
    proptest::collection::vec(policy, 1..4).prop_map(|policies| {
        let text = |(index, (rules, allow)): (usize, (Vec<String>, bool))| {
            let action = if allow { "ALLOW" } else { "DENY" };
            format!(
                "{{apiVersion: zt.hanzo.ai/v1, kind: ServiceAccessPolicy, metadata: {{name: p{index}}}, spec: {{rules: [{}], defaultAction: {action}}}}}",
                rules.join(", ")
            )
        };
        policies.into_iter().enumerate().map(text).collect()
    })
}

fn settings() -> impl Strategy<Value = Settings> {
    let clusters = proptest::collection::vec(select(&CLUSTERS[..]), 0..3);
    (any::<bool>(), any::<bool>(), clusters).prop_map(|(allow_self, allow_host, clusters)| Settings {
        allow_self,
        allow_host,
        cluster_cidrs: clusters
            .iter()
            .map(|text| text.parse().expect("a literal network"))
            .collect(),
        ..Settings::default()
    })
}

fn everyone() -> Vec<Who> {
    let workloads = IDENTITIES.map(|name| Who::Workload(id(name)));
    let entities = ["host", "remote-node", "kube-apiserver", "world", "unknown"];
    let entities = entities.map(|name| Who::Entity(entity_number(name).expect("an entity")));
    let addresses = ADDRESSES.map(|text| Who::Address(text.parse().expect("a literal address")));
    workloads.into_iter().chain(entities).chain(addresses).collect()
}

fn agree(set: &PolicySet, settings: &Settings, table: &AllowTable, port: u16) -> Result<(), TestCaseError> {
    let reference = Reference { set, settings };
    for source in &everyone() {
        for destination in &everyone() {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let (allowed, reason, rules) = reference.decide(source, destination, port, protocol);
                let found = table.evaluate(source.party(), destination.party(), port, protocol);
                let flow = || format!("{source:?} -> {destination:?} {protocol:?} {port}\n{table}");
                prop_assert_eq!((found.allowed, found.reason), (allowed, reason), "{}", flow());
                let proof = !reference
                    .requiring(source, destination, port, protocol)
                    .is_empty();
                prop_assert_eq!(found.proof_required, proof, "{}", flow());
                match found.rule {
                    None => prop_assert!(rules.is_empty(), "{} by {:?}", flow(), rules),
                    Some(rule) => prop_assert!(
                        rules.iter().any(|name| **name == *rule),
                        "{} by {:?}",
                        flow(),
                        rules
                    ),
                }
            }
        }
    }
    Ok(())
}

fn identities(names: &[&str]) -> BTreeSet<SpiffeId> {
    names.iter().map(|name| id(name)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn the_table_decides_as_the_semantics_say(
        texts in documents(),
        settings in settings(),
        port in prop_oneof![select(vec![79_u16, 80, 81, 100, 4095, 4096, 8192, 12_287, 12_288, 1, u16::MAX]), 1_u16..],
    ) {
        let docs: Vec<_> = texts.iter().enumerate().map(|(n, text)| document(&format!("{n}.yaml"), text)).collect();
        let set = set(&docs);
        let table = compile(&set, &identities(&IDENTITIES), &settings, 1).expect("it fits");
        agree(&set, &settings, &table, port)?;
    }

    #[test]
    fn additions_make_the_newer_table(texts in documents(), settings in settings()) {
        let docs: Vec<_> = texts.iter().enumerate().map(|(n, text)| document(&format!("{n}.yaml"), text)).collect();
        let set = set(&docs);
        let before = compile(&set, &identities(&IDENTITIES[..2]), &settings, 1).expect("it fits");
        let after = compile(&set, &identities(&IDENTITIES), &settings, 1).expect("it fits");
        // A pattern with DENY may take a key from an ALLOW only for a new identity, so this always succeeds.
        let additions = after.additions_over(&before).expect("more identities only add");
        let mut merged: std::collections::BTreeMap<_, _> = before.entries().map(|(k, e)| (k, (e.number, e.bits))).collect();
        merged.extend(additions.iter().map(|(k, e)| (*k, (e.number, e.bits))));
        let wanted: std::collections::BTreeMap<_, _> = after.entries().map(|(k, e)| (k, (e.number, e.bits))).collect();
        prop_assert_eq!(merged, wanted);
    }
}
