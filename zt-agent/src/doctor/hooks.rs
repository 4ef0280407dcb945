// SPDX-License-Identifier: Apache-2.0
//! What is pinned and attached: of which version, on which cgroup, and who else is there.

use std::path::Path;

use super::finding::Finding;
use crate::kernel::{
    Alone, Foreign, HookStatus, KernelError, ManagedRoot, MapShape, PinnedVersion, is_guard,
};

/// Whether an agent works on the pins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Agent {
    /// It does.
    Runs,
    /// It does not, and there are pins.
    Gone,
    /// Neither: nothing was started here, or all was detached.
    Absent,
    /// Who asks may not see that.
    Unknown,
}

/// `versions`: what is pinned below `bpffs`.
pub(super) fn pins(
    bpffs: &Path,
    versions: &Result<Vec<PinnedVersion>, KernelError>,
    agent: Agent,
) -> Vec<Finding> {
    const CHECK: &str = "pins.version";
    const OTHERS: &str = "pins.other_versions";
    let versions = match versions {
        Ok(versions) => versions,
        Err(error) => {
            let found = error.to_string();
            return vec![Finding::failed(CHECK, found, "run as root; see `bpffs`")];
        }
    };
    let name = |version: &PinnedVersion| {
        let name = version.directory.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    };
    let own = versions.iter().find(|version| version.own);
    let own = match (own, agent) {
        (Some(own), _) => Finding::ok(
            CHECK,
            format!(
                "{}: {} maps, {} links",
                own.directory.display(),
                own.maps.len(),
                own.links.len()
            ),
        ),
        (None, Agent::Runs) => Finding::failed(
            CHECK,
            format!(
                "an agent runs, and of this program's version nothing is pinned below {}",
                bpffs.display()
            ),
            "`zt-agent` here is of another version than the agent that runs: ask the one that it was started with; where everything was detached, restart the agent",
        ),
        (None, _) => Finding::not_applicable(
            CHECK,
            format!("nothing of this version is pinned below {}", bpffs.display()),
        ),
    };
    let (leftovers, others): (Vec<_>, Vec<_>) = versions
        .iter()
        .filter(|version| !version.own)
        .partition(|version| version.leftover);
    let mut findings = vec![own];
    if !others.is_empty() {
        let names: Vec<String> = others.iter().map(|version| name(version)).collect();
        let links: usize = others.iter().map(|version| version.links.len()).sum();
        let found = format!("{} of another version, with {links} links", names.join(", "));
        findings.push(match agent {
            Agent::Runs => Finding::failed(
                OTHERS,
                found,
                "an agent removes them when its own hooks are attached: `zt-agent status` says what it waits for. Hooks of both decide until then",
            ),
            _ => Finding::warning(
                OTHERS,
                found,
                "start the agent of this version, which takes over and removes them; `zt-agent detach` removes all",
            ),
        });
    }
    if !leftovers.is_empty() {
        let names: Vec<String> = leftovers.iter().map(|version| name(version)).collect();
        let found = format!("a removal broke off and left {}", names.join(", "));
        findings.push(Finding::warning(
            "pins.leftovers",
            found,
            "`zt-agent detach`, or an agent that starts, removes them",
        ));
    }
    findings
}

/// `own`: what is pinned; `wanted`: what this build makes on this kernel.
pub(super) fn maps(own: Option<&PinnedVersion>, wanted: &[MapShape], names: &[&str]) -> Finding {
    const CHECK: &str = "pins.maps";
    let Some(own) = own else {
        return Finding::not_applicable(CHECK, "nothing of this version is pinned");
    };
    let detach = "another build of the same version has pinned them, or somebody has removed a pin. Where an agent runs, it puts pins back: ask again with the program that runs (/proc/PID/exe doctor). Where none runs, start the one that made them; if there is none any more, `zt-agent detach`, which ends enforcement until an agent is started";
    let missing: Vec<&str> = names
        .iter()
        .copied()
        .filter(|name| !own.maps.iter().any(|map| map.pin == *name && map.error.is_none()))
        .collect();
    if !missing.is_empty() {
        return Finding::failed(CHECK, format!("not pinned: {}", missing.join(", ")), detach);
    }
    let differing: Vec<String> = own
        .maps
        .iter()
        .filter_map(|map| {
            let found = map.shape.as_ref()?;
            let wanted = wanted.iter().find(|wanted| wanted.name == found.name)?;
            let difference = difference(found, wanted)?;
            Some(format!("{} ({difference})", map.pin))
        })
        .collect();
    if differing.is_empty() {
        let compared = if wanted.is_empty() {
            "; what they hold was not compared, as the programs were not tried"
        } else {
            ", as this program makes them"
        };
        Finding::ok(CHECK, format!("all {} are pinned{compared}", names.len()))
    } else {
        let found = format!("not as this program makes them: {}", differing.join(", "));
        Finding::failed(CHECK, found, detach)
    }
}

fn difference(found: &MapShape, wanted: &MapShape) -> Option<String> {
    let numbers = [
        ("type", found.kind, wanted.kind),
        ("bytes of a key", found.key_size, wanted.key_size),
        ("bytes of a value", found.value_size, wanted.value_size),
        ("most entries", found.max_entries, wanted.max_entries),
        ("flags", found.flags, wanted.flags),
    ];
    let (what, found, wanted) = numbers.into_iter().find(|(_, found, wanted)| found != wanted)?;
    Some(format!("{what}: {found}, not {wanted}"))
}

/// `hooks`: of the managed roots, as the kernel reports them; `own`: what is pinned.
pub(super) fn attached(
    hooks: &[HookStatus],
    roots: &[ManagedRoot],
    own: Option<&PinnedVersion>,
    agent: Agent,
) -> Finding {
    const CHECK: &str = "hooks.attached";
    let Some(own) = own else {
        return Finding::not_applicable(CHECK, "nothing of this version is pinned");
    };
    let remedy = match agent {
        Agent::Runs => {
            "an agent puts back what is missing within a second: `zt-agent status` says why it cannot"
        }
        _ => "start the agent: it attaches to the managed cgroups of its configuration",
    };
    if roots.is_empty() {
        let found = "none of the managed cgroups is there, so that nothing is attached";
        return Finding::failed(CHECK, found, "see `cgroup.managed`");
    }
    let missing: Vec<String> = hooks
        .iter()
        .filter(|hook| !hook.attached)
        .map(|hook| format!("{} on {}", hook.program, hook.cgroup.display()))
        .collect();
    if !missing.is_empty() {
        let others = on_other_cgroups(own, roots);
        let elsewhere = if others == 0 {
            String::new()
        } else {
            format!(" ({others} links are attached to other cgroups than these)")
        };
        let shown = missing.iter().take(3).cloned().collect::<Vec<_>>().join(", ");
        let more = match missing.len() {
            0..=3 => String::new(),
            count => format!(" and {} more", count - 3),
        };
        return Finding::failed(CHECK, format!("not attached: {shown}{more}{elsewhere}"), remedy);
    }
    let guards = own.links.iter().filter(|link| is_guard(&link.pin)).count();
    Finding::ok(
        CHECK,
        format!(
            "{} hooks, and {guards} guards of workloads that receive datagrams",
            hooks.len()
        ),
    )
}

/// Links that are on none of the managed roots, and are no guards of workloads below them.
fn on_other_cgroups(own: &PinnedVersion, roots: &[ManagedRoot]) -> usize {
    let is_managed = |id: u64| roots.iter().any(|root| root.id == id);
    own.links
        .iter()
        .filter(|link| !is_guard(&link.pin) && link.cgroup.is_some_and(|id| !is_managed(id)))
        .count()
}

/// `own`: what is pinned; `roots`: where hooks belong.
pub(super) fn elsewhere(own: Option<&PinnedVersion>, roots: &[ManagedRoot]) -> Option<Finding> {
    let others = on_other_cgroups(own?, roots);
    (others > 0).then(|| {
        Finding::failed(
            "hooks.elsewhere",
            format!("{others} links are pinned for cgroups that `managedCgroup` does not name, or that are gone"),
            "compare `managedCgroup` here with what the agent has (`zt-agent status`, hooks): if this is not its configuration, nothing is wrong there, and doctor needs its own. If it is, the agent takes them away when it is started anew",
        )
    })
}

/// `alone`: programs that let no other be beside them.
pub(super) fn in_the_way(alone: &[Alone]) -> Finding {
    const CHECK: &str = "hooks.in_the_way";
    let Some(first) = alone.first() else {
        return Finding::ok(
            CHECK,
            "nobody keeps programs from being attached to the managed cgroups",
        );
    };
    let name = if first.name.is_empty() {
        "a program without a name"
    } else {
        &first.name
    };
    Finding::failed(
        CHECK,
        format!(
            "{name} is attached to {} at {} for itself alone (without BPF_F_ALLOW_MULTI){}",
            first.cgroup.display(),
            first.attach_type,
            match alone.len() {
                1 => String::new(),
                count => format!(", and {} more", count - 1),
            }
        ),
        format!(
            "whoever attached it has to take it away or attach it with BPF_F_ALLOW_MULTI: `bpftool cgroup show {}`",
            first.cgroup.display()
        ),
    )
}

/// `foreign`: programs of others that may change a destination.
pub(super) fn order(foreign: &[Foreign], attached: bool) -> Vec<Finding> {
    const CHECK: &str = "hooks.order";
    if !attached {
        return vec![Finding::not_applicable(
            CHECK,
            "none of ours is attached, so that nobody is before or after it",
        )];
    }
    if foreign.is_empty() {
        return vec![Finding::ok(
            CHECK,
            "nobody else has programs at connect or sendmsg there",
        )];
    }
    let of = |program: &Foreign| {
        let found = format!("{}: {}", program.evidence(), program.meaning());
        if program.first {
            let remedy = match program.whose() {
                "cilium" => {
                    "in Cilium `socketLB.hostNamespaceOnly: true`; else allow the pods behind a Service, not the Service alone: docs/troubleshooting.md (Service meshes and load balancers)"
                }
                _ => {
                    "docs/troubleshooting.md (Service meshes and load balancers) says what policy is asked about, and what to set; `bpftool cgroup tree` shows whose it is"
                }
            };
            Finding::warning(CHECK, found, remedy)
        } else {
            Finding::warning(
                CHECK,
                found,
                "have `kubernetes` in `identity.source`, which knows who is behind a Service: docs/troubleshooting.md (Service meshes and load balancers)",
            )
        }
    };
    foreign.iter().map(of).collect()
}

#[cfg(test)]
mod tests;
