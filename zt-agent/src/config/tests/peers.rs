// SPDX-License-Identifier: Apache-2.0
//! Which other nodes there are.

use super::{load, problem};
use crate::config::Config;

const TLS: &str = "api: {tls: {cert: /c, key: /k, clientCa: /a}}\n";

fn with(peers: &str) -> String {
    format!("{TLS}node: one\nidentity: {{source: [file, peers], peers: {{{peers}}}}}\n")
}

fn is_wrong(peers: &str) -> String {
    load(&with(peers), &[], &[]).expect_err("wrong").join("\n")
}

#[test]
fn a_node_speaks_for_its_agents_address_or_for_what_is_said() {
    let text = with("nodes: [{name: two, address: '10.0.0.2:1'}, {name: one, address: '10.0.0.1:1'}]");
    let config = load(&text, &[], &[]).expect("valid");
    let roster = config.roster(&[]).expect("a roster");
    let (name, two) = roster.iter().next().expect("two");
    assert_eq!((&**name, roster.iter().count()), ("two", 1), "not itself");
    assert_eq!(
        two.agent.as_str(),
        "spiffe://hanzo.ai/hanzo-k8s/zt-system/zt-agent/nodes/two"
    );
    assert!(two.speaks_for("10.0.0.2".parse().expect("literal")));
    assert!(!two.speaks_for("10.0.0.1".parse().expect("literal")));
    let variables = [(
        "ZT_IDENTITY_PEERS_NODES",
        "two=[fd00::2]:8056, three=10.0.0.3:8056",
    )];
    let by_variable: Config = load(&with("hold: 0s"), &variables, &[]).expect("valid");
    let names: Vec<_> = by_variable
        .identity
        .peers
        .nodes
        .iter()
        .map(|node| &*node.name)
        .collect();
    assert_eq!(names, ["two", "three"]);
    assert!(by_variable.identity.peers.hold.is_zero());
}

#[test]
fn what_makes_no_roster_is_said() {
    for (peers, said) in [
        ("", "identity.peers.nodes: is empty"),
        ("nodes: [{name: a}]", "entry 1 (line 3): `address` is missing"),
        ("nodes: [{name: a, address: '10.0.0.1'}]", "is not ADDRESS:PORT"),
        ("nodes: [{name: a, address: '10.0.0.1:0'}]", "is not ADDRESS:PORT"),
        (
            "nodes: [{name: a, address: 'a.example.org:1'}]",
            "speaksFor is missing: `a.example.org` is a name",
        ),
        (
            "nodes: [{name: a, address: '10.0.0.1:1', speaksFor: [10.0.0.0/33]}]",
            "is no address and no network",
        ),
        (
            "nodes: [{name: a, address: '10.0.0.1:1', identities: [chat]}]",
            "identities: ",
        ),
        (
            "nodes: [{name: a, address: '10.0.0.1:1', port: 1}]",
            "and no others",
        ),
        (
            "nodes: [{name: a, address: '10.0.0.1:1'}, {name: b, address: '10.0.0.1:2'}]",
            "`a` and `b` both speak for 10.0.0.1/32",
        ),
        (
            "nodes: [{name: a, address: '10.0.0.1:1'}, {name: a, address: '10.0.0.2:2'}]",
            "the node `a` is listed twice",
        ),
        ("id: spiffe://hanzo.ai/agents", "must have `{node}` in it once"),
        ("id: 'spiffe://hanzo.ai/*/{node}'", "has no `*`"),
        ("pods: never", "must be `auto` or `always`, not `never`"),
        ("hold: 2", "must be text"),
        ("hold: 25 h", "is no time such as"),
        ("hold: 2000m", "at most a day"),
        ("listen: 8056", "listen"),
    ] {
        let found = is_wrong(peers);
        assert!(found.contains(said), "{peers}: {found}");
    }
    assert!(
        problem("identity: {source: [peers], peers: {nodes: [{name: a, address: '10.0.0.1:1'}]}}")
            .contains("identity.source: needs `api.tls`")
    );
}
