// SPDX-License-Identifier: Apache-2.0
//! How pins and hooks are judged.

use std::path::PathBuf;

use super::super::finding::Status;
use super::*;
use crate::kernel::{PinnedLink, PinnedMap};

fn shape(name: &str, value_size: u32) -> MapShape {
    MapShape {
        name: name.to_owned(),
        kind: 1,
        key_size: 8,
        value_size,
        max_entries: 64,
        flags: 0,
    }
}

fn version(name: &str, own: bool) -> PinnedVersion {
    let map = |name: &str| PinnedMap {
        pin: name.to_owned(),
        id: Some(1),
        shape: Some(shape(name, 16)),
        error: None,
    };
    let link = |pin: &str, cgroup| PinnedLink {
        pin: pin.to_owned(),
        id: Some(2),
        program: Some(3),
        program_name: "zt_connect4".to_owned(),
        cgroup: Some(cgroup),
        error: None,
    };
    PinnedVersion {
        directory: PathBuf::from("/sys/fs/bpf/zt").join(name),
        own,
        leftover: name.starts_with("removing-"),
        flags: Some(0),
        maps: vec![map("zt_peers"), map("zt_control")],
        links: vec![link("zt_connect4-77", 77), link("zt_udp_guard-90", 90)],
    }
}

fn root(id: u64) -> ManagedRoot {
    ManagedRoot {
        path: PathBuf::from("/cg/kubepods"),
        id,
        level: 1,
    }
}

fn hook(attached: bool) -> HookStatus {
    HookStatus {
        program: "zt_connect4",
        attach_type: "cgroup_inet4_connect",
        program_id: attached.then_some(3),
        link_id: attached.then_some(2),
        cgroup: PathBuf::from("/cg/kubepods"),
        attached,
        others: 0,
    }
}

#[test]
fn pins_of_another_version_are_told_of() {
    let judge = |versions: Vec<PinnedVersion>, agent| {
        let found = pins(Path::new("/sys/fs/bpf/zt"), &Ok(versions), agent);
        found
            .iter()
            .map(|one| (one.check, one.status))
            .collect::<Vec<_>>()
    };
    let (own, other) = (|| version("v6", true), || version("v5", false));
    assert_eq!(judge(vec![own()], Agent::Runs), [("pins.version", Status::Ok)]);
    assert_eq!(
        judge(vec![], Agent::Absent),
        [("pins.version", Status::NotApplicable)]
    );
    assert_eq!(judge(vec![], Agent::Runs), [("pins.version", Status::Failed)]);
    assert_eq!(
        judge(vec![own(), other()], Agent::Gone),
        [
            ("pins.version", Status::Ok),
            ("pins.other_versions", Status::Warning)
        ]
    );
    assert_eq!(judge(vec![own(), other()], Agent::Runs)[1].1, Status::Failed);
    assert_eq!(
        judge(vec![own(), version("removing-4-v5", false)], Agent::Runs)[1],
        ("pins.leftovers", Status::Warning)
    );
}

#[test]
fn maps_of_another_build_are_told_of() {
    let own = version("v6", true);
    let names = ["zt_peers", "zt_control"];
    let wanted = [shape("zt_peers", 16), shape("zt_control", 16)];
    assert_eq!(maps(None, &wanted, &names).status, Status::NotApplicable);
    assert_eq!(maps(Some(&own), &wanted, &names).status, Status::Ok);
    assert_eq!(maps(Some(&own), &[], &names).status, Status::Ok);
    let found = maps(Some(&own), &[shape("zt_peers", 24)], &names);
    assert_eq!(found.status, Status::Failed);
    assert!(
        found.found.ends_with("zt_peers (bytes of a value: 16, not 24)"),
        "{found:?}"
    );
    let found = maps(Some(&own), &wanted, &["zt_peers", "zt_flows"]);
    assert_eq!(
        (found.status, found.found.as_str()),
        (Status::Failed, "not pinned: zt_flows")
    );
}

#[test]
fn hooks_have_to_be_on_the_managed_cgroups() {
    let own = version("v6", true);
    let judge = |hooks: &[HookStatus], root_id| attached(hooks, &[root(root_id)], Some(&own), Agent::Gone);
    assert_eq!(judge(&[hook(true)], 77).status, Status::Ok);
    let found = judge(&[hook(false)], 77);
    assert_eq!(
        (found.status, found.found.as_str()),
        (Status::Failed, "not attached: zt_connect4 on /cg/kubepods")
    );
    // The cgroup was made anew, or the configuration names another.
    let found = judge(&[hook(false)], 78);
    assert!(
        found.found.contains("1 links are attached to other cgroups"),
        "{found:?}"
    );
    assert_eq!(elsewhere(Some(&own), &[root(77)]), None);
    assert_eq!(
        elsewhere(Some(&own), &[root(78)]).map(|found| found.status),
        Some(Status::Failed)
    );
    assert_eq!(attached(&[], &[], Some(&own), Agent::Runs).status, Status::Failed);
    assert_eq!(
        attached(&[], &[], None, Agent::Absent).status,
        Status::NotApplicable
    );
}

#[test]
fn others_are_told_of_by_where_they_run() {
    let foreign = |name: &str, first| Foreign {
        name: name.to_owned(),
        attach_type: "cgroup_inet4_connect",
        first,
        cgroup: PathBuf::from("/cg/kubepods"),
        count: 1,
    };
    assert_eq!(order(&[], true)[0].status, Status::Ok);
    assert_eq!(order(&[], false)[0].status, Status::NotApplicable);
    let found = order(&[foreign("cil_sock4_conne", true), foreign("x", false)], true);
    assert_eq!(found.len(), 2);
    assert!(found.iter().all(|found| found.status == Status::Warning));
    assert!(found[0].found.contains("before ours") && found[1].found.contains("after ours"));
    assert!(
        found[0]
            .remedy
            .as_deref()
            .is_some_and(|remedy| remedy.contains("hostNamespaceOnly"))
    );
}

#[test]
fn who_is_alone_at_a_hook_is_in_the_way() {
    let alone = Alone {
        cgroup: PathBuf::from("/cg"),
        attach_type: "cgroup_inet4_connect",
        name: String::new(),
    };
    assert_eq!(in_the_way(&[]).status, Status::Ok);
    let found = in_the_way(&[alone.clone(), alone]);
    assert_eq!(found.status, Status::Failed);
    assert!(
        found.found.contains("a program without a name") && found.found.ends_with("and 1 more"),
        "{found:?}"
    );
}
