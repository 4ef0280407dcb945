// SPDX-License-Identifier: Apache-2.0
//! The `NetworkPolicy` objects of a policy say what the policy says: a small evaluator, written from the words of the
//! Kubernetes documentation, agrees with the verdict on random policies and flows.

mod compared;
mod written;

use std::cell::RefCell;
use std::collections::BTreeMap;

use proptest::test_runner::TestRunner;
use serde_json::Value;

use super::*;
use crate::policy::{Mapping, Mirror, differences, mirror};

/// A namespace and a service account, which is also the pod's label.
type Pod = (&'static str, &'static str);

const PODS: [Pod; 5] = [("x", "a"), ("x", "b"), ("y", "a"), ("y", "b"), ("w", "q")];

/// Entities at addresses, of which some are in networks that policies name or that are the cluster's.
const NODES: [(&str, &str); 4] = [
    ("host", "192.0.2.1"),
    ("remote-node", "10.1.0.2"),
    ("remote-node", "fd00:1::2"),
    ("kube-apiserver", "203.0.113.6"),
];
const DNS_PORT: u16 = 53;

/// Cases of the property.
const CASES: u32 = 256;
/// What must have been compared in them at the least; random cases come to far more.
const FEWEST: Compared = Compared {
    cases: 64,
    all: [2000, 400],
    world: [100, 50],
    nodes: [200, 60],
    dns: 20,
};

enum Far {
    Pod(Pod),
    Address(IpAddr),
    /// An entity, and where it is.
    Node(u64, IpAddr),
}

/// Verdicts that had to be equal and were, by whether they were to allow.
#[derive(Debug, Default)]
struct Compared {
    /// Cases in which no selector lacked words.
    cases: usize,
    all: [usize; 2],
    /// One end is the world.
    world: [usize; 2],
    /// One end is an entity that has addresses.
    nodes: [usize; 2],
    /// Allowed only as traffic to the cluster's DNS.
    dns: usize,
}

fn pod_id(pod: Pod) -> SpiffeId {
    id(&format!("{}/{}", pod.0, pod.1))
}

/// Labels that pods may have.
type Labels = &'static [(&'static str, &'static str)];

const BY_ACCOUNT: Labels = &[("app", "{serviceAccount}")];
const MAPPINGS: [Labels; 6] = [
    BY_ACCOUNT,
    &[("app", "{namespace}-{serviceAccount}")],
    &[("team", "{namespace}"), ("app", "{serviceAccount}")],
    &[("team", "{namespace}"), ("app", "{namespace}-{serviceAccount}")],
    &[("tier", "any"), ("app", "{serviceAccount}")],
    &[("team", "{namespace}")],
];

fn mapping(labels: Labels, workloads: BTreeSet<SpiffeId>) -> Mapping {
    let labels = labels.iter();
    Mapping {
        template: "spiffe://hanzo.ai/{namespace}/{serviceAccount}".to_owned(),
        labels: labels
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect(),
        dns: None,
        entities: BTreeMap::new(),
        workloads,
    }
}

/// Whether a selector takes these labels.
fn selects(selector: &Value, labels: &[(&str, String)]) -> bool {
    let wanted = selector["matchLabels"].as_object();
    wanted.is_none_or(|wanted| {
        wanted
            .iter()
            .all(|(key, value)| labels.iter().any(|(of, is)| of == key && value == is.as_str()))
    })
}

fn pod_labels(labels: Labels, pod: Pod) -> Vec<(&'static str, String)> {
    let filled = |text: &str| {
        text.replace("{namespace}", pod.0)
            .replace("{serviceAccount}", pod.1)
    };
    labels.iter().map(|(key, value)| (*key, filled(value))).collect()
}

fn peer_is(cluster: &Cluster<'_>, peer: &Value, far: &Far) -> bool {
    let network = |value: &Value| value.as_str().expect("a CIDR").parse::<IpNet>().expect("a CIDR");
    match (far, peer.get("ipBlock")) {
        (Far::Address(address) | Far::Node(_, address), Some(block)) => {
            let except = block["except"].as_array().map_or(&[][..], Vec::as_slice);
            network(&block["cidr"]).contains(address)
                && !except.iter().any(|out| network(out).contains(address))
        }
        (Far::Pod(pod), None) => {
            selects(
                &peer["namespaceSelector"],
                &[("kubernetes.io/metadata.name", pod.0.to_owned())],
            ) && selects(&peer["podSelector"], &cluster.labels(*pod))
        }
        _ => false,
    }
}

fn port_is(rule: &Value, port: u16, protocol: Protocol) -> bool {
    let ports = rule["ports"].as_array().map_or(&[][..], Vec::as_slice);
    let is = |one: &Value| {
        let first = one["port"].as_u64();
        let last = one["endPort"].as_u64().or(first);
        one["protocol"] == protocol.name()
            && first.is_none_or(|first| first <= u64::from(port))
            && last.is_none_or(|last| u64::from(port) <= last)
    };
    ports.is_empty() || ports.iter().any(is)
}

/// What a cluster is like that has the objects.
struct Cluster<'a> {
    objects: &'a [Value],
    by_account: Labels,
    /// The pod of its DNS, and a label that it has.
    dns: Option<&'a (Pod, (String, String))>,
}

impl Cluster<'_> {
    fn labels(&self, pod: Pod) -> Vec<(&str, String)> {
        let mut labels = pod_labels(self.by_account, pod);
        if let Some((_, (key, value))) = self.dns.filter(|(dns, _)| *dns == pod)
            && !labels.iter().any(|(known, _)| known == key)
        {
            labels.push((key.as_str(), value.clone()));
        }
        labels
    }

    /// Whether the objects that select a pod let it talk to `far`; `None` where none selects it, so that everything is allowed.
    fn lets(&self, pod: Pod, side: [&str; 2], far: &Far, port: u16, protocol: Protocol) -> Option<bool> {
        let objects = self.objects.iter().filter(|object| {
            object["metadata"]["namespace"] == pod.0
                && selects(&object["spec"]["podSelector"], &self.labels(pod))
        });
        let mut selected = objects.peekable();
        selected.peek()?;
        let mut rules = selected.flat_map(|object| object["spec"][side[0]].as_array().expect("rules"));
        Some(rules.any(|rule| {
            let peers = rule[side[1]].as_array().expect("peers");
            port_is(rule, port, protocol) && peers.iter().any(|peer| peer_is(self, peer, far))
        }))
    }

    /// Whether both ends let a flow through; `None` where no object selects either, so that a `NetworkPolicy` says nothing.
    fn allows(&self, source: &Far, destination: &Far, port: u16, protocol: Protocol) -> Option<bool> {
        let end = |near: &Far, side, far| match near {
            Far::Pod(pod) => self.lets(*pod, side, far, port, protocol),
            Far::Address(_) | Far::Node(..) => None,
        };
        let out = end(source, ["egress", "to"], destination);
        let into = end(destination, ["ingress", "from"], source);
        [out, into].into_iter().flatten().reduce(|a, b| a && b)
    }

    /// Whether a pod asks the cluster's DNS, which every object allows.
    fn is_dns(&self, source: &Far, destination: &Far, port: u16) -> bool {
        let to = |pod: &Pod| self.dns.is_some_and(|(dns, _)| dns == pod);
        matches!((source, destination), (Far::Pod(_), Far::Pod(pod)) if port == DNS_PORT && to(pod))
    }
}

fn who(far: &Far) -> Who {
    match far {
        Far::Pod(pod) => Who::Workload(pod_id(*pod)),
        Far::Address(address) => Who::Address(*address),
        Far::Node(entity, _) => Who::Entity(*entity),
    }
}

fn literal(text: &str) -> IpAddr {
    text.parse().expect("a literal address")
}

/// Everybody, with entities where it is known where they are.
fn everybody(located: bool) -> Vec<Far> {
    let addresses = ADDRESSES.iter().map(|text| literal(text).to_canonical());
    let nodes = NODES.iter().filter(|_| located);
    let nodes = nodes.map(|(name, text)| Far::Node(entity_number(name).expect("an entity"), literal(text)));
    let pods = PODS.into_iter().map(Far::Pod);
    pods.chain(addresses.map(Far::Address)).chain(nodes).collect()
}

/// Where the entities are.
fn places() -> BTreeMap<String, Vec<IpNet>> {
    let mut places: BTreeMap<String, Vec<IpNet>> = BTreeMap::new();
    for (name, text) in NODES {
        let there = places.entry(name.to_owned()).or_default();
        there.push(literal(text).into());
    }
    places
}

/// A label of the DNS' pod: where policy may name the pod, one by which the mapping knows it.
fn dns_label(labels: Labels, pod: Pod) -> (String, String) {
    let known = pod_labels(labels, pod).into_iter().find(|(key, _)| *key == "app");
    let known = known.filter(|_| pod != PODS[4]);
    known.map_or_else(
        || ("k8s-app".to_owned(), "kube-dns".to_owned()),
        |(key, value)| (key.to_owned(), value),
    )
}

#[derive(Clone, Debug)]
struct Case {
    texts: Vec<String>,
    settings: Settings,
    /// Whether every service has an object, be it named or not.
    every: bool,
    labels: Labels,
    port: u16,
    /// Whether it is said where entities are.
    located: bool,
    dns: Option<Pod>,
}

fn cases() -> impl Strategy<Value = Case> {
    let ports = vec![79_u16, 80, 81, 100, 4095, 4096, 8192, 12_287, 12_288, 1, u16::MAX];
    let ports = prop_oneof![2 => select(ports), 1 => 1_u16.., 1 => Just(DNS_PORT)];
    let dns = proptest::option::of(select(&PODS[..]));
    let all = (
        documents(),
        settings(),
        any::<bool>(),
        select(&MAPPINGS[..]),
        ports,
        any::<bool>(),
        dns,
    );
    all.prop_map(|(texts, settings, every, labels, port, located, dns)| Case {
        texts,
        settings,
        every,
        labels,
        port,
        located,
        dns,
    })
}

fn agrees(case: &Case, compared: &RefCell<Compared>) -> Result<(), TestCaseError> {
    let docs = case.texts.iter().enumerate();
    let docs: Vec<_> = docs
        .map(|(n, text)| document(&format!("{n}.yaml"), text))
        .collect();
    let set = set(&docs);
    let extra = PODS[..4].iter().filter(|_| case.every).map(|pod| pod_id(*pod));
    let dns = case.dns.map(|pod| (pod, dns_label(case.labels, pod)));
    let mapping = Mapping {
        dns: dns.as_ref().map(|(pod, label)| (pod.0.to_owned(), label.clone())),
        entities: if case.located { places() } else { BTreeMap::new() },
        ..mapping(case.labels, extra.collect())
    };
    // Services that no label tells apart are refused.
    let Ok(made) = mirror(&set, &mapping, &case.settings) else {
        return Ok(());
    };
    let table = compile(&set, &PODS.into_iter().map(pod_id).collect(), &case.settings, 1).expect("it fits");
    let exact = !made.notes.iter().any(|note| {
        note.contains("cannot except one") || note.contains("it is no pod") || note.contains("no label tells")
    });
    let cluster = Cluster {
        objects: &made.objects,
        by_account: case.labels,
        dns: dns.as_ref(),
    };
    let mut compared = compared.borrow_mut();
    compared.cases += usize::from(exact);
    let everybody = everybody(case.located);
    for (source, destination) in everybody
        .iter()
        .flat_map(|one| everybody.iter().map(move |far| (one, far)))
    {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let Some(allowed) = cluster.allows(source, destination, case.port, protocol) else {
                continue;
            };
            let (from, to) = (who(source), who(destination));
            let said = table.evaluate(from.party(), to.party(), case.port, protocol);
            let dns = cluster.is_dns(source, destination, case.port);
            let expected = said.allowed || dns;
            let context = || {
                format!(
                    "{from:?} -> {to:?} {protocol:?} {}: {said:?}\n{table}\n{:#?}\n{:?}",
                    case.port, made.objects, made.notes
                )
            };
            prop_assert!(!allowed || expected, "{}", context());
            let ends = [table.number(from.party()), table.number(to.party())];
            if !exact || ends.contains(&identity::UNKNOWN) {
                continue;
            }
            prop_assert_eq!(allowed, expected, "{}", context());
            let is_node = |far: &Far| matches!(far, Far::Node(..));
            let node = is_node(source) || is_node(destination);
            compared.all[usize::from(allowed)] += 1;
            compared.world[usize::from(allowed)] += usize::from(ends.contains(&identity::WORLD));
            compared.nodes[usize::from(allowed)] += usize::from(node);
            compared.dns += usize::from(dns && !said.allowed);
        }
    }
    prop_assert_eq!(differences(&made.objects, &made.objects), []);
    Ok(())
}

#[test]
fn a_cluster_with_these_objects_allows_what_policy_allows() {
    let compared = RefCell::new(Compared::default());
    let mut runner = TestRunner::new(ProptestConfig {
        source_file: Some(file!()),
        ..ProptestConfig::with_cases(CASES)
    });
    let outcome = runner.run(&cases(), |case| agrees(&case, &compared));
    if let Err(error) = outcome {
        panic!("{error}");
    }
    let compared = compared.into_inner();
    let enough = |found: [usize; 2], fewest: [usize; 2]| found[0] >= fewest[0] && found[1] >= fewest[1];
    assert!(
        compared.cases >= FEWEST.cases
            && enough(compared.all, FEWEST.all)
            && enough(compared.world, FEWEST.world)
            && enough(compared.nodes, FEWEST.nodes)
            && compared.dns >= FEWEST.dns,
        "{compared:?} were compared, which is fewer than {FEWEST:?}"
    );
}
