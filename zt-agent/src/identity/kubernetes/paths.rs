// SPDX-License-Identifier: Apache-2.0
//! Which cgroup is which pod's. The kubelet names it after the pod's uid, in one of two ways:
//!
//! * with the `cgroupfs` driver, `kubepods/[<class>/]pod<uid>`;
//! * with the `systemd` driver, `kubepods.slice/[kubepods-<class>.slice/]kubepods-[<class>-]pod<uid>.slice`, where `-` in the uid
//!   is `_`.
//!
//! Containers, the sandbox, init and ephemeral containers are nested in it, whatever the runtime calls them. Only the kubelet makes
//! cgroups at these two levels: a name like a pod's any deeper was made inside some container, and means nothing.

use std::path::{Path, PathBuf};

use super::Qos;

/// Most bytes of a uid.
const MAX_UID: usize = 64;
const SLICE: &str = ".slice";
const CLASSES: [Qos; 2] = [Qos::Burstable, Qos::BestEffort];

/// Whether a text can be the uid of a pod: letters, digits, and dashes between them.
pub fn is_uid(text: &str) -> bool {
    (1..=MAX_UID).contains(&text.len())
        && text.split('-').all(|part| !part.is_empty())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// Whether a uid is that of a static pod: a hash. The API gives nobody one that looks like it.
pub fn is_static(uid: &str) -> bool {
    uid.len() == 32 && uid.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The uid of the pod whose own cgroup is at `path`, which like the managed `roots` is below the cgroup2 mount.
pub fn pod_of(path: &Path, roots: &[PathBuf]) -> Option<String> {
    let root = roots.iter().find(|root| path.starts_with(root))?;
    let below: Vec<&str> = path
        .strip_prefix(root)
        .ok()?
        .components()
        .map(|component| component.as_os_str().to_str())
        .collect::<Option<_>>()?;
    let (class, own) = match *below {
        [own] => (None, own),
        [class, own] => (Some(class), own),
        _ => return None,
    };
    let systemd = stem(root);
    let class = match class {
        None => Qos::Guaranteed,
        Some(name) => CLASSES
            .into_iter()
            .find(|class| class_directory(*class, systemd).as_deref() == Some(name))?,
    };
    let uid = match systemd {
        Some(stem) => {
            let prefix = slice_prefix(stem, class);
            let escaped = own.strip_prefix(&prefix)?.strip_suffix(SLICE)?;
            // A dash would be a level of systemd's own.
            if escaped.contains('-') {
                return None;
            }
            escaped.replace('_', "-")
        }
        None => own.strip_prefix("pod")?.to_owned(),
    };
    is_uid(&uid).then_some(uid)
}

/// The cgroup of the pod that `path` is in, or is, by its name alone, whatever the managed root is.
pub fn pod_around(path: &Path) -> Option<&Path> {
    let mut around: Vec<&Path> = path.ancestors().collect();
    // From the top: what is called like a pod inside of one was made there.
    around.reverse();
    around.into_iter().find(|path| {
        path.parent()
            .is_some_and(|root| !root.as_os_str().is_empty() && pod_of(path, &[root.to_path_buf()]).is_some())
    })
}

/// Where the kubelet puts the cgroup of a pod below a root. `uid` is one.
pub fn predicted(root: &Path, uid: &str, class: Qos) -> PathBuf {
    let systemd = stem(root);
    let mut path = root.to_path_buf();
    path.extend(class_directory(class, systemd));
    path.push(match systemd {
        Some(stem) => format!("{}{}{SLICE}", slice_prefix(stem, class), uid.replace('-', "_")),
        None => format!("pod{uid}"),
    });
    path
}

/// The name of a slice, such as `kubepods` or `kubelet-kubepods`; `None` where the root is no slice: the driver is `cgroupfs`.
fn stem(root: &Path) -> Option<&str> {
    root.file_name()?.to_str()?.strip_suffix(SLICE)
}

fn class_directory(class: Qos, systemd: Option<&str>) -> Option<String> {
    let level = class.level()?;
    Some(match systemd {
        Some(stem) => format!("{stem}-{level}{SLICE}"),
        None => level.to_owned(),
    })
}

fn slice_prefix(stem: &str, class: Qos) -> String {
    match class.level() {
        Some(level) => format!("{stem}-{level}-pod"),
        None => format!("{stem}-pod"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "2f8c6f0e-3a7d-4d0e-9f4b-0c5d8e7a1b2c";
    const ESCAPED: &str = "2f8c6f0e_3a7d_4d0e_9f4b_0c5d8e7a1b2c";

    fn roots() -> Vec<PathBuf> {
        [
            "kubepods.slice",
            "kubepods",
            "kubelet.slice/kubelet-kubepods.slice",
        ]
        .map(PathBuf::from)
        .to_vec()
    }

    #[test]
    fn both_drivers_and_all_classes_are_known() {
        let paths = [
            (
                0,
                Qos::Guaranteed,
                format!("kubepods.slice/kubepods-pod{ESCAPED}.slice"),
            ),
            (
                0,
                Qos::Burstable,
                format!("kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{ESCAPED}.slice"),
            ),
            (
                0,
                Qos::BestEffort,
                format!("kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{ESCAPED}.slice"),
            ),
            (1, Qos::Guaranteed, format!("kubepods/pod{UID}")),
            (1, Qos::Burstable, format!("kubepods/burstable/pod{UID}")),
            (1, Qos::BestEffort, format!("kubepods/besteffort/pod{UID}")),
            (
                2,
                Qos::Burstable,
                format!(
                    "kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod{ESCAPED}.slice"
                ),
            ),
        ];
        for (root, class, path) in paths {
            let path = PathBuf::from(path);
            assert_eq!(predicted(&roots()[root], UID, class), path);
            assert_eq!(
                pod_of(&path, &roots()).as_deref(),
                Some(UID),
                "{}",
                path.display()
            );
        }
        // A static pod's is a hash.
        let hash = "d1f2a3b4c5d6e7f80910111213141516";
        let path = predicted(&roots()[0], hash, Qos::Burstable);
        assert_eq!(pod_of(&path, &roots()).as_deref(), Some(hash));
        assert!(is_static(hash) && !is_static(UID) && !is_static("u-1"));
    }

    #[test]
    fn names_that_imitate_pods_are_none() {
        let container = format!("kubepods.slice/kubepods-pod{ESCAPED}.slice/cri-containerd-77.scope");
        for path in [
            "kubepods.slice".to_owned(),
            container.clone(),
            format!("{container}/kubepods-pod{ESCAPED}.slice"),
            format!("kubepods/pod{UID}/pod{UID}"),
            format!("kubepods/burstable/pod{UID}/crio-77"),
            format!("kubepods/other/pod{UID}"),
            format!("kubepods/pod{UID}/burstable"),
            // The other driver's way.
            format!("kubepods.slice/pod{UID}"),
            format!("kubepods/kubepods-pod{ESCAPED}.slice"),
            // The class and the name disagree.
            format!("kubepods.slice/kubepods-burstable.slice/kubepods-besteffort-pod{ESCAPED}.slice"),
            format!("kubepods.slice/kubepods-burstable-pod{ESCAPED}.slice"),
            format!("kubepods.slice/kubepods-pod{UID}.slice"),
            format!("kubepods.slice/kubepods-pod{ESCAPED}.scope"),
            "kubepods/pod".to_owned(),
            "kubepods/pod-".to_owned(),
            "kubepods/poda_b".to_owned(),
            "kubepods/pod..".to_owned(),
            format!("kubepods/pod{}", "a".repeat(65)),
            "kubepods.slice/kubepods-pod_.slice".to_owned(),
            format!("elsewhere/pod{UID}"),
        ] {
            assert_eq!(pod_of(Path::new(&path), &roots()), None, "{path}");
        }
    }

    #[test]
    fn of_the_cgroups_that_crio_makes_only_the_pods_own_is_the_pod() {
        let id = "292c84db93e00b10d4a3f9e7c95311e0cc52e00bcadd148bbfbe909e5740fe69";
        let pods = [
            format!("kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{ESCAPED}.slice"),
            format!("kubepods.slice/kubepods-pod{ESCAPED}.slice"),
            format!("kubepods/besteffort/pod{UID}"),
            format!("kubepods/pod{UID}"),
        ];
        for pod in pods {
            let pod = Path::new(&pod);
            let display = pod.display();
            assert_eq!(pod_of(pod, &roots()).as_deref(), Some(UID), "{display}");
            // The sandbox and the containers, with runc and with crun, and the monitors of containers.
            for below in ["", ".scope"].map(|end| {
                [
                    format!("crio-{id}{end}"),
                    format!("crio-{id}{end}/container"),
                    format!("crio-conmon-{id}{end}"),
                ]
            }) {
                for below in below {
                    assert_eq!(pod_of(&pod.join(&below), &roots()), None, "{display}/{below}");
                }
            }
        }
        // Where it keeps monitors unless it is told otherwise, nothing is managed.
        let monitor = format!("system.slice/crio-conmon-{id}.scope");
        assert_eq!(pod_of(Path::new(&monitor), &roots()), None);
    }

    #[test]
    fn a_uid_that_would_lead_elsewhere_is_none() {
        for uid in [
            "", ".", "..", "a/b", "../x", "a.b", "a_b", "-a", "a-", "a--b", "a\0b", "ä",
        ] {
            assert!(!is_uid(uid), "{uid}");
        }
        assert!(is_uid(UID) && is_uid("a"));
    }
}
