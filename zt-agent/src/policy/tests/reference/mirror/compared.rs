// SPDX-License-Identifier: Apache-2.0
//! What a cluster has beside what it should have, and what cannot be an object.

use super::*;

#[test]
fn what_a_cluster_has_is_compared() {
    let rules = "    - from: {spiffe: 'spiffe://hanzo.ai/x/a'}\n      to: [{spiffe: 'spiffe://hanzo.ai/x/b', ports: [1]}]";
    let made = |rules| {
        let set = set(&[crate::policy::tests::policy("p", rules)]);
        mirror(&set, &mapping(BY_ACCOUNT, BTreeSet::new()), &Settings::default())
            .expect("objects")
            .objects
    };
    let wanted = made(rules);
    let mut cluster = wanted.clone();
    // An API server leaves out what is empty.
    let spec = cluster[0]["spec"].as_object_mut().expect("a spec");
    spec.retain(|_, value| value.as_array().is_none_or(|list| !list.is_empty()));
    assert_eq!(differences(&wanted, &cluster), []);
    cluster[1]["spec"]["ingress"][0]["ports"][0]["port"] = 2.into();
    cluster.remove(0);
    let mut extra = wanted[0].clone();
    extra["metadata"]["name"] = "zt-gone".into();
    let mut others = extra.clone();
    others["metadata"]["name"] = "somebody-elses".into();
    others["metadata"]["labels"] = Value::Null;
    cluster.extend([extra, others]);
    let found: Vec<_> = differences(&wanted, &cluster)
        .into_iter()
        .map(|difference| format!("{} {}", difference.name, difference.difference))
        .collect();
    let expected = [
        "somebody-elses widens",
        "zt-a missing",
        "zt-b different",
        "zt-gone extra",
    ];
    assert_eq!(found, expected);
}

#[test]
fn an_object_of_somebody_else_widens_what_it_may_take_and_allows() {
    let rules = "    - from: {spiffe: 'spiffe://hanzo.ai/x/a'}\n      to: [{spiffe: 'spiffe://hanzo.ai/x/b', ports: [1]}]";
    let set = set(&[crate::policy::tests::policy("p", rules)]);
    let wanted = mirror(&set, &mapping(BY_ACCOUNT, BTreeSet::new()), &Settings::default())
        .expect("objects")
        .objects;
    let widens = |namespace: &str, selector: Value, rules: Value| {
        let mut cluster = wanted.clone();
        cluster.push(serde_json::json!({
            "metadata": {"namespace": namespace, "name": "other"},
            "spec": {"podSelector": selector, "policyTypes": ["Ingress"], "ingress": rules},
        }));
        !differences(&wanted, &cluster).is_empty()
    };
    let (json, all) = (
        |text: &str| serde_json::from_str::<Value>(text).expect("JSON"),
        "[{}]",
    );
    let expression = |text: &str| {
        json(&format!(
            "{{\"matchExpressions\": [{{\"key\": \"app\", {text}}}]}}"
        ))
    };
    for (selector, expected) in [
        (json("{}"), true),
        (json(r#"{"matchLabels": {"app": "b"}}"#), true),
        (json(r#"{"matchLabels": {"app": "c"}}"#), false),
        // Its pods may have it.
        (json(r#"{"matchLabels": {"tier": "front"}}"#), true),
        (json(r#"{"matchLabels": {"tier": "front", "app": "c"}}"#), false),
        (expression(r#""operator": "In", "values": ["b", "c"]"#), true),
        (expression(r#""operator": "In", "values": ["c"]"#), false),
        (expression(r#""operator": "NotIn", "values": ["a", "b"]"#), false),
        (expression(r#""operator": "NotIn", "values": ["a"]"#), true),
        (expression(r#""operator": "Exists""#), true),
        (expression(r#""operator": "DoesNotExist""#), false),
    ] {
        assert_eq!(widens("x", selector.clone(), json(all)), expected, "{selector}");
        assert!(!widens("y", selector.clone(), json(all)), "another namespace");
        assert!(!widens("x", selector, json("[]")), "one that allows nothing");
    }
}

#[test]
fn the_clusters_dns_is_reached_by_everybody_and_what_kubernetes_refuses_is_no_object() {
    let long = "s".repeat(64);
    let rules = format!(
        "    - from: {{spiffe: 'spiffe://hanzo.ai/x/a'}}\n      to:\n        - {{spiffe: 'spiffe://hanzo.ai/kube-system/dns', ports: [1]}}\n        \
         - {{spiffe: 'spiffe://hanzo.ai/x/{long}', ports: [1]}}\n        - {{spiffe: 'spiffe://hanzo.ai/y/*', ports: [1]}}"
    );
    let set = set(&[crate::policy::tests::policy("p", &rules)]);
    let made = |value: &str| {
        let mapping = Mapping {
            dns: Some(("kube-system".to_owned(), ("app".to_owned(), value.to_owned()))),
            ..mapping(BY_ACCOUNT, BTreeSet::new())
        };
        mirror(&set, &mapping, &Settings::default()).expect("objects")
    };
    let open = |made: &Mirror| {
        let mut dns = made
            .objects
            .iter()
            .filter(|object| object["metadata"]["name"] == "zt-dns");
        let ingress = dns.next().expect("an object")["spec"]["ingress"].clone();
        let rules = ingress.as_array().expect("rules").clone();
        rules
            .iter()
            .any(|rule| rule["from"][0] == serde_json::json!({"namespaceSelector": {}}))
    };
    let (known, unknown) = (made("dns"), made("kube-dns"));
    assert!(open(&known), "{:#?}", known.objects);
    assert!(!open(&unknown), "{:#?}", unknown.objects);
    let noted = |made: &Mirror, text: &str| made.notes.iter().any(|note| note.contains(text));
    assert!(!noted(&known, "at port 53"), "{:?}", known.notes);
    assert!(noted(&unknown, "at port 53"), "{:?}", unknown.notes);
    let names: Vec<_> = known
        .objects
        .iter()
        .map(|object| &object["metadata"]["name"])
        .collect();
    assert_eq!(names, ["zt-dns", "zt-a"]);
    assert!(
        noted(&known, "has no object: Kubernetes takes"),
        "{:?}",
        known.notes
    );
    assert!(noted(&known, "y/*: whom it matches"), "{:?}", known.notes);
}
