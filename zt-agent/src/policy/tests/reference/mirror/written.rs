// SPDX-License-Identifier: Apache-2.0
//! What the objects and the notes about them read like.

use super::*;

#[test]
fn objects_read_as_a_person_would_write_them() {
    let rules = "    - from: {spiffe: 'spiffe://hanzo.ai/x/*'}\n      to: [{spiffe: 'spiffe://hanzo.ai/y/a', ports: [80, '8000-8100']}]\n    \
        - from: {spiffe: 'spiffe://hanzo.ai/y/a'}\n      to: [{entity: world, ports: [443]}, {entity: kube-apiserver}]\n    \
        - from: {spiffe: '*'}\n      to: [{cidr: 169.254.0.0/16}]\n      action: DENY";
    let set = set(&[crate::policy::tests::policy("p", rules)]);
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
    let set = set(&[crate::policy::tests::policy("p", rules)]);
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
    let set = set(&[crate::policy::tests::policy("p", rules)]);
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
    let set = set(&[crate::policy::tests::policy("p", rules)]);
    let mapping = mapping(&[("team", "{namespace}")], BTreeSet::new());
    let error = mirror(&set, &mapping, &Settings::default()).expect_err("alike");
    assert!(
        error
            .to_string()
            .contains("x/a and spiffe://hanzo.ai/x/b have the same namespace and labels"),
        "{error}"
    );
}
