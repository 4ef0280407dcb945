// SPDX-License-Identifier: Apache-2.0
//! The `NetworkPolicy` objects of a policy say what the policy says: a small evaluator, written from the words of the
//! Kubernetes documentation, agrees with the verdict on random policies and flows.

mod compared;

use std::collections::BTreeMap;

use serde_json::Value;

use super::*;
use crate::policy::{Mapping, Mirror, differences, mirror};

/// A namespace and a service account, which is also the pod's label.
type Pod = (&'static str, &'static str);

const PODS: [Pod; 5] = [("x", "a"), ("x", "b"), ("y", "a"), ("y", "b"), ("w", "q")];

enum Far {
    Pod(Pod),
    Address(IpAddr),
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

fn peer_is(labels: Labels, peer: &Value, far: &Far) -> bool {
    let network = |value: &Value| value.as_str().expect("a CIDR").parse::<IpNet>().expect("a CIDR");
    match (far, peer.get("ipBlock")) {
        (Far::Address(address), Some(block)) => {
            let except = block["except"].as_array().map_or(&[][..], Vec::as_slice);
            network(&block["cidr"]).contains(address)
                && !except.iter().any(|out| network(out).contains(address))
        }
        (Far::Pod(pod), None) => {
            selects(
                &peer["namespaceSelector"],
                &[("kubernetes.io/metadata.name", pod.0.to_owned())],
            ) && selects(&peer["podSelector"], &pod_labels(labels, *pod))
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

/// Whether the objects that select a pod let it talk to `far`; `None` where none selects it, so that everything is allowed.
fn lets(
    (mirror, labels): (&Mirror, Labels),
    pod: Pod,
    side: [&str; 2],
    far: &Far,
    port: u16,
    protocol: Protocol,
) -> Option<bool> {
    let objects = mirror.objects.iter().filter(|object| {
        object["metadata"]["namespace"] == pod.0
            && selects(&object["spec"]["podSelector"], &pod_labels(labels, pod))
    });
    let mut selected = objects.peekable();
    selected.peek()?;
    let rules = selected.flat_map(|object| object["spec"][side[0]].as_array().expect("rules"));
    let allows = |rule: &Value| {
        let peers = rule[side[1]].as_array().expect("peers");
        port_is(rule, port, protocol) && peers.iter().any(|peer| peer_is(labels, peer, far))
    };
    Some(rules.into_iter().any(allows))
}

fn who(far: &Far) -> Who {
    match far {
        Far::Pod(pod) => Who::Workload(pod_id(*pod)),
        Far::Address(address) => Who::Address(*address),
    }
}

fn everybody() -> Vec<Far> {
    let addresses = ADDRESSES
        .iter()
        .map(|text| text.parse::<IpAddr>().expect("a literal address"));
    let addresses = addresses.map(|address| Far::Address(address.to_canonical()));
    PODS.into_iter().map(Far::Pod).chain(addresses).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn a_cluster_with_these_objects_allows_what_policy_allows(
        texts in documents(),
        settings in settings(),
        every in any::<bool>(),
        labels in select(&MAPPINGS[..]),
        port in prop_oneof![select(vec![79_u16, 80, 81, 100, 4095, 4096, 8192, 12_287, 12_288, 1, u16::MAX]), 1_u16..],
    ) {
        let docs: Vec<_> = texts.iter().enumerate().map(|(n, text)| document(&format!("{n}.yaml"), text)).collect();
        let set = set(&docs);
        let extra: BTreeSet<SpiffeId> = PODS[..4].iter().filter(|_| every).map(|pod| pod_id(*pod)).collect();
        // Services that no label tells apart are refused.
        let Ok(made) = mirror(&set, &mapping(labels, extra), &settings) else {
            return Ok(());
        };
        let table = compile(&set, &PODS.into_iter().map(pod_id).collect(), &settings, 1).expect("it fits");
        let exact = !made.notes.iter().any(|note| {
            note.contains("cannot except one") || note.contains("it is no pod") || note.contains("no label tells")
        });
        for source in &everybody() {
            for destination in &everybody() {
                for protocol in [Protocol::Tcp, Protocol::Udp] {
                    let said = table.evaluate(who(source).party(), who(destination).party(), port, protocol);
                    let out = match source {
                        Far::Pod(pod) => lets((&made, labels), *pod, ["egress", "to"], destination, port, protocol),
                        Far::Address(_) => None,
                    };
                    let into = match destination {
                        Far::Pod(pod) => lets((&made, labels), *pod, ["ingress", "from"], source, port, protocol),
                        Far::Address(_) => None,
                    };
                    // Where no object selects either end, a NetworkPolicy says nothing.
                    let Some(allowed) = [out, into].into_iter().flatten().reduce(|a, b| a && b) else {
                        continue;
                    };
                    let unknown = |far: &Far| matches!(far, Far::Address(address) if table.networks().number_at(*address) == identity::UNKNOWN);
                    let context = || format!(
                        "{:?} -> {:?} {protocol:?} {port}: {said:?}\n{table}\n{:#?}\n{:?}",
                        who(source), who(destination), made.objects, made.notes
                    );
                    prop_assert!(!allowed || said.allowed, "{}", context());
                    if exact && !unknown(source) && !unknown(destination) {
                        prop_assert_eq!(allowed, said.allowed, "{}", context());
                    }
                }
            }
        }
        prop_assert_eq!(differences(&made.objects, &made.objects), []);
    }
}

#[test]
fn objects_read_as_a_person_would_write_them() {
    let rules = "    - from: {spiffe: 'spiffe://hanzo.ai/x/*'}\n      to: [{spiffe: 'spiffe://hanzo.ai/y/a', ports: [80, '8000-8100']}]\n    \
        - from: {spiffe: 'spiffe://hanzo.ai/y/a'}\n      to: [{entity: world, ports: [443]}, {entity: kube-apiserver}]\n    \
        - from: {spiffe: '*'}\n      to: [{cidr: 169.254.0.0/16}]\n      action: DENY";
    let set = set(&[super::super::policy("p", rules)]);
    let mut mapping = mapping(BY_ACCOUNT, BTreeSet::new());
    mapping.dns = Some((
        "kube-system".to_owned(),
        ("k8s-app".to_owned(), "kube-dns".to_owned()),
    ));
    let made = mirror(&set, &mapping, &Settings::default()).expect("objects");
    let self_peer = serde_json::json!({
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "y"}},
        "podSelector": {"matchLabels": {"app": "a"}},
    });
    assert_eq!(made.objects.len(), 1);
    let spec = &made.objects[0]["spec"];
    assert_eq!(
        spec["ingress"],
        serde_json::json!([
            {"from": [self_peer], "ports": [{"protocol": "TCP"}, {"protocol": "UDP"}]},
            {"from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "x"}}, "podSelector": {}}],
             "ports": [{"protocol": "TCP", "port": 80}, {"protocol": "TCP", "port": 8000, "endPort": 8100}]},
        ])
    );
    let egress = spec["egress"].as_array().expect("rules");
    assert!(egress.iter().any(|rule| rule["to"]
        == serde_json::json!([{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["169.254.0.0/16"]}}, {"ipBlock": {"cidr": "::/0"}}])));
    assert_eq!(
        egress.last().expect("DNS")["ports"],
        serde_json::json!([{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}])
    );
    assert_eq!(
        made.notes.iter().collect::<Vec<_>>(),
        [
            "clusterCIDRs is empty: blocks that stand for `world` have the cluster's own addresses in them",
            "spiffe://hanzo.ai/x/*: whom it matches has an object only where a policy names him outright, or --workload does; in \
             Kubernetes everybody may reach the others",
            "spiffe://hanzo.ai/y/a: traffic to `host` is ALLOWED with `world`, though policy denies it: say where it is (--entity)",
            "spiffe://hanzo.ai/y/a: traffic to `kube-apiserver` is not allowed: where it is was not said (--entity)",
            "spiffe://hanzo.ai/y/a: traffic to `remote-node` is ALLOWED with `world`, though policy denies it: say where it is (--entity)",
        ]
    );
}

#[test]
fn entities_that_are_denied_are_no_part_of_the_world() {
    let rules = "    - from: {spiffe: 'spiffe://hanzo.ai/y/a'}\n      to: [{entity: world, ports: [443]}, {entity: remote-node, ports: [10250]}]";
    let set = set(&[super::super::policy("p", rules)]);
    let mut mapping = mapping(BY_ACCOUNT, BTreeSet::new());
    for (entity, network) in [("kube-apiserver", "10.0.0.1/32"), ("remote-node", "10.1.0.0/16")] {
        mapping
            .entities
            .insert(entity.to_owned(), vec![network.parse().expect("a CIDR")]);
    }
    let made = mirror(&set, &mapping, &Settings::default()).expect("objects");
    let egress = made.objects[0]["spec"]["egress"].as_array().expect("rules");
    let at = |port: u64| {
        let rule = egress.iter().find(|rule| rule["ports"][0]["port"] == port);
        &rule.expect("a rule of the port")["to"]
    };
    assert_eq!(
        *at(443),
        serde_json::json!([
            {"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.0.0.1/32", "10.1.0.0/16"]}},
            {"ipBlock": {"cidr": "::/0"}},
        ])
    );
    assert_eq!(
        *at(10_250),
        serde_json::json!([{"ipBlock": {"cidr": "10.1.0.0/16"}}])
    );
    assert!(
        !made.notes.iter().any(|note| note.contains("kube-apiserver")),
        "{:?}",
        made.notes
    );
}

#[test]
fn a_pattern_whose_account_no_label_tells_selects_nobody() {
    let rules = "    - from: {spiffe: 'spiffe://hanzo.ai/*/prometheus'}\n      to: [{spiffe: 'spiffe://hanzo.ai/y/a', ports: [80]}]";
    let set = set(&[super::super::policy("p", rules)]);
    let labels = &[("app", "{namespace}-{serviceAccount}")];
    let made = mirror(&set, &mapping(labels, BTreeSet::new()), &Settings::default()).expect("objects");
    let text = made.objects[0]["spec"]["ingress"].to_string();
    assert!(!text.contains("\"namespaceSelector\":{}"), "{text}");
    assert!(
        made.notes
            .iter()
            .any(|note| note.contains("no label tells its service account")),
        "{:?}",
        made.notes
    );
}

#[test]
fn services_that_no_label_tells_apart_are_refused() {
    let rules =
        "    - from: {spiffe: 'spiffe://hanzo.ai/x/a'}\n      to: [{spiffe: 'spiffe://hanzo.ai/x/b'}]";
    let set = set(&[super::super::policy("p", rules)]);
    let mapping = mapping(&[("team", "{namespace}")], BTreeSet::new());
    let error = mirror(&set, &mapping, &Settings::default()).expect_err("alike");
    assert!(
        error
            .to_string()
            .contains("x/a and spiffe://hanzo.ai/x/b have the same namespace and labels"),
        "{error}"
    );
}
