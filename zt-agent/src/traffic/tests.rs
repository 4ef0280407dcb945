// SPDX-License-Identifier: Apache-2.0
//! What is made of connections whose addresses were put together is what is made of them one by one.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use proptest::prelude::*;

use super::*;
use crate::audit::query::{AddingSeen, Connections, Counted};
use crate::audit::record::Timestamp;
use crate::policy::{self, Document, Wishes};

const WORKLOADS: [&str; 3] = [
    "spiffe://hanzo.ai/k8s/x/a",
    "spiffe://hanzo.ai/k8s/x/b",
    "spiffe://hanzo.ai/k8s/y/c",
];
/// 192.0.2.0, in none of the networks.
const FAR: u32 = 0xc000_0200;
/// Where addresses begin: in three networks, one in the other, and in none.
const BEGINS: &[u32] = &[0x0a00_0000, 0x0a01_0000, 0x0a01_0100, FAR];

/// The rules of candidates.
const RULES: [&str; 5] = [
    "",
    "    - from: {spiffe: 'spiffe://hanzo.ai/k8s/x/a'}\n      to: [{entity: world, ports: [1, 2]}]\n",
    "    - from: {cidr: 10.0.0.0/8}\n      to: [{spiffe: '*', ports: [1]}]\n    - from: {cidr: 10.1.0.0/16}\n      action: DENY\n      to: [{spiffe: 'spiffe://hanzo.ai/k8s/y/c'}]\n",
    "    - from: {spiffe: '*'}\n      to: [{cidr: 10.1.1.0/24, ports: [2]}, {cidr: 10.1.1.7/32, ports: [1]}, {cidr: 0.0.0.0/0, ports: [3]}]\n",
    "    - from: {entity: unknown}\n      to: [{spiffe: 'spiffe://hanzo.ai/k8s/x/*', ports: [1, 3]}]\n    - from: {entity: world}\n      to: [{spiffe: '*', ports: [2]}]\n",
];

/// Whoever has a name by the network that he is in.
const BY_NETWORK: &str = "by network";

fn settings(cluster: &str) -> Settings {
    let cluster_cidrs = cluster
        .split_whitespace()
        .map(|cidr| cidr.parse().expect("literal"));
    Settings {
        cluster_cidrs: cluster_cidrs.collect(),
        ..Settings::default()
    }
}

fn set(rules: &str, settings: &Settings) -> PolicySet {
    let rules = if rules.is_empty() {
        " []\n".to_owned()
    } else {
        format!("\n{rules}")
    };
    let document = Document {
        file: "p.yaml".to_owned(),
        text: format!(
            "apiVersion: zt.hanzo.ai/v1\nkind: ServiceAccessPolicy\nmetadata: {{name: p}}\nspec:\n  rules:{rules}  defaultAction: DENY\n"
        ),
    };
    policy::parse(&[document], settings).unwrap_or_else(|problems| panic!("{problems:?}"))
}

/// Connections between a workload and somebody at one of so many addresses from these on, who has one of these names.
fn counted(
    names: &'static [&'static str],
    begins: &'static [u32],
    hosts: u32,
) -> impl Strategy<Value = Counted> {
    let verdicts = [(false, true), (true, true), (true, false)];
    let verdict = prop::sample::select(verdicts.to_vec());
    let ends = (
        0..WORKLOADS.len(),
        prop::sample::select(names),
        prop::sample::select(begins),
        0..hosts,
    );
    let rest = (any::<bool>(), 1_u16..4, verdict, 1_u64..9, 0_i64..100, 0_i64..100);
    (ends, rest).prop_map(move |((own, name, begin, host), rest)| {
        let (comes_in, port, (denied, enforced), count, first_seen, lasts) = rest;
        let address: IpAddr = Ipv4Addr::from_bits(begin + host).into();
        let name = match (name, begin) {
            (BY_NETWORK, FAR) => "world",
            (BY_NETWORK, 0x0a00_0000) => "cidr:10.0.0.0/8",
            (BY_NETWORK, _) => "cidr:10.1.0.0/16",
            (name, _) => name,
        };
        let (source, destination) = if comes_in {
            (name, WORKLOADS[own])
        } else {
            (WORKLOADS[own], name)
        };
        Counted {
            connections: Connections {
                source: source.into(),
                destination: destination.into(),
                protocol: 6,
                port,
                corrects: false,
                denied,
                enforced,
                count,
                first_seen: Timestamp(first_seen),
                last_seen: Timestamp(first_seen + lasts),
            },
            reason: if denied { "no_rule" } else { "rule" }.to_owned(),
            source_address: comes_in.then_some(address),
            destination_address: (!comes_in).then_some(address),
        }
    })
}

/// Whether whoever was there could be called so by the networks of some policy.
fn is_true(one: &Counted) -> bool {
    let (name, address) = match one.source_address {
        Some(address) => (&one.connections.source, Some(address)),
        None => (&one.connections.destination, one.destination_address),
    };
    let network = name.strip_prefix("cidr:");
    let network = network.map(|network| network.parse::<IpNet>().expect("a network"));
    network
        .zip(address)
        .is_none_or(|(network, address)| network.contains(&address))
}

fn read(all: &[Counted], fold: &Fold) -> Range {
    let filter = GraphFilter::default();
    let mut adding = AddingSeen::new(&filter, fold);
    for one in all {
        assert_eq!(adding.take(one), Ok(()));
    }
    Range::from(adding.done())
}

/// All that a replay tells, but for how many different connections there are, and where: the addresses of a class are told
/// whatever became of each.
fn told(range: &Range, set: &PolicySet, settings: &Settings) -> (BTreeMap<Row, Times>, u64, u64) {
    let table = policy::compile(set, &range.workloads(), settings, 1).expect("fits");
    for recorded in &range.recorded {
        let judged = recorded.judge(&table).map(|decision| Outcome::from(&decision));
        assert_eq!(recorded.outcome(&table), judged, "{recorded:?}");
    }
    let replayed = Replayed::of(range, &table);
    let denied = would_deny(range, &table);
    let denied = denied.iter().map(|one| one.recorded.passed(false));
    let rows = replayed.rows.into_iter().map(|(row, times)| {
        let addresses = Addresses::default();
        (row, Times { addresses, ..times })
    });
    (rows.collect(), replayed.connections, denied.sum())
}

proptest! {
    #[test]
    fn a_candidate_judges_classes_as_it_judges_each_address(
        all in prop::collection::vec(counted(&["world", "unknown", "cidr:10.0.0.0/8", "cidr:10.1.0.0/16"], BEGINS, 3), 1..80),
        rules in 0..RULES.len(),
        cluster in prop::sample::select(vec!["", "10.1.0.0/16", "0.0.0.0/0"]),
    ) {
        let settings = settings(cluster);
        let set = set(RULES[rules], &settings);
        let apart = read(&all, &Fold::nothing());
        let folded = read(&all, &to_judge(&set, &settings));
        prop_assert!(folded.recorded.len() <= apart.recorded.len());
        prop_assert_eq!(told(&folded, &set, &settings), told(&apart, &set, &settings));
    }

    #[test]
    fn of_few_and_of_many_addresses_the_same_policy_is_recommended(
        all in prop::collection::vec(counted(&[BY_NETWORK], &[0x0a00_0000, 0x0a01_0000, FAR, FAR, FAR], 40), 1..300),
        include_denied: bool,
    ) {
        let settings = Settings::default();
        let wishes = Wishes { name: "made".to_owned(), patterns: Vec::new() };
        let advised = |fold: &Fold| {
            let advice = advise(&read(&all, fold), &wishes, include_denied, &settings).expect("a policy");
            (advice.made.text, advice.made.rules, advice.connections, advice.unsaid)
        };
        prop_assert_eq!(
            advised(&to_recommend(&settings, include_denied)),
            advised(&Fold::nothing())
        );
    }

    // Whoever was in the world is in a network as soon as a policy names it, and in a narrower one with the next.
    #[test]
    fn what_is_recommended_of_classes_denies_none_of_their_addresses(
        all in prop::collection::vec(
            counted(&["world", "cidr:10.0.0.0/8", "cidr:10.1.0.0/16"], BEGINS, 6).prop_filter("no such name there", is_true),
            1..120,
        ),
        include_denied: bool,
    ) {
        let settings = Settings::default();
        let wishes = Wishes { name: "made".to_owned(), patterns: Vec::new() };
        let folded = read(&all, &to_recommend(&settings, include_denied));
        let text = advise(&folded, &wishes, include_denied, &settings).expect("a policy").made.text;
        let document = Document { file: "made.yaml".to_owned(), text };
        let set = policy::parse(std::slice::from_ref(&document), &settings).expect("valid");
        let apart = read(&all, &Fold::nothing());
        let table = policy::compile(&set, &apart.workloads(), &settings, 1).expect("fits");
        for recorded in &apart.recorded {
            let allowed = recorded.judge(&table).is_ok_and(|decision| decision.allowed);
            prop_assert!(
                allowed || recorded.passed(include_denied) == 0,
                "{recorded:?} is denied by\n{}",
                document.text
            );
        }
    }
}

#[test]
fn an_ingress_that_the_world_calls_has_few_connections() {
    let called = |number: u32| Counted {
        connections: Connections {
            source: "world".into(),
            destination: WORKLOADS[0].into(),
            protocol: 6,
            port: 443,
            corrects: false,
            denied: false,
            enforced: true,
            count: 3,
            first_seen: Timestamp(i64::from(number)),
            last_seen: Timestamp(i64::from(number)),
        },
        reason: "rule".to_owned(),
        source_address: Some(Ipv4Addr::from_bits(0x0b00_0000 + number).into()),
        destination_address: None,
    };
    let all: Vec<Counted> = (0..50_000).map(called).collect();
    let settings = Settings::default();
    let set = set(RULES[3], &settings);
    for fold in [to_judge(&set, &settings), to_recommend(&settings, false)] {
        let range = read(&all, &fold.at_most(10, 50_000));
        let [one] = range.recorded.as_slice() else {
            panic!("{} connections", range.recorded.len())
        };
        assert_eq!((one.allowed, one.addresses.count()), (150_000, 50_000));
        assert_eq!((one.span.first, one.span.last), (Timestamp(0), Timestamp(49_999)));
    }
}
