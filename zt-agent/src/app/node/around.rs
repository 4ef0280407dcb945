// SPDX-License-Identifier: Apache-2.0
//! Service meshes and load balancers in the kernel, as far as they can be seen from here: they change where a connection goes,
//! and with it what policy is asked about. Told once each, and in the status.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::Node;
use crate::api::AroundStatus;
use crate::kernel::Foreign;

/// Cgroups that are looked at: pods and their containers.
const MOST_CGROUPS: usize = 4096;
/// How far below a managed root they are looked for.
const DEPTH: usize = 4;

/// A proxy that has connections of its namespace redirected to it, by the ports on which it listens.
struct Proxy {
    what: &'static str,
    ports: &'static [u16],
}

/// The one that asks for most ports comes first.
const PROXIES: [Proxy; 3] = [
    Proxy {
        what: "istio-ambient",
        ports: &[15006, 15001, 15008],
    },
    Proxy {
        what: "istio",
        ports: &[15006, 15001],
    },
    Proxy {
        what: "linkerd",
        ports: &[4143, 4140],
    },
];

/// What was found last.
#[derive(Debug, Default)]
pub(super) struct Around {
    found: Vec<AroundStatus>,
    said: BTreeSet<(&'static str, Option<&'static str>)>,
}

impl Around {
    /// What was found last.
    pub(super) fn found(&self) -> &[AroundStatus] {
        &self.found
    }

    /// Takes what was found now. What is new.
    fn set(&mut self, found: Vec<AroundStatus>) -> Vec<AroundStatus> {
        let is_new = |one: &&AroundStatus| self.said.insert((one.what, one.order));
        let new = found.iter().filter(is_new).cloned().collect();
        self.found = found;
        new
    }
}

impl Node {
    /// Looks for service meshes and load balancers.
    pub(super) fn look_around(&mut self) {
        let below: Vec<PathBuf> = self
            .cgroups
            .by_path()
            .keys()
            .filter(|path| {
                self.depth_of(path)
                    .is_some_and(|depth| (1..=DEPTH).contains(&depth))
            })
            .take(MOST_CGROUPS)
            .map(|path| self.parts.mount.join(path))
            .collect();
        let foreign = self.parts.kernel.foreign(&below);
        let mut found: Vec<AroundStatus> = foreign.iter().map(of_program).collect();
        let namespaces: Vec<u64> = self.namespaces.cookies().collect();
        found.extend(proxies(&namespaces, |netns, port| {
            self.parts.kernel.listens(netns, port)
        }));
        for one in self.around.set(found) {
            let is_it = |program: &&Foreign| program.evidence() == one.evidence;
            let meaning = foreign.iter().find(is_it).map_or(CARRIED_ON, Foreign::meaning);
            tracing::warn!(
                what = one.what,
                evidence = one.evidence,
                "{meaning}; docs/troubleshooting.md says what to set"
            );
        }
    }

    fn depth_of(&self, path: &std::path::Path) -> Option<usize> {
        let root = self.parts.root_paths.iter().find(|root| path.starts_with(root))?;
        Some(path.strip_prefix(root).ok()?.components().count())
    }
}

/// What it means that a proxy carries connections on.
const CARRIED_ON: &str = "a proxy of a service mesh carries connections on: what it connects to is decided as the workload's, and who is behind it is not seen";

fn of_program(program: &Foreign) -> AroundStatus {
    AroundStatus {
        what: program.whose(),
        order: Some(if program.first { "before" } else { "after" }),
        evidence: program.evidence(),
    }
}

/// The proxies that there are, by who listens on which port of which namespace.
fn proxies(namespaces: &[u64], listens: impl Fn(u64, u16) -> bool) -> Vec<AroundStatus> {
    let mut counts = [0_usize; PROXIES.len()];
    for netns in namespaces {
        let is_there = |proxy: &Proxy| proxy.ports.iter().all(|port| listens(*netns, *port));
        let found = PROXIES.iter().zip(&mut counts).find(|(proxy, _)| is_there(proxy));
        if let Some((_, count)) = found {
            *count += 1;
        }
    }
    let found = PROXIES.iter().zip(counts).filter(|(_, count)| *count > 0);
    found
        .map(|(proxy, count)| {
            let ports: Vec<String> = proxy.ports.iter().map(u16::to_string).collect();
            AroundStatus {
                what: proxy.what,
                order: None,
                evidence: format!("listeners on {} in {count} network namespaces", ports.join(", ")),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn meshes_are_told_by_the_ports_of_their_proxies() {
        let listeners: HashSet<(u64, u16)> = [
            (1, 15001),
            (1, 15006),
            (2, 15001),
            (2, 15006),
            (2, 15008),
            (3, 4140),
            (3, 4143),
            (4, 15006),
            (5, 4140),
            (6, 15001),
            (6, 15006),
        ]
        .into();
        let found = proxies(&[1, 2, 3, 4, 5, 6, 7], |netns, port| {
            listeners.contains(&(netns, port))
        });
        let of: Vec<(&str, &str)> = found
            .iter()
            .map(|one| (one.what, one.evidence.as_str()))
            .collect();
        assert_eq!(
            of,
            [
                (
                    "istio-ambient",
                    "listeners on 15006, 15001, 15008 in 1 network namespaces"
                ),
                ("istio", "listeners on 15006, 15001 in 2 network namespaces"),
                ("linkerd", "listeners on 4143, 4140 in 1 network namespaces"),
            ]
        );
    }

    #[test]
    fn load_balancers_are_told_by_the_names_of_their_programs_and_each_is_said_once() {
        let program = |name: &str, first, count| {
            of_program(&Foreign {
                name: name.into(),
                attach_type: "cgroup_inet4_connect",
                first,
                cgroup: "/sys/fs/cgroup/kubepods".into(),
                count,
            })
        };
        let cilium = program("cil_sock4_conne", false, 1);
        assert_eq!((cilium.what, cilium.order), ("cilium", Some("after")));
        assert_eq!(
            cilium.evidence,
            "program cil_sock4_conne at cgroup_inet4_connect of /sys/fs/cgroup/kubepods"
        );
        let other = program("rewrite", true, 3);
        assert_eq!((other.what, other.order), ("other", Some("before")));
        assert!(other.evidence.ends_with(" and 2 more"), "{}", other.evidence);
        assert_eq!(program("calico_connect_", false, 1).what, "calico");
        let mut around = Around::default();
        assert_eq!(around.set(vec![cilium.clone(), other.clone()]).len(), 2);
        assert!(around.set(vec![cilium.clone()]).is_empty());
        assert_eq!(around.found().len(), 1);
        assert!(around.set(vec![other, cilium]).is_empty());
    }
}
