// SPDX-License-Identifier: Apache-2.0
//! How what is found of a machine is judged.

use super::super::finding::Status::{self, Failed, NotApplicable, Ok, Warning};
use super::*;

fn of(findings: &[Finding]) -> Vec<Status> {
    findings.iter().map(|finding| finding.status).collect()
}

#[test]
fn releases_are_compared_by_their_numbers() {
    let found = ["6.18.0-1-amd64", "6.1.0", "5.15.200", "10.0", "odd"].map(version);
    assert_eq!(of(&found), [Ok, Ok, Failed, Ok, Warning]);
    assert!(
        found[2]
            .remedy
            .as_deref()
            .is_some_and(|remedy| remedy.contains("6.1"))
    );
}

#[test]
fn settings_of_the_kernel_are_judged() {
    assert_eq!(
        of(&[
            lockdown(Some("none [integrity] confidentiality")),
            lockdown(Some("none integrity [confidentiality]")),
            lockdown(None)
        ]),
        [Ok, Warning, NotApplicable]
    );
    assert!(
        lockdown(Some("none [integrity] confidentiality"))
            .found
            .contains("`integrity`")
    );
    assert_eq!(
        of(&[
            modules(Some("capability,bpf")),
            modules(Some("capability,selinux,bpf")),
            modules(None)
        ]),
        [Ok, Warning, NotApplicable]
    );
    assert_eq!(
        of(&[jit(Some("1")), jit(Some("0")), jit(None)]),
        [Ok, Warning, NotApplicable]
    );
    assert_eq!(
        of(&[statistics(Some("0")), statistics(Some("1")), statistics(None)]),
        [Ok, Warning, Ok]
    );
    assert_eq!(of(&[types(true), types(false)]), [Ok, Failed]);
}

#[test]
fn watches_have_to_last_for_the_cgroups_that_there_are() {
    let found = [
        inotify(Some(128), Some(65_536), 100),
        inotify(Some(8), Some(65_536), 100),
        inotify(Some(128), Some(1024), 600),
        inotify(None, None, 1),
    ];
    assert_eq!(of(&found), [Ok, Warning, Warning, NotApplicable]);
}

#[test]
fn fast_open_matters_where_workloads_prove_who_they_are() {
    let values = [
        (7, Result::Ok(0)),
        (8, Result::Ok(1)),
        (9, Err(io::ErrorKind::NotFound.into())),
    ];
    assert_eq!(fast_open(&values, false, true).status, NotApplicable);
    assert_eq!(fast_open(&[], true, true).status, NotApplicable);
    assert_eq!(fast_open(&values[..1], true, true).status, Ok);
    let found = fast_open(&values, true, true);
    assert_eq!(found.status, Warning);
    assert!(
        found
            .remedy
            .as_deref()
            .is_some_and(|remedy| remedy.contains("/proc/8/ns/net")),
        "{found:?}"
    );
    assert_eq!(fast_open(&values, true, false).status, Ok);
}

#[test]
fn a_managed_cgroup_has_to_be_there_and_lived_in() {
    let paths = |names: &[&str]| -> Vec<PathBuf> { names.iter().map(PathBuf::from).collect() };
    let auto = ManagedCgroup::Auto;
    // One of the two is enough.
    assert_eq!(
        managed(&auto, &paths(&["kubepods"]), &paths(&["kubepods.slice"]), 3, 9).status,
        Ok
    );
    assert_eq!(
        managed(&auto, &[], &paths(&["kubepods.slice", "kubepods"]), 0, 0).status,
        Failed
    );
    let listed = ManagedCgroup::Paths(paths(&["a", "b"]));
    let found = managed(&listed, &paths(&["a"]), &paths(&["b"]), 1, 1);
    assert_eq!(
        (found.status, found.found.as_str()),
        (Failed, "there is no cgroup b")
    );
    assert_eq!(managed(&listed, &paths(&["a", "b"]), &[], 1, 0).status, Warning);
}

#[test]
fn a_disk_has_to_have_room_for_what_may_still_be_written() {
    let room = |free, read_only| Result::Ok(Room { free, read_only });
    let judge = |room| disk("disk.audit", Path::new("/var/lib/zt"), &room, 2 << 30);
    let found = [
        judge(room(4 << 30, false)),
        judge(room(1 << 30, false)),
        judge(room(1 << 20, false)),
        judge(room(4 << 30, true)),
        judge(Err(io::ErrorKind::PermissionDenied.into())),
    ];
    assert_eq!(of(&found), [Ok, Warning, Failed, Failed, Failed]);
    let here = super::room(Path::new("/tmp/nobody/has/made/this")).expect("its parent's");
    assert!(here.free > 0);
}

#[test]
fn memory_is_judged_by_the_lowest_limit() {
    assert_eq!(
        of(&[memory(None), memory(Some(64 << 20)), memory(Some(1 << 30))]),
        [Ok, Warning, Ok]
    );
}

#[test]
fn controllers_are_told_and_none_is_needed() {
    assert_eq!(
        of(&[
            controllers(Some("cpu memory")),
            controllers(Some("")),
            controllers(None)
        ]),
        [Ok, Ok, NotApplicable]
    );
    assert_eq!(cgroup_mount(&Err(CgroupError::NotMounted)).status, Failed);
}
