// SPDX-License-Identifier: Apache-2.0
//! Whose an address is that kubelets disagree about.

mod model;

use std::sync::Arc;

use super::*;
use crate::identity::peers::{Agents, ClusterNode, Roster};

/// A directory of node `one` in a cluster with these networks.
pub(super) fn directory_in(cluster: &[&str]) -> Directory {
    let naming = Template::default().fixed("hanzo.ai", "c").expect("it makes IDs");
    let cluster = cluster.iter().map(|net| net.parse().expect("literal"));
    Directory::new(
        naming,
        NODE.to_owned(),
        vec!["kubepods".into()],
        cluster.collect(),
    )
}

/// What the API says of nodes: their names, `InternalIP`s and networks. `here` are addresses of interfaces of this one.
pub(super) fn nodes(nodes: &[(&str, &[&str], &[&str])], here: &[&str]) -> Arc<Roster> {
    let nodes: Vec<ClusterNode> = nodes
        .iter()
        .zip(1..)
        .map(|((name, addresses, networks), created)| ClusterNode {
            name: (*name).into(),
            created,
            addresses: addresses.iter().map(|text| ip(text)).collect(),
            networks: networks.iter().map(|net| net.parse().expect("literal")).collect(),
        })
        .collect();
    let agents = Agents {
        pattern: "spiffe://hanzo.ai/agents/{node}".to_owned(),
        own: NODE.to_owned(),
        port: 8056,
    };
    let here: Vec<IpAddr> = here.iter().map(|text| ip(text)).collect();
    Arc::new(Roster::of_cluster(nodes.iter(), &agents, &here).expect("a roster"))
}

/// Three nodes, each with a network.
fn three() -> Arc<Roster> {
    let all: [(&str, &[&str], &[&str]); 3] = [
        (NODE, &["192.168.0.1"], &["10.1.0.0/24"]),
        ("two", &["192.168.0.2"], &["10.2.0.0/24"]),
        ("three", &["192.168.0.3"], &["10.3.0.0/24"]),
    ];
    nodes(&all, &["172.17.0.1"])
}

/// A pod of node `three` that says that it is at an address, and its node at another one.
fn liar(name: &str, address: &str, host: &str) -> Pod {
    Pod {
        host_addresses: vec![ip(host)],
        ..pod(name, &format!("u-{name}"), "three", address)
    }
}

fn of_here(directory: &mut Directory) -> Vec<IpAddr> {
    let placed = workloads(directory);
    placed.into_iter().flat_map(|(_, addresses)| addresses).collect()
}

#[test]
fn an_address_is_a_pods_of_the_node_that_was_given_it_whatever_a_kubelet_says() {
    let mut directory = directory();
    directory.nodes(Some(three()));
    directory.applied(Part::Here, &pod("web", "u-1", NODE, "10.1.0.9"));
    directory.applied(Part::Elsewhere, &pod("iam", "u-2", "two", "10.2.0.1"));
    for (count, lie) in [
        // As a pod's address, as a node's; another node's pod's, and this one's.
        liar("a", "10.2.0.1", "192.168.0.3"),
        liar("b", "10.3.0.1", "10.2.0.1"),
        liar("c", "10.1.0.9", "192.168.0.3"),
        liar("d", "10.3.0.2", "10.1.0.9"),
    ]
    .iter()
    .enumerate()
    {
        directory.applied(Part::Elsewhere, lie);
        assert_eq!(at(&mut directory, "10.2.0.1").as_deref(), Some("iam"), "{lie:?}");
        assert_eq!(at(&mut directory, "10.1.0.9"), None, "{lie:?}");
        assert_eq!(of_here(&mut directory), [ip("10.1.0.9")], "{lie:?}");
        let told = 1 + count as u64 / 2;
        assert_eq!(directory.refused()["address_elsewhere"], told, "once an address");
    }
    assert_eq!(
        (
            directory.counts().disputed,
            directory.refused()["address_disputed"]
        ),
        (0, 0)
    );
    // What nobody has is believed, and is the owner's as soon as there is one.
    directory.applied(Part::Elsewhere, &liar("e", "10.2.0.2", "192.168.0.3"));
    assert_eq!(at(&mut directory, "10.2.0.2").as_deref(), Some("e"));
    directory.applied(Part::Elsewhere, &pod("chat", "u-3", "two", "10.2.0.2"));
    assert_eq!(at(&mut directory, "10.2.0.2").as_deref(), Some("chat"));
    // Two pods of the node itself: the API has not heard yet which of them it is.
    directory.applied(Part::Elsewhere, &pod("next", "u-4", "two", "10.2.0.2"));
    assert_eq!(at(&mut directory, "10.2.0.2").as_deref(), Some("nobody"));
    // Which networks nodes have is not known any more.
    directory.nodes(None);
    assert_eq!(at(&mut directory, "10.2.0.1").as_deref(), Some("nobody"));
    assert!(of_here(&mut directory).is_empty(), "nor is its cgroup there");
}

#[test]
fn where_pods_are_elsewhere_than_in_the_networks_of_their_nodes_these_count_for_nothing() {
    let without: [(&str, &[&str], &[&str]); 3] = [
        (NODE, &["192.168.0.1"], &[]),
        ("two", &["192.168.0.2"], &[]),
        ("three", &["192.168.0.3"], &[]),
    ];
    // No node has been given one; pods have addresses of a pool; the pool has those of nodes in it, too; nothing shows it.
    for (known, own) in [
        (nodes(&without, &[]), Some("10.1.0.9")),
        (three(), Some("100.64.0.9")),
        (three(), Some("10.2.0.9")),
        (three(), None),
    ] {
        let mut directory = directory();
        directory.nodes(Some(known));
        if let Some(address) = own {
            directory.applied(Part::Here, &pod("web", "u-1", NODE, address));
        }
        directory.applied(Part::Elsewhere, &pod("iam", "u-2", "two", "10.2.0.1"));
        // Anywhere.
        directory.applied(Part::Elsewhere, &pod("far", "u-3", "two", "10.3.0.1"));
        assert_eq!(at(&mut directory, "10.3.0.1").as_deref(), Some("far"), "{own:?}");
        directory.applied(Part::Elsewhere, &liar("a", "10.2.0.1", "192.168.0.3"));
        assert_eq!(
            at(&mut directory, "10.2.0.1").as_deref(),
            Some("nobody"),
            "{own:?}"
        );
        directory.applied(Part::Elsewhere, &liar("b", "192.168.0.2", "192.168.0.3"));
        assert_eq!(
            at(&mut directory, "192.168.0.2").as_deref(),
            Some("nobody"),
            "{own:?}"
        );
        assert_eq!(directory.refused()["address_disputed"], 2, "{own:?}");
        assert_eq!(directory.refused()["address_elsewhere"], 0, "{own:?}");
    }
}

#[test]
fn a_pod_that_lives_here_keeps_its_address_wherever_that_is() {
    let mut directory = directory();
    let cgroup = Path::new("kubepods/burstable/podu-1");
    directory.applied(Part::Here, &pod("web", "u-1", NODE, "100.64.0.9"));
    directory.applied(Part::Elsewhere, &liar("a", "100.64.0.9", "192.168.0.3"));
    assert!(of_here(&mut directory).is_empty(), "its cgroup was not seen yet");
    assert_eq!(at(&mut directory, "100.64.0.9").as_deref(), Some("nobody"));
    directory.cgroup_created(cgroup);
    assert_eq!(of_here(&mut directory), [ip("100.64.0.9")]);
    assert_eq!(at(&mut directory, "100.64.0.9"), None);
    assert_eq!(directory.refused()["address_elsewhere"], 1);
    // The kubelet is done with it, and its address may be the other one's.
    directory.cgroup_removed(cgroup);
    assert!(of_here(&mut directory).is_empty());
    assert_eq!(at(&mut directory, "100.64.0.9").as_deref(), Some("nobody"));
}

#[test]
fn what_is_outside_of_the_cluster_is_no_pods_where_all_of_this_nodes_are_inside() {
    let claims = |directory: &mut Directory| {
        directory.applied(Part::Elsewhere, &liar("a", "203.0.113.7", "192.168.0.3"));
        directory.applied(Part::Elsewhere, &pod("iam", "u-2", "two", "10.2.0.1"));
        (
            at(directory, "203.0.113.7"),
            directory.refused()["address_outside"],
        )
    };
    let somebody = || (Some("a".to_owned()), 0);
    let mut inside = directory_in(&["10.0.0.0/8"]);
    assert_eq!(claims(&mut inside), somebody(), "no pod of this node shows it");
    inside.applied(Part::Here, &pod("web", "u-1", NODE, "10.1.0.9"));
    let nobody = || (Some("nobody".to_owned()), 1);
    assert_eq!(claims(&mut inside), nobody(), "and not the world");
    assert_eq!(at(&mut inside, "10.2.0.1").as_deref(), Some("iam"));
    assert_eq!(
        at(&mut inside, "192.168.0.3").as_deref(),
        Some("node"),
        "nodes are where they are"
    );
    // The configuration does not have all networks that pods have.
    inside.applied(Part::Here, &pod("job", "u-4", NODE, "100.64.0.9"));
    assert_eq!(claims(&mut inside).0.as_deref(), Some("a"));
    let mut unsaid = directory_in(&[]);
    unsaid.applied(Part::Here, &pod("web", "u-1", NODE, "10.1.0.9"));
    assert_eq!(claims(&mut unsaid), somebody());
    // What its node has been given is a pod's all the same.
    let mut given = directory_in(&["10.1.0.0/16"]);
    given.nodes(Some(three()));
    given.applied(Part::Here, &pod("web", "u-1", NODE, "10.1.0.9"));
    assert_eq!(claims(&mut given), nobody());
    assert_eq!(at(&mut given, "10.2.0.1").as_deref(), Some("iam"));
}

#[test]
fn addresses_of_nodes_are_no_pods() {
    let mut directory = directory();
    directory.nodes(Some(three()));
    directory.applied(Part::Here, &pod("web", "u-1", NODE, "10.1.0.9"));
    directory.applied(Part::Elsewhere, &pod("iam", "u-2", "two", "10.2.0.1"));
    // Of another one, of this one, and of an interface of this one that no pod speaks of.
    directory.applied(Part::Elsewhere, &liar("a", "192.168.0.2", "192.168.0.3"));
    directory.applied(Part::Elsewhere, &liar("b", "192.168.0.1", "192.168.0.3"));
    directory.applied(Part::Elsewhere, &liar("c", "172.17.0.1", "192.168.0.3"));
    directory.applied(Part::Elsewhere, &liar("d", "10.3.0.4", "172.17.0.1"));
    assert_eq!(at(&mut directory, "192.168.0.2").as_deref(), Some("node"));
    for own in ["192.168.0.1", "172.17.0.1"] {
        assert_eq!(at(&mut directory, own), None, "{own}");
    }
    assert_eq!(directory.refused()["address_elsewhere"], 3);
    assert_eq!(directory.counts().disputed, 0);
}

#[test]
fn what_a_kubelet_says_of_its_node_and_of_its_pod_is_believed_of_neither() {
    let mut directory = directory();
    directory.nodes(Some(three()));
    directory.applied(Part::Here, &pod("web", "u-1", NODE, "10.1.0.9"));
    directory.applied(Part::Elsewhere, &liar("bridge", "10.3.0.1", "192.168.0.3"));
    let pods = |directory: &mut Directory| at(directory, "10.3.0.1");
    assert_eq!(pods(&mut directory).as_deref(), Some("bridge"));
    // Its own bridge, which has the first address of its network, is what its host is said to have as well.
    directory.applied(Part::Elsewhere, &liar("other", "10.3.0.4", "10.3.0.1"));
    assert_eq!(pods(&mut directory).as_deref(), Some("nobody"));
}

#[test]
fn one_node_takes_nobody_elses_room() {
    let mut directory = directory();
    for number in 0..1100_u32 {
        let address = IpAddr::V4((0x0a03_0000 + number).into()).to_string();
        let over = Pod {
            is_over: true,
            ..liar(&format!("over-{number}"), &address, "192.168.0.3")
        };
        directory.applied(Part::Elsewhere, &over);
        directory.applied(
            Part::Elsewhere,
            &liar(&format!("p-{number}"), &address, "192.168.0.3"),
        );
    }
    assert_eq!(
        directory.refused()["too_many"],
        1100 - 1024,
        "who has ended takes no place"
    );
    assert_eq!(at(&mut directory, "10.3.3.255").as_deref(), Some("p-1023"));
    assert_eq!(at(&mut directory, "10.3.4.0"), None);
    directory.applied(Part::Elsewhere, &pod("iam", "u-2", "two", "10.2.0.1"));
    assert_eq!(at(&mut directory, "10.2.0.1").as_deref(), Some("iam"));
    // Those that it has it keeps, and one that goes leaves a place.
    directory.applied(Part::Elsewhere, &liar("p-7", "10.3.0.7", "192.168.0.3"));
    assert_eq!(at(&mut directory, "10.3.0.7").as_deref(), Some("p-7"));
    directory.deleted(Part::Elsewhere, &liar("p-7", "10.3.0.7", "192.168.0.3"));
    directory.applied(Part::Elsewhere, &liar("next", "10.3.4.0", "192.168.0.3"));
    assert_eq!(at(&mut directory, "10.3.4.0").as_deref(), Some("next"));
    assert_eq!(directory.refused()["too_many"], 1100 - 1024);
}

#[test]
fn one_node_has_so_many_addresses_and_no_more() {
    let mut directory = directory();
    let of = |number: u32| Pod {
        // Seven of its own, and its node's.
        addresses: (0..7)
            .map(|index| IpAddr::V4((0x0a03_0000 + number * 8 + index).into()))
            .collect(),
        ..liar(&format!("p-{number}"), "10.3.0.0", "192.168.0.3")
    };
    for number in 0..513 {
        directory.applied(Part::Elsewhere, &of(number));
    }
    assert_eq!(directory.refused()["too_many"], 8, "all of the last one");
    assert_eq!(at(&mut directory, "10.3.15.254").as_deref(), Some("p-511"));
    assert_eq!(at(&mut directory, "10.3.16.0"), None);
    // What it says again it has already.
    directory.applied(Part::Elsewhere, &of(7));
    assert_eq!(at(&mut directory, "10.3.0.56").as_deref(), Some("p-7"));
    assert_eq!(directory.refused()["too_many"], 8);
    directory.applied(Part::Elsewhere, &pod("iam", "u-2", "two", "10.2.0.1"));
    assert_eq!(at(&mut directory, "10.2.0.1").as_deref(), Some("iam"));
}
