// SPDX-License-Identifier: Apache-2.0
//! The world, and the policy that is for it.

use super::super::cast::Who;
use super::super::error::DemoError;
use super::super::names::Names;
use super::super::screen::{Look, Screen, plain};
use super::super::world::{Extent, World};

/// Builds the world and shows it.
pub(super) fn build(screen: &mut Screen, names: Names) -> Result<World, DemoError> {
    screen.title("zt: who may reach whom, decided by identity, enforced by this machine's kernel")?;
    screen.chapter("A small world")?;
    screen.faint("building cgroups, network namespaces, a bridge and servers ...")?;
    let world = World::build(names, Extent::default())?;
    let row = |who: Who| {
        let serves = who.service().map_or_else(
            || plain("-"),
            |(port, _)| plain(format!("{port}, {}", world.server(who).words())),
        );
        vec![
            plain(who.name()),
            plain(format!("{}, {}", who.ipv4(), who.ipv6())),
            plain(world.names.cgroup_of(who).display().to_string()),
            serves,
        ]
    };
    let rows: Vec<_> = Who::ALL.into_iter().map(row).collect();
    screen.table(&["WORKLOAD", "ADDRESSES", "CGROUP", "SERVES"], &rows)?;
    screen.gap()?;
    screen.say("Each has its own cgroup, which is its identity, and its own network namespace.")?;
    screen.say(&format!(
        "{} is any process in the cgroup of iam, whatever its address.",
        Who::Iam.spiffe()
    ))?;
    screen.gap()?;
    screen.say("The policy, hanzo-core-policy, in words:")?;
    for source in Who::ALL {
        let to: Vec<String> = Who::POLICY
            .iter()
            .filter(|(from, _)| *from == source)
            .map(|(_, to)| to.place_name())
            .collect();
        if !to.is_empty() {
            screen.look(&format!("  {:8} → {}", source.name(), to.join(", ")), Look::Good)?;
        }
    }
    screen.look("  everything else is refused", Look::Bad)?;
    Ok(world)
}
