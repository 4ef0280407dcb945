// SPDX-License-Identifier: Apache-2.0
//! Pods that come, go, and give their addresses to others.

mod grounds;
mod order;

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::*;
use crate::spiffe_id::SpiffeId;

const NODE: &str = "one";

pub(super) fn directory() -> Directory {
    let naming = Template::default().fixed("hanzo.ai", "c").expect("it makes IDs");
    Directory::new(
        naming,
        NODE.to_owned(),
        vec!["kubepods.slice".into(), "kubepods".into()],
        Vec::new(),
    )
}

pub(super) fn ip(text: &str) -> IpAddr {
    text.parse().expect("literal")
}

/// A pod called `name`, of the service account of that name, with one address.
pub(super) fn pod(name: &str, uid: &str, node: &str, address: &str) -> Pod {
    Pod {
        namespace: "n".to_owned(),
        name: name.to_owned(),
        uid: uid.to_owned(),
        node: node.to_owned(),
        service_account: name.to_owned(),
        addresses: vec![ip(address)],
        host_addresses: vec![ip(if node == NODE {
            "192.168.0.1"
        } else {
            "192.168.0.2"
        })],
        qos: Some(Qos::Burstable),
        ..Pod::default()
    }
}

/// Who is at an address elsewhere: a service account's name, `node`, or `nobody`.
fn at(directory: &mut Directory, address: &str) -> Option<String> {
    directory.changes();
    let whose = directory.told(ip(address))?;
    Some(match whose {
        Whose::Pod { spiffe, .. } => spiffe.path().rsplit('/').next().unwrap_or_default().to_owned(),
        Whose::Node => "node".to_owned(),
        Whose::Nobody => "nobody".to_owned(),
    })
}

fn workloads(directory: &mut Directory) -> Vec<(String, Vec<IpAddr>)> {
    directory.changes();
    let records = directory.workloads().iter();
    let of = |record: &std::sync::Arc<crate::identity::WorkloadRecord>| {
        (record.cgroup.display().to_string(), record.addresses.clone())
    };
    records.map(of).collect()
}

#[test]
fn a_pod_of_this_node_is_its_cgroup_before_that_is_there_and_wherever_it_turns_up() {
    let mut directory = directory();
    directory.cgroup_created(Path::new("kubepods"));
    directory.applied(Part::Here, &pod("iam", "u-1", NODE, "10.0.0.1"));
    assert_eq!(
        workloads(&mut directory),
        [("kubepods/burstable/podu-1".to_owned(), vec![ip("10.0.0.1")])]
    );
    let records = directory.workloads();
    assert_eq!(records[0].spiffe.as_str(), "spiffe://hanzo.ai/c/n/iam");
    assert_eq!(records[0].pod.as_deref(), Some("n/iam"));
    // The kubelet is of another opinion about the class.
    directory.cgroup_created(Path::new("kubepods/podu-1"));
    assert_eq!(workloads(&mut directory)[0].0, "kubepods/podu-1");
    directory.cgroup_created(Path::new("kubepods/podu-1/container"));
    assert!(directory.changes().is_empty());
    directory.cgroup_removed(Path::new("kubepods/podu-1"));
    assert_eq!(workloads(&mut directory)[0].0, "kubepods/burstable/podu-1");
    directory.deleted(Part::Here, &pod("iam", "u-1", NODE, "10.0.0.1"));
    assert!(workloads(&mut directory).is_empty());
}

#[test]
fn static_pods_go_by_their_hash_and_host_network_has_no_address() {
    let mut directory = directory();
    let hash = "0123456789abcdef0123456789abcdef";
    let etcd = Pod {
        service_account: String::new(),
        host_network: true,
        mirror: Some(hash.to_owned()),
        ..pod("etcd-one", "u-1", NODE, "192.168.0.1")
    };
    directory.applied(Part::Here, &etcd);
    let expected = PathBuf::from(format!(
        "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{hash}.slice"
    ));
    assert_eq!(
        workloads(&mut directory),
        [(expected.display().to_string(), vec![])]
    );
    assert_eq!(directory.workloads()[0].spiffe.path(), "c/n/_static.etcd");
    // A uid is no hash: nobody lays claim to another pod's cgroup so.
    let liar = Pod {
        mirror: Some("u-2".to_owned()),
        ..pod("liar", "u-3", NODE, "10.0.0.3")
    };
    directory.applied(Part::Here, &liar);
    assert!(
        workloads(&mut directory)
            .iter()
            .all(|(cgroup, _)| !cgroup.contains("u_2"))
    );
    // Nor a static pod's: two that do are both nobody.
    directory.applied(
        Part::Here,
        &Pod {
            mirror: Some(hash.to_owned()),
            ..liar
        },
    );
    assert!(workloads(&mut directory).is_empty());
    assert_eq!(directory.refused()["cgroup_disputed"], 1);
    directory.deleted(Part::Here, &pod("liar", "u-3", NODE, "10.0.0.3"));
    assert_eq!(workloads(&mut directory).len(), 1);
}

#[test]
fn an_address_is_its_pods_and_never_its_former_ones() {
    let mut directory = directory();
    directory.applied(Part::Elsewhere, &pod("old", "u-1", "two", "10.0.0.1"));
    assert_eq!(at(&mut directory, "10.0.0.1").as_deref(), Some("old"));
    assert_eq!(at(&mut directory, "192.168.0.2").as_deref(), Some("node"));
    assert_eq!(at(&mut directory, "192.168.0.1"), None);
    // The deletion first, or the next pod first.
    directory.deleted(Part::Elsewhere, &pod("old", "u-1", "two", "10.0.0.1"));
    assert_eq!(at(&mut directory, "10.0.0.1"), None);
    directory.applied(Part::Elsewhere, &pod("next", "u-2", "two", "10.0.0.1"));
    assert_eq!(at(&mut directory, "10.0.0.1").as_deref(), Some("next"));
    directory.applied(Part::Elsewhere, &pod("third", "u-3", "two", "10.0.0.1"));
    assert_eq!(at(&mut directory, "10.0.0.1").as_deref(), Some("nobody"));
    assert_eq!(
        (
            directory.counts().disputed,
            directory.refused()["address_disputed"]
        ),
        (1, 1)
    );
    directory.deleted(Part::Elsewhere, &pod("next", "u-2", "two", "10.0.0.1"));
    assert_eq!(at(&mut directory, "10.0.0.1").as_deref(), Some("third"));
    assert_eq!(directory.counts().disputed, 0);
    // Twice, and late.
    directory.deleted(Part::Elsewhere, &pod("third", "u-2", "two", "10.0.0.1"));
    assert_eq!(at(&mut directory, "10.0.0.1").as_deref(), Some("third"));
    directory.applied(Part::Elsewhere, &pod("old", "u-1", "two", "10.0.0.1"));
    assert_eq!(
        at(&mut directory, "10.0.0.1").as_deref(),
        Some("third"),
        "who is gone is gone"
    );
}

#[test]
fn who_has_ended_releases_its_address_and_who_is_about_to_does_not() {
    let mut directory = directory();
    directory.applied(Part::Elsewhere, &pod("job", "u-1", "two", "10.0.0.1"));
    let over = Pod {
        is_over: true,
        ..pod("job", "u-1", "two", "10.0.0.1")
    };
    directory.applied(Part::Elsewhere, &over);
    assert_eq!(at(&mut directory, "10.0.0.1"), None);
    directory.applied(Part::Elsewhere, &pod("next", "u-2", "two", "10.0.0.1"));
    assert_eq!(at(&mut directory, "10.0.0.1").as_deref(), Some("next"));
    let mut here = pod("here", "u-3", NODE, "10.0.0.2");
    directory.applied(Part::Here, &here);
    assert_eq!(workloads(&mut directory).len(), 1);
    here.is_over = true;
    directory.applied(Part::Here, &here);
    assert!(workloads(&mut directory).is_empty());
}

#[test]
fn a_name_that_another_pod_has_by_now_is_the_new_ones() {
    let mut directory = directory();
    let numbered = |uid: &str, version: u64, address: &str| Pod {
        version,
        ..pod("db-0", uid, "two", address)
    };
    directory.applied(Part::Elsewhere, &numbered("u-1", 5, "10.0.0.1"));
    directory.applied(Part::Elsewhere, &numbered("u-2", 9, "10.0.0.2"));
    assert_eq!(at(&mut directory, "10.0.0.1"), None);
    assert_eq!(at(&mut directory, "10.0.0.2").as_deref(), Some("db-0"));
    // What is older comes later.
    directory.applied(Part::Elsewhere, &numbered("u-1", 7, "10.0.0.1"));
    directory.applied(Part::Elsewhere, &numbered("u-0", 2, "10.0.0.3"));
    directory.applied(Part::Elsewhere, &numbered("u-2", 8, "10.0.0.4"));
    for gone in ["10.0.0.1", "10.0.0.3", "10.0.0.4"] {
        assert_eq!(at(&mut directory, gone), None, "{gone}");
    }
    directory.deleted(Part::Elsewhere, &numbered("u-1", 10, "10.0.0.1"));
    assert_eq!(at(&mut directory, "10.0.0.2").as_deref(), Some("db-0"));
}

#[test]
fn a_list_is_a_difference() {
    let mut directory = directory();
    let pods = [
        pod("a", "u-1", "two", "10.0.0.1"),
        pod("b", "u-2", "two", "10.0.0.2"),
    ];
    directory.all(Part::Elsewhere, &pods);
    assert_eq!(directory.changes().addresses.len(), 3, "two pods and a node");
    directory.all(Part::Elsewhere, &pods);
    assert!(
        directory.changes().is_empty(),
        "nothing is written that is there already"
    );
    let next = [pods[1].clone(), pod("c", "u-3", "two", "10.0.0.1")];
    directory.all(Part::Elsewhere, &next);
    let changes = directory.changes();
    assert_eq!(changes.addresses.len(), 1);
    assert_eq!(at(&mut directory, "10.0.0.1").as_deref(), Some("c"));
    // The other part is another list's.
    directory.all(Part::Here, &[]);
    assert_eq!(at(&mut directory, "10.0.0.2").as_deref(), Some("b"));
}

#[test]
fn a_cluster_that_was_put_back_is_what_its_lists_say() {
    let mut directory = directory();
    let at_version = |version| Pod {
        version,
        ..pod("a", "u-1", "two", "10.0.0.1")
    };
    directory.applied(Part::Elsewhere, &at_version(100));
    directory.deleted(Part::Elsewhere, &at_version(101));
    directory.all(Part::Elsewhere, &[at_version(7)]);
    assert_eq!(at(&mut directory, "10.0.0.1").as_deref(), Some("a"));
    let moved = Pod {
        addresses: vec![ip("10.0.0.9")],
        ..at_version(3)
    };
    directory.all(Part::Elsewhere, &[moved]);
    assert_eq!(at(&mut directory, "10.0.0.9").as_deref(), Some("a"));
}

#[test]
fn an_address_of_another_node_that_a_pod_claims_is_nobodys_where_networks_are_not_known() {
    let mut directory = directory();
    directory.applied(Part::Elsewhere, &pod("a", "u-1", "two", "10.0.0.1"));
    directory.applied(Part::Elsewhere, &pod("liar", "u-2", "three", "192.168.0.2"));
    assert_eq!(at(&mut directory, "192.168.0.2").as_deref(), Some("nobody"));
    directory.deleted(Part::Elsewhere, &pod("liar", "u-2", "three", "192.168.0.2"));
    assert_eq!(at(&mut directory, "192.168.0.2").as_deref(), Some("node"));
    // This node's own is not told of: it is its own, whatever pods say.
    directory.applied(Part::Here, &pod("b", "u-3", NODE, "10.0.0.2"));
    directory.applied(Part::Elsewhere, &pod("liar", "u-4", "three", "192.168.0.1"));
    assert_eq!(at(&mut directory, "192.168.0.1"), None);
    assert_eq!(directory.refused()["address_elsewhere"], 1);
}

#[test]
fn absurd_pods_name_nobody_and_are_counted() {
    let mut directory = directory();
    for uid in ["", "../../etc", "a/b", "a.b", &"a".repeat(65)] {
        directory.applied(Part::Here, &pod("a", uid, NODE, "10.0.0.1"));
    }
    assert_eq!(directory.refused()["uid"], 5);
    for name in ["", "..", "a/b", "A", "a b"] {
        directory.applied(Part::Here, &pod(name, "u-1", NODE, "10.0.0.1"));
    }
    assert_eq!(directory.refused()["name"], 5);
    let nameless = Pod {
        service_account: "../x".to_owned(),
        ..pod("a", "u-1", "two", "10.0.0.1")
    };
    directory.applied(Part::Elsewhere, &nameless);
    assert_eq!(
        at(&mut directory, "10.0.0.1").as_deref(),
        Some("nobody"),
        "somebody is there"
    );
    let many: Vec<IpAddr> = (0..5000_u32)
        .map(|number| IpAddr::V4((0x0a00_0000 + number).into()))
        .collect();
    directory.applied(
        Part::Elsewhere,
        &Pod {
            addresses: many,
            ..pod("b", "u-2", "two", "10.1.0.1")
        },
    );
    assert_eq!(at(&mut directory, "10.0.0.7"), None);
    for address in [
        "127.0.0.1",
        "0.0.0.0",
        "169.254.169.254",
        "224.0.0.1",
        "::1",
        "fe80::1",
        "255.255.255.255",
    ] {
        directory.applied(Part::Elsewhere, &pod("c", "u-3", "two", address));
        assert_eq!(at(&mut directory, address), None, "{address}");
    }
    assert_eq!(directory.refused()["address"], 8);
    // A pod that is not of this part.
    directory.applied(Part::Here, &pod("d", "u-4", "two", "10.0.0.4"));
    directory.applied(Part::Elsewhere, &pod("e", "u-5", NODE, "10.0.0.5"));
    directory.applied(Part::Elsewhere, &pod("f", "u-6", "", "10.0.0.6"));
    assert_eq!(directory.refused()["node"], 2);
    assert!(workloads(&mut directory).is_empty());
    for address in ["10.0.0.4", "10.0.0.5", "10.0.0.6"] {
        assert_eq!(at(&mut directory, address), None);
    }
}

#[test]
fn a_known_pod_whose_object_turns_absurd_is_forgotten() {
    let mut directory = directory();
    directory.applied(Part::Elsewhere, &pod("a", "u-1", "two", "10.0.0.1"));
    directory.applied(Part::Elsewhere, &pod("a", "", "two", "10.0.0.1"));
    assert_eq!(at(&mut directory, "10.0.0.1"), None);
}

#[test]
fn what_is_too_old_to_be_believed_names_nobody_elsewhere() {
    let mut directory = directory();
    directory.applied(Part::Elsewhere, &pod("iam", "u-1", "two", "10.0.0.1"));
    directory.applied(Part::Here, &pod("web", "u-2", NODE, "10.0.0.2"));
    assert_eq!(at(&mut directory, "10.0.0.1").as_deref(), Some("iam"));
    assert!(!directory.believe(true) && directory.believe(false) && !directory.believe(false));
    assert_eq!(at(&mut directory, "10.0.0.1").as_deref(), Some("nobody"));
    assert_eq!(at(&mut directory, "192.168.0.2").as_deref(), Some("node"));
    assert_eq!(
        workloads(&mut directory)[0].1,
        [ip("10.0.0.2")],
        "of this node more is known"
    );
    // What is said meanwhile is as old.
    directory.applied(Part::Elsewhere, &pod("chat", "u-3", "two", "10.0.0.3"));
    assert_eq!(at(&mut directory, "10.0.0.3").as_deref(), Some("nobody"));
    assert!(directory.believe(true));
    assert_eq!(at(&mut directory, "10.0.0.1").as_deref(), Some("iam"));
    assert_eq!(at(&mut directory, "10.0.0.3").as_deref(), Some("chat"));
}
