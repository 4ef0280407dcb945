// SPDX-License-Identifier: Apache-2.0
//! `policy network-policy`.

use serde_json::json;

use super::program::{directory, policy, rule, shown, zt_agent};

/// `spiffe://hanzo.ai/k8s/…` is of the cluster `k8s`.
const CONFIG: &str = "cluster: k8s\n";

#[test]
fn objects_are_printed_and_checked() {
    let rules = rule("hanzo/iam", "hanzo/db", "5432") + &rule("hanzo/iam", "elsewhere", "1");
    let directory = directory(&[("p/core.yaml", &policy("core", &rules)), ("agent.yaml", CONFIG)]);
    let at = |name: &str| shown(&directory.path().join(name)).to_owned();
    let (policies, config, have) = (at("p"), at("agent.yaml"), at("have.json"));
    let run = |more: &[&str]| {
        let arguments = ["policy", "network-policy", &policies, "--config", &config];
        zt_agent(&[&arguments, more].concat())
    };
    let ran = run(&[]);
    assert_eq!(ran.code(), 0, "{}", ran.stderr());
    let yaml = ran.stdout();
    assert_eq!(yaml.matches("kind: NetworkPolicy").count(), 2, "{yaml}");
    assert!(yaml.contains("app.kubernetes.io/name: db"), "{yaml}");
    assert!(yaml.contains("k8s-app: kube-dns"), "{yaml}");
    assert!(
        ran.stderr()
            .contains("spiffe://hanzo.ai/k8s/elsewhere has no object: it is no pod of this cluster"),
        "{}",
        ran.stderr()
    );

    let list = run(&["-o", "json"]).json();
    assert_eq!(list["items"][0]["metadata"]["name"], json!("zt-db"));
    std::fs::write(&have, list.to_string()).expect("write");
    let same = run(&["--check", &have]);
    assert_eq!(
        (same.code(), same.stdout().as_str()),
        (0, "all 2 objects are as they should be\n")
    );
    std::fs::write(&have, json!({ "items": [list["items"][1]] }).to_string()).expect("write");
    let lacking = run(&["--check", &have, "-o", "json"]);
    assert_eq!(lacking.code(), 1);
    assert_eq!(
        lacking.json()["differences"],
        json!([{ "namespace": "hanzo", "name": "zt-db", "difference": "missing" }])
    );
}

#[test]
fn what_makes_no_sense_is_refused() {
    let directory = directory(&[
        (
            "p/core.yaml",
            &policy("core", &rule("hanzo/iam", "hanzo/db", "5432")),
        ),
        ("agent.yaml", CONFIG),
        ("bad.json", "{}"),
    ]);
    let at = |name: &str| shown(&directory.path().join(name)).to_owned();
    let (policies, config, bad) = (at("p"), at("agent.yaml"), at("bad.json"));
    let run = |more: &[&str]| {
        let arguments = ["policy", "network-policy", &policies, "--config", &config];
        zt_agent(&[&arguments, more].concat())
    };
    let ran = run(&["--check", &bad]);
    assert_eq!(
        (ran.code(), ran.stderr().contains("it has no `items`")),
        (2, true),
        "{}",
        ran.stderr()
    );
    let ran = run(&["--label", "team={namespace}"]);
    assert_eq!(ran.code(), 2);
    assert!(
        ran.stderr().contains("have the same namespace and labels"),
        "{}",
        ran.stderr()
    );
    let ran = run(&["--entity", "hots=10.0.0.1/32"]);
    assert_eq!(
        (ran.code(), ran.stderr().contains("did you mean `host`?")),
        (2, true),
        "{}",
        ran.stderr()
    );
}
