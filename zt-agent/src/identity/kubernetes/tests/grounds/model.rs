// SPDX-License-Identifier: Apache-2.0
//! Pods, cgroups, nodes and lies in any order: whose each address is in the end is what a few lines say about all of it at once.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const NAMES: [&str; 4] = [NODE, "two", "three", "four"];
/// In each node's network, in nobody's, outside of the cluster, and each node's own.
const ADDRESSES: [&str; 9] = [
    "10.1.0.1",
    "10.1.0.2",
    "10.2.0.1",
    "10.3.0.1",
    "10.9.0.1",
    "203.0.113.1",
    "192.168.0.1",
    "192.168.0.2",
    "192.168.0.3",
];

/// A pod, what its kubelet says first, and what it says in the end; what becomes of its cgroup.
#[derive(Clone, Debug)]
struct Said {
    node: usize,
    first: usize,
    address: usize,
    host: usize,
    over: bool,
    cgroup: u8,
}

fn said() -> impl Strategy<Value = Said> {
    let address = 0..ADDRESSES.len();
    // Mostly where it belongs, so that networks count now and then.
    let own = prop_oneof![3 => 0..2_usize, 1 => address.clone()];
    (
        0..4_usize,
        address.clone(),
        address.clone(),
        own,
        address,
        prop::bool::weighted(0.1),
        0..3_u8,
    )
        .prop_map(|(node, first, address, own, host, over, cgroup)| Said {
            node,
            first,
            address: if node == 0 { own } else { address },
            host: if node == 0 { 6 } else { host },
            over,
            cgroup,
        })
}

/// What happens, one after the other.
#[derive(Clone, Debug)]
enum Event {
    Pod(Part, Pod),
    Born(PathBuf),
    Died(PathBuf),
    Nodes,
}

fn pods(all: &[Said]) -> Vec<(Part, Pod, Pod)> {
    let told = all.iter().enumerate().map(|(number, said)| {
        let part = if said.node == 0 {
            Part::Here
        } else {
            Part::Elsewhere
        };
        let last = Pod {
            version: 100 + number as u64,
            is_over: said.over,
            host_addresses: vec![ip(ADDRESSES[said.host])],
            ..pod(
                &format!("p{number}"),
                &format!("u{number}"),
                NAMES[said.node],
                ADDRESSES[said.address],
            )
        };
        let first = Pod {
            version: 1 + number as u64,
            is_over: false,
            addresses: vec![ip(ADDRESSES[said.first])],
            ..last.clone()
        };
        (part, first, last)
    });
    told.collect()
}

/// Whose an address is, in a word: `free`, `own`, `here p1`, `p1`, `node` or `nobody`.
fn whose(all: &[Said], networks: [bool; 4], cluster: bool, known: bool, address: &str) -> String {
    let live: Vec<(usize, &Said)> = all.iter().enumerate().filter(|(_, said)| !said.over).collect();
    let own: Vec<&str> = live
        .iter()
        .filter(|(_, said)| said.node == 0)
        .map(|(_, said)| ADDRESSES[said.address])
        .collect();
    let in_network =
        |address: &str, node: usize| networks[node] && address.starts_with(&format!("10.{}.", node + 1));
    let followed = known && !own.is_empty() && own.iter().all(|address| in_network(address, 0));
    let inside = cluster && !own.is_empty() && own.iter().all(|address| address.starts_with("10."));
    let claims: Vec<(usize, &Said)> = live
        .iter()
        .copied()
        .filter(|(_, said)| ADDRESSES[said.address] == address)
        .collect();
    let here: Vec<(usize, &Said)> = claims
        .iter()
        .copied()
        .filter(|(_, said)| said.node == 0)
        .collect();
    let hosts = |own: bool| {
        let hosts = live
            .iter()
            .filter(move |(_, said)| ADDRESSES[said.host] == address && (said.node == 0) == own);
        hosts.count() > 0
    };
    let is_own = hosts(true) || known && address == "192.168.0.1";
    match *here {
        [] if is_own => return "own".to_owned(),
        [_] if hosts(true) => return "nobody".to_owned(),
        [(number, said)] if said.cgroup == 1 => return format!("here p{number}"),
        [(_, said)] if said.cgroup == 2 => return "nobody".to_owned(),
        [_, _, ..] => return "nobody".to_owned(),
        _ => {}
    }
    // The better the claim, the higher.
    let mut ranked: BTreeMap<u8, Vec<String>> = BTreeMap::new();
    let mut unbelieved = false;
    let holder = (0..4).find(|node| followed && in_network(address, *node));
    for (number, said) in claims {
        let rank = match holder {
            Some(holder) if holder == said.node => 3,
            _ if inside && !address.starts_with("10.") => {
                unbelieved = true;
                continue;
            }
            Some(_) => 1,
            None => 2,
        };
        let name = if said.node == 0 {
            format!("here p{number}")
        } else {
            format!("p{number}")
        };
        ranked.entry(rank).or_default().push(name);
    }
    for (_, said) in live
        .iter()
        .filter(|(_, said)| said.node != 0 && ADDRESSES[said.host] == address)
    {
        let given = address == format!("192.168.0.{}", said.node + 1);
        let rank = if followed && given || holder == Some(said.node) {
            3
        } else if holder.is_some_and(|holder| holder != said.node) {
            1
        } else {
            2
        };
        ranked.entry(rank).or_default().push("node".to_owned());
    }
    match ranked.pop_last() {
        None if unbelieved => "nobody".to_owned(),
        None => "free".to_owned(),
        Some((_, best)) if best.iter().all(|name| name == "node") => "node".to_owned(),
        Some((_, best)) if best.len() == 1 => best[0].clone(),
        Some(_) => "nobody".to_owned(),
    }
}

/// The same, as it was told.
fn told(directory: &Directory, address: &str) -> String {
    let at = ip(address);
    match directory.told(at) {
        Some(Whose::Pod { pod, .. }) => pod.trim_start_matches("n/").to_owned(),
        Some(Whose::Node) => "node".to_owned(),
        Some(Whose::Nobody) => "nobody".to_owned(),
        None => {
            let mut here = directory.workloads().iter();
            let here = here.find(|record| record.addresses.contains(&at));
            let name = here.and_then(|record| record.pod.clone());
            name.map_or_else(
                || "unsaid".to_owned(),
                |name| format!("here {}", name.trim_start_matches("n/")),
            )
        }
    }
}

proptest! {
    #[test]
    fn in_any_order_an_address_is_whose_it_should_be(
        (all, networks) in (prop::collection::vec(said(), 1..7), any::<[bool; 4]>()),
        (cluster, known) in (any::<bool>(), prop::bool::weighted(0.8)),
        keys in prop::collection::vec(any::<u32>(), 32),
    ) {
        let mut events: Vec<Event> = Vec::new();
        for (number, (part, first, last)) in pods(&all).into_iter().enumerate() {
            events.extend([Event::Pod(part, first), Event::Pod(part, last)]);
            if all[number].node == 0 && all[number].cgroup > 0 {
                events.push(Event::Born(format!("kubepods/burstable/podu{number}").into()));
            }
        }
        if known {
            events.push(Event::Nodes);
        }
        let mut shuffled: Vec<(u32, Event)> = keys.iter().copied().zip(events).collect();
        shuffled.sort_by_key(|(key, _)| *key);
        let mut events: Vec<Event> = shuffled.into_iter().map(|(_, event)| event).collect();
        // Who dies was born before.
        for (number, said) in all.iter().enumerate().filter(|(_, said)| said.node == 0 && said.cgroup == 2) {
            let cgroup = PathBuf::from(format!("kubepods/burstable/podu{number}"));
            let born = events.iter().position(|event| matches!(event, Event::Born(path) if *path == cgroup));
            let after = born.map_or(0, |born| born + 1);
            events.insert(after + said.first % (events.len() - after + 1), Event::Died(cgroup));
        }
        let nets: [&[&str]; 4] = [&["10.1.0.0/24"], &["10.2.0.0/24"], &["10.3.0.0/24"], &["10.4.0.0/24"]];
        let hosts: [&[&str]; 4] = [&["192.168.0.1"], &["192.168.0.2"], &["192.168.0.3"], &["192.168.0.4"]];
        let of = |node: usize| (NAMES[node], hosts[node], if networks[node] { nets[node] } else { &[] });
        let roster = nodes(&[of(0), of(1), of(2), of(3)], &[]);
        let mut directory = directory_in(if cluster { &["10.0.0.0/8"] } else { &[] });
        for event in &events {
            match event {
                Event::Pod(part, pod) => directory.applied(*part, pod),
                Event::Born(path) => directory.cgroup_created(path),
                Event::Died(path) => directory.cgroup_removed(path),
                Event::Nodes => directory.nodes(Some(Arc::clone(&roster))),
            }
            directory.changes();
        }
        for address in ADDRESSES {
            let expected = whose(&all, networks, cluster, known, address);
            let expected = if expected == "free" || expected == "own" { "unsaid".to_owned() } else { expected };
            prop_assert_eq!(told(&directory, address), expected, "{}: {:?}", address, events);
        }
    }
}
