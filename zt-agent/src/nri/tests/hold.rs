// SPDX-License-Identifier: Apache-2.0
//! Who is waited for, and how long.

use std::path::PathBuf;
use std::time::Duration;

use super::{ID, ROOT, UID, snapshot};
use crate::nri::hold::{Patience, Starting};
use crate::nri::messages::{Container, LinuxPodSandbox, PodSandbox};

const ESCAPED: &str = "2f8c6f0e_3a7d_4d0e_9f4b_0c5d8e7a1b2c";

fn starting_in(uid: &str, parent: &str, roots: &[&str]) -> Option<Starting> {
    let pod = PodSandbox {
        name: "client".into(),
        uid: uid.into(),
        namespace: "shop".into(),
        linux: Some(LinuxPodSandbox {
            cgroup_parent: parent.into(),
        }),
    };
    let container = Container {
        id: ID.into(),
        name: "app".into(),
    };
    let roots: Vec<PathBuf> = roots.iter().map(PathBuf::from).collect();
    Starting::new(Some(pod), Some(container), &roots)
}

fn starting(parent: &str) -> Option<Starting> {
    starting_in(
        UID,
        parent,
        &[ROOT, "kubepods.slice", "kubelet.slice/kubelet-kubepods.slice"],
    )
}

#[test]
fn pods_below_the_managed_roots_are_waited_for() {
    for parent in [
        String::new(),
        format!("/kubepods/burstable/pod{UID}"),
        format!("kubepods-besteffort-pod{ESCAPED}.slice"),
        format!("/kubepods.slice/kubepods-pod{ESCAPED}.slice"),
        format!("kubelet-kubepods-burstable-pod{ESCAPED}.slice"),
    ] {
        let starting = starting(&parent).unwrap_or_else(|| panic!("{parent} is managed"));
        assert_eq!(
            (starting.pod.as_str(), starting.uid.as_str()),
            ("shop/client", UID)
        );
    }
    for parent in [
        format!("/elsewhere/pod{UID}"),
        format!("/kubepodsx/pod{UID}"),
        "system.slice".into(),
        "machine-kubepods.slice".into(),
    ] {
        assert_eq!(starting(&parent), None, "{parent}");
    }
    for uid in ["", "..", "a/b", "../..", "a\0b", &"a".repeat(65)] {
        assert_eq!(starting_in(uid, "", &[ROOT]), None, "{uid}");
    }
    assert_eq!(Starting::new(None, None, &[PathBuf::from(ROOT)]), None);
}

#[test]
fn a_pod_is_named_by_its_own_cgroup_or_the_containers() {
    let starting = starting("").expect("managed");
    for cgroup in [
        format!("kubepods/burstable/pod{UID}"),
        format!("kubepods/pod{UID}"),
        format!("kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{ESCAPED}.slice"),
        // As SPIRE has it, which attests the processes of a container.
        format!("kubepods/burstable/pod{UID}/{ID}"),
        format!("kubepods.slice/kubepods-pod{ESCAPED}.slice/cri-containerd-{ID}.scope"),
        format!("kubepods.slice/kubepods-pod{ESCAPED}.slice/crio-{ID}.scope/container"),
    ] {
        assert!(starting.is_named(&snapshot(&cgroup, true)), "{cgroup}");
        assert!(
            !starting.is_named(&snapshot(&cgroup, false)),
            "{cgroup} is not there yet"
        );
    }
    for cgroup in [
        "kubepods".to_owned(),
        format!("kubepods/other/pod{UID}"),
        format!("kubepods/burstable/pod{UID}x"),
        format!("kubepods/burstable/pod{UID}/0000000000000000"),
        format!("elsewhere/pod{UID}"),
        format!("kubepods/pod00000000-3a7d-4d0e-9f4b-0c5d8e7a1b2c/{ID}"),
    ] {
        assert!(!starting.is_named(&snapshot(&cgroup, true)), "{cgroup}");
    }
}

#[test]
fn waits_in_vain_become_shorter_until_somebody_is_named() {
    let ms = Duration::from_millis;
    let mut patience = Patience::new(ms(1500));
    assert_eq!(patience.for_pod("a", None), ms(1500));
    assert_eq!(patience.for_pod("a", Some(ms(2000))), ms(1500));
    assert_eq!(
        patience.for_pod("a", Some(ms(400))),
        ms(300),
        "the runtime is less patient"
    );
    let mut seen = Vec::new();
    for uid in 0..7 {
        seen.push(patience.for_pod(&format!("{uid}"), None).as_millis());
        patience.in_vain(&format!("{uid}"));
    }
    assert_eq!(seen, [1500, 750, 375, 187, 93, 50, 50]);
    patience.named();
    assert_eq!(patience.for_pod("new", None), ms(1500));
    assert_eq!(
        patience.for_pod("3", None),
        ms(50),
        "this one was waited for already"
    );
    assert_eq!(Patience::new(ms(10)).for_pod("a", None), ms(10));
    // What is remembered has an end.
    for uid in 0..5000 {
        patience.in_vain(&format!("flood-{uid}"));
    }
    patience.named();
    assert_eq!(patience.for_pod("3", None), ms(1500));
    assert_eq!(patience.for_pod("flood-4999", None), ms(50));
}
