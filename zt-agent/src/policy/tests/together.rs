// SPDX-License-Identifier: Apache-2.0
//! What only shows in several policies together: names, numbers, and the digest of them all.

use super::{policy, problems, set};
use crate::policy::{PolicySet, Settings, network, reparse};

#[test]
fn the_digest_is_of_the_meaning() {
    let rules = "    - from: {spiffe: 'spiffe://hanzo.ai/a'}\n      to: [{spiffe: spiffe://hanzo.ai/b, ports: ['80', 8000-8100]}]";
    let plain = set(&[policy("a", rules), policy("b", rules)]);
    let verbose = rules
        .replace("ports", "protocol: TCP, ports")
        .replace("'80'", "80-80 ");
    let mut rewritten = policy(
        "a",
        &format!("{verbose}\n      action: ALLOW # as ever\n  defaultAction: DENY"),
    );
    rewritten.text = format!(
        "---\n{}\n---\n{}",
        policy("b", rules).text,
        rewritten.text.replace("80-80 ", "\"80-80\"")
    );
    rewritten.file = "other.yaml".to_owned();
    assert_eq!(plain.digest(), set(&[rewritten]).digest());
    assert_eq!(plain.digest().len(), 64);
    assert_ne!(plain.digest(), set(&[policy("a", rules)]).digest());
    assert_ne!(
        plain.digest(),
        set(&[policy("a", rules), policy("b", &rules.replace("8100", "8101"))]).digest()
    );
    assert_ne!(PolicySet::default().digest(), plain.digest());
}

#[test]
fn rule_and_network_names() {
    let set = set(&[policy(
        "p",
        "    - {from: {cidr: 10.0.0.0/8}, to: [{entity: host}]}\n    - {from: {cidr: '::ffff:10.0.0.0/104'}, to: [{entity: host}]}",
    )]);
    let names: Vec<String> = set.rule_names().map(|(_, name)| name).collect();
    assert_eq!(
        names,
        [
            "builtin/self",
            "builtin/host",
            "builtin/require-policy",
            "p/rule-1",
            "p/rule-2"
        ]
    );
    assert_eq!(set.networks().len(), 1);
    assert_eq!(set.policies()[0].rules.len(), 2);
    assert!(set.get("q").is_none());
}

#[test]
fn networks_whose_numbers_collide_are_refused() {
    // 31 bits: two of a hundred thousand networks collide nearly surely.
    let mut seen = std::collections::HashMap::new();
    let pair = (0..1_000_000_u32).find_map(|n| {
        let network = format!("10.{}.{}.{}/32", n >> 16, n >> 8 & 255, n & 255);
        let number = network::number(&network.parse().expect("a network"));
        seen.insert(number, network.clone()).map(|other| (other, network))
    });
    let (one, other) = pair.expect("a collision");
    let rules = format!("    - {{from: {{cidr: {one}}}, to: [{{cidr: {other}}}]}}");
    let found = problems(&[policy("p", &rules)]);
    let problem = found[0].to_string();
    assert!(
        problem.starts_with("p.yaml:4:9: ") && problem.contains("have the same kernel number"),
        "{problem}"
    );
}

#[test]
fn a_name_taken_names_both_places() {
    let rule = "    - {from: {entity: host}, to: [{spiffe: '*'}]}";
    let first = policy("p", rule);
    let mut second = policy("p", rule);
    second.file = "moved.yaml".to_owned();
    second.text = format!("# moved\n---\n{}", second.text);
    let found = problems(&[first, second]);
    assert_eq!(found.len(), 1);
    assert_eq!(
        found[0].to_string(),
        "moved.yaml:6:9: metadata.name: the name `p` is taken by the policy in p.yaml:4"
    );
}

#[test]
fn only_a_changed_file_is_read_again() {
    let rule = "    - {from: {entity: host}, to: [{spiffe: '*'}]}";
    let docs = [policy("a", rule), policy("b", rule)];
    let before = set(&docs);
    let mut changed = docs.clone();
    changed[1].text = changed[1].text.replace("host", "world");
    let after = reparse(&changed, &Settings::default(), &before).expect("valid");
    assert!(std::sync::Arc::ptr_eq(
        &before.policies()[0],
        &after.policies()[0]
    ));
    assert_eq!(after.digest(), set(&changed).digest());
    let elsewhere = Settings {
        trust_domain: "lux.ai".to_owned(),
        ..Settings::default()
    };
    let literal = policy(
        "c",
        "    - {from: {entity: host}, to: [{spiffe: spiffe://hanzo.ai/a}]}",
    );
    let of_hanzo = set(std::slice::from_ref(&literal));
    assert!(
        reparse(&[literal], &elsewhere, &of_hanzo).is_err(),
        "what is valid depends on the trust domain"
    );
    assert!(
        reparse(
            &[docs[0].clone(), policy("a", rule)],
            &Settings::default(),
            &before
        )
        .is_err()
    );
}
