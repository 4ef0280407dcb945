// SPDX-License-Identifier: Apache-2.0
//! Who is waited for, and how long.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{ID, ROOT, UID, snapshot};
use crate::nri::Pauses;
use crate::nri::hold::{Patience, Starting, Taken};
use crate::nri::messages::{Container, LinuxPodSandbox, PodSandbox};
use crate::state::Snapshot;

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
    for uid in [
        "",
        "..",
        "a/b",
        "../..",
        "a\0b",
        "-",
        "a--b",
        "a-",
        &"a".repeat(65),
    ] {
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
        format!("kubepods/burstable/pod{UID}/kubepods-burstable-pod{UID}.slice:cri-containerd:{ID}"),
        // CRI-O with both drivers, and with crun, which makes one more level.
        format!(
            "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{ESCAPED}.slice/crio-{ID}.scope"
        ),
        format!("kubepods.slice/kubepods-pod{ESCAPED}.slice/crio-{ID}.scope/container"),
        format!("kubepods/besteffort/pod{UID}/crio-{ID}"),
        format!("kubepods/pod{UID}/crio-{ID}/container"),
    ] {
        let there = snapshot(&cgroup, true);
        assert_eq!(starting.is_taken(&there), Some(Taken::Named), "{cgroup}");
        let behind = Snapshot {
            behind: true,
            ..there
        };
        assert_eq!(
            starting.is_taken(&behind),
            None,
            "{cgroup}: the kernel does not know it yet"
        );
        assert_eq!(
            starting.is_taken(&snapshot(&cgroup, false)),
            None,
            "{cgroup} is not there yet"
        );
    }
    for cgroup in [
        "kubepods".to_owned(),
        format!("kubepods/other/pod{UID}"),
        format!("kubepods/burstable/pod{UID}x"),
        format!("kubepods/burstable/pod{UID}/0000000000000000"),
        // The monitor of a container, where CRI-O is told to keep it in the pod (`conmon_cgroup = "pod"`).
        format!("kubepods/burstable/pod{UID}/crio-conmon-{ID}"),
        format!("kubepods.slice/kubepods-pod{ESCAPED}.slice/crio-conmon-{ID}.scope"),
        // A container's own cgroups may be called as it likes.
        format!("kubepods/burstable/pod{UID}/0000000000000000/{ID}"),
        format!("elsewhere/pod{UID}"),
        format!("kubepods/pod00000000-3a7d-4d0e-9f4b-0c5d8e7a1b2c/{ID}"),
    ] {
        assert_eq!(starting.is_taken(&snapshot(&cgroup, true)), None, "{cgroup}");
    }
}

#[test]
fn a_pod_that_is_left_alone_needs_no_name() {
    let starting = starting("").expect("managed");
    let left_alone = |paths: &[String]| {
        let mut paths: Vec<PathBuf> = paths.iter().map(PathBuf::from).collect();
        paths.sort_unstable();
        Snapshot {
            left_alone: paths.into(),
            ..Snapshot::default()
        }
    };
    let own = format!("kubepods/burstable/pod{UID}");
    let others = [
        "kubepods/burstable/poda".to_owned(),
        format!("kubepods/podz{UID}"),
        format!("kubepods/burstable/pod{UID}/{ID}"),
    ];
    assert_eq!(starting.is_taken(&left_alone(&others)), None);
    let with_own = [&others[..], &[own]].concat();
    assert_eq!(starting.is_taken(&left_alone(&with_own)), Some(Taken::LeftAlone));
    let named = Snapshot {
        workloads: Arc::clone(&snapshot(&with_own[3], true).workloads),
        ..left_alone(&with_own)
    };
    assert_eq!(starting.is_taken(&named), Some(Taken::Named));
}

#[test]
fn waits_in_vain_become_shorter_until_somebody_is_named() {
    let ms = Duration::from_millis;
    let now = Instant::now();
    let mut patience = Patience::new(ms(1500));
    assert_eq!(patience.for_pod("a", None, now), ms(1500));
    assert_eq!(patience.for_pod("a", Some(ms(2000)), now), ms(1500));
    assert_eq!(
        patience.for_pod("a", Some(ms(400)), now),
        ms(300),
        "the runtime is less patient"
    );
    let mut seen = Vec::new();
    for uid in 0..7 {
        seen.push(patience.for_pod(&format!("{uid}"), None, now).as_millis());
        patience.in_vain(&format!("{uid}"), Duration::ZERO, now);
    }
    assert_eq!(seen, [1500, 750, 375, 187, 93, 50, 50]);
    patience.taken();
    assert_eq!(patience.for_pod("new", None, now), ms(1500));
    assert_eq!(
        patience.for_pod("3", None, now),
        ms(50),
        "this one was waited for already"
    );
    assert_eq!(Patience::new(ms(10)).for_pod("a", None, now), ms(10));
    // What is remembered has an end.
    for uid in 0..5000 {
        patience.in_vain(&format!("flood-{uid}"), Duration::ZERO, now);
    }
    patience.taken();
    assert_eq!(patience.for_pod("3", None, now), ms(1500));
    assert_eq!(patience.for_pod("flood-4999", None, now), ms(50));
}

#[test]
fn a_node_wastes_a_bounded_time_on_pods_that_nobody_names() {
    let (ms, began) = (Duration::from_millis, Instant::now());
    let mut patience = Patience::new(ms(1500));
    let mut now = began;
    let mut wasted = Duration::ZERO;
    // Of every two pods one is named, so that no wait is shorter for the one before it.
    for uid in 0..100 {
        let uid = uid.to_string();
        let waited = patience.for_pod(&uid, None, now);
        now += waited;
        wasted += waited;
        patience.in_vain(&uid, waited, now);
        patience.taken();
    }
    assert!(wasted >= ms(5000), "{wasted:?}");
    assert!(wasted <= ms(5600), "a hundred pods cost {wasted:?}");
    assert!(patience.for_pod("next", None, now) < ms(50));
    // With time it waits again.
    assert_eq!(patience.for_pod("next", None, now + ms(15_000)), ms(1500));
    assert_eq!(
        patience.for_pod("next", None, began),
        patience.for_pod("next", None, now)
    );
}

#[test]
fn a_runtime_that_takes_the_plugin_and_throws_it_out_is_tried_ever_less_often() {
    let ms = Duration::from_millis;
    let mut pauses = Pauses::new((ms(100), ms(5000)));
    let throws_out: Vec<Duration> = (0..8).map(|_| pauses.after(Some(ms(3)))).collect();
    assert_eq!(throws_out, [100, 200, 400, 800, 1600, 3200, 5000, 5000].map(ms));
    assert_eq!(pauses.after(None), ms(5000));
    assert_eq!(pauses.after(Some(ms(5000))), ms(100), "that one has worked");
}
