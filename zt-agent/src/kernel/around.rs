// SPDX-License-Identifier: Apache-2.0
//! What others have near our hooks: programs at `connect` and `sendmsg` that may give a connection or a datagram another
//! destination, and proxies that connections are carried to after it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use aya::programs::loaded_programs;
use zt_common::abi::ListenerKey;
use zt_common::address::Address;

use super::hooks::{HOOKS, HookStatus};
use super::sock_diag::TCP;
use super::{Kernel, sys};

/// Programs of other versions of this agent, which are there for a moment.
const OURS: [&str; 2] = ["zt_connect", "zt_sendmsg"];
/// How the hooks are called at which a destination can be changed.
const CHOOSING: [&str; 2] = ["_connect", "_sendmsg"];

/// A program of somebody else at such a hook.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Foreign {
    /// Its name, of which the kernel keeps 15 bytes.
    pub name: String,
    /// The hook, as bpftool calls it.
    pub attach_type: &'static str,
    /// It runs before ours: policy is asked about the destination that it chose.
    pub first: bool,
    /// A cgroup where it was seen: a managed root, where it may come from any ancestor, or one below.
    pub cgroup: PathBuf,
    /// At how many of those it was seen.
    pub count: usize,
}

/// What was seen at one hook: the program, and whether it runs before ours.
type Seen = (u32, &'static str, bool);

impl Foreign {
    /// Whose it seems to be: `cilium`, `calico`, or `other`.
    pub fn whose(&self) -> &'static str {
        let starts = |with: &[&str]| with.iter().any(|start| self.name.starts_with(start));
        if starts(&["cil_", "sock4_", "sock6_"]) {
            "cilium"
        } else if starts(&["cali"]) {
            "calico"
        } else {
            "other"
        }
    }

    /// By what it is known.
    pub fn evidence(&self) -> String {
        let more = match self.count {
            0 | 1 => String::new(),
            count => format!(" and {} more", count - 1),
        };
        let name = if self.name.is_empty() {
            "without a name"
        } else {
            &self.name
        };
        format!(
            "program {name} at {} of {}{more}",
            self.attach_type,
            self.cgroup.display()
        )
    }

    /// What it means that it is there.
    pub fn meaning(&self) -> &'static str {
        if self.first {
            "a program of others runs at connect or sendmsg before ours: policy is asked about the destination that it chose"
        } else {
            "a program of others runs at connect or sendmsg after ours: policy is asked about the destination that the workload named"
        }
    }
}

/// Programs of others that may change a destination, beside those of `hooks`: of the managed roots, and of the cgroups `below`
/// them.
pub(super) fn foreign(hooks: Vec<HookStatus>, below: &[PathBuf]) -> Vec<Foreign> {
    let mut seen: BTreeMap<Seen, (PathBuf, usize)> = BTreeMap::new();
    let mut note = |seen_here: Seen, cgroup: &Path| {
        let (_, count) = seen.entry(seen_here).or_insert_with(|| (cgroup.to_path_buf(), 0));
        *count += 1;
    };
    let chooses = |hook: &str| CHOOSING.iter().any(|end| hook.ends_with(end));
    for status in hooks.into_iter().filter(|status| chooses(status.attach_type)) {
        let (root, Some(ours)) = (&status.cgroup, status.program_id) else {
            continue;
        };
        let at_root = programs_at(root, status.program);
        for (id, first) in around(&at_root, ours) {
            note((id, status.attach_type, first), root);
        }
        let known: HashSet<u32> = at_root.into_iter().collect();
        for cgroup in below.iter().filter(|cgroup| cgroup.starts_with(root)) {
            for (id, first) in around(&programs_at(cgroup, status.program), ours) {
                if !known.contains(&id) {
                    note((id, status.attach_type, first), cgroup);
                }
            }
        }
    }
    if seen.is_empty() {
        return Vec::new();
    }
    let names = program_names();
    let mut found: Vec<Foreign> = seen
        .into_iter()
        .map(|((id, attach_type, first), (cgroup, count))| Foreign {
            name: names.get(&id).cloned().unwrap_or_default(),
            attach_type,
            first,
            cgroup,
            count,
        })
        .filter(|foreign| !OURS.iter().any(|start| foreign.name.starts_with(start)))
        .collect();
    found.sort_unstable();
    found
}

/// The names of all programs that are loaded, by their ids.
pub(super) fn program_names() -> HashMap<u32, String> {
    loaded_programs()
        .flatten()
        .map(|program| (program.id(), program.name_as_str().unwrap_or_default().to_owned()))
        .collect()
}

impl Kernel {
    /// Programs of others that may change a destination, of the managed roots and of the cgroups `below` them.
    pub fn foreign(&self, below: &[PathBuf]) -> Vec<Foreign> {
        foreign(self.hooks(), below)
    }

    /// Whether a workload listens on this TCP port of a namespace, at any address or on loopback.
    pub fn listens(&self, netns: u64, port: u16) -> bool {
        let addresses = [
            Address::from_v4(Ipv4Addr::UNSPECIFIED.octets()),
            Address::from_v4(Ipv4Addr::LOCALHOST.octets()),
            Address::from(std::net::IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
            Address::from(std::net::IpAddr::V6(Ipv6Addr::LOCALHOST)),
        ];
        addresses.into_iter().any(|address| {
            let key = ListenerKey {
                netns,
                address,
                port,
                protocol: TCP,
                reserved: [0; 5],
            };
            self.tables.listener(&key).is_some()
        })
    }
}

/// The programs that are effective at a hook of a cgroup, in the order in which they run; none where it is gone.
fn programs_at(cgroup: &Path, program: &str) -> Vec<u32> {
    let hook = HOOKS.iter().find(|hook| hook.program == program);
    let directory = File::open(cgroup).ok();
    hook.zip(directory)
        .and_then(|(hook, directory)| sys::programs_at(directory.as_fd(), hook.attach_type).ok())
        .unwrap_or_default()
}

/// The others among programs, and whether each runs before `ours`.
fn around(programs: &[u32], ours: u32) -> Vec<(u32, bool)> {
    let place = programs.iter().position(|id| *id == ours);
    let Some(place) = place else { return Vec::new() };
    let all = programs.iter().enumerate();
    all.filter(|(index, _)| *index != place)
        .map(|(index, id)| (*id, index < place))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_known_by_their_names() {
        let with = |name: &str, count| Foreign {
            name: name.to_owned(),
            attach_type: "cgroup_inet4_connect",
            first: true,
            cgroup: PathBuf::from("/sys/a"),
            count,
        };
        for (name, whose) in [
            ("cil_sock4_connect", "cilium"),
            ("sock6_connect", "cilium"),
            ("cali_connect_v4", "calico"),
            ("mine", "other"),
            ("", "other"),
        ] {
            assert_eq!(with(name, 1).whose(), whose, "{name}");
        }
        assert_eq!(
            with("", 3).evidence(),
            "program without a name at cgroup_inet4_connect of /sys/a and 2 more"
        );
    }

    #[test]
    fn the_others_are_told_by_the_order_in_which_they_run() {
        assert_eq!(around(&[3, 9, 7, 8], 7), [(3, true), (9, true), (8, false)]);
        assert!(around(&[7], 7).is_empty() && around(&[1, 2], 7).is_empty());
    }
}
