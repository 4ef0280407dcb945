// SPDX-License-Identifier: Apache-2.0
//! What of a policy that was made is not needed for what was seen.
//!
//! Two targets can allow the same connection only where both ends may be the same: an identity is written in one way, be it
//! by its name or by a pattern, but a network may be in a network or in the world, and patterns may share whom they match.

use std::collections::BTreeMap;

use zt_common::entry::Flow;

use super::unused::only;
use super::{Counted, End, Rules, Target, Writing};
use crate::policy::compile::Alone;
use crate::policy::document::Rule;
use crate::policy::set::PolicySet;
use crate::policy::table::AllowTable;

/// Targets that may allow the same connections: those of one source, or of all that may be others; those with one end, or all
/// whose ends may be others.
type Shelf<'r> = (Option<&'r End>, Option<&'r Target>);

/// A source, a target of it, and the rule of these two.
type Narrow<'r> = (&'r End, &'r Target, Rule);

/// The connections, as places in a list, that a target allows at each port.
type Places = BTreeMap<u16, Vec<usize>>;

/// A connection that several targets may allow.
struct Seen<'r, 's> {
    counted: &'s Counted,
    source: &'r End,
    target: &'r Target,
}

impl Seen<'_, '_> {
    /// Whether what it was written for is still there.
    fn is_at_home(&self, rules: &Rules<'_>) -> bool {
        let ports = rules.get(self.source).and_then(|rule| rule.get(self.target));
        ports.is_some_and(|ports| ports.contains_key(&self.counted.flow.port))
    }
}

/// Whether somebody who is written otherwise may be it.
fn may_be_others(end: &End) -> bool {
    match end {
        End::Spiffe(text) => text.contains('*'),
        End::Cidr(_) => true,
        End::Entity(name) => matches!(name.as_str(), "world" | "unknown"),
    }
}

/// The rules without what others allow: whole rules first, then targets, then ports, those with names before networks, and
/// these before entities. `None` where all of it is needed.
///
/// `set` and `table` are what the rules were written and compiled to. What was seen is told of where it is allowed then; what
/// `table` cannot judge needs what it was written for.
pub(super) fn smallest<'s>(
    rules: &Rules<'s>,
    set: &PolicySet,
    table: &AllowTable,
    needed: &[&'s Counted],
    writing: &Writing<'_>,
) -> Option<Rules<'s>> {
    let several = rules.keys().filter(|end| may_be_others(end)).nth(1).is_some();
    let shelves = shelves(rules, set, several);
    if shelves.is_empty() {
        return None;
    }
    let mut seen: Vec<Seen<'_, 's>> = Vec::new();
    let mut about: BTreeMap<Shelf<'_>, (Vec<usize>, Vec<Flow>)> = BTreeMap::new();
    let mut undecided: Vec<usize> = Vec::new();
    for counted in needed.iter().copied() {
        let (source, target) = writing.of(&counted.flow);
        let Some((source, targets)) = rules.get_key_value(&source) else {
            continue;
        };
        let Some((target, _)) = targets.get_key_value(&target) else {
            continue;
        };
        let shelf = shelf(source, target, several).filter(|shelf| shelves.contains_key(shelf));
        let Some(shelf) = shelf else {
            continue;
        };
        if let Ok(flow) = counted.flow.at_large(table) {
            let (places, flows) = about.entry(shelf).or_default();
            places.push(seen.len());
            flows.push(flow);
        } else {
            undecided.push(seen.len());
        }
        seen.push(Seen {
            counted,
            source,
            target,
        });
    }
    let mut alone = Alone::new(table.identities(), table.networks());
    let mut parts: BTreeMap<&End, BTreeMap<&Target, Places>> = BTreeMap::new();
    for (shelf, targets) in &shelves {
        let Some((places, flows)) = about.get(shelf) else {
            continue;
        };
        for (source, target, rule) in targets {
            let by_port = parts.entry(*source).or_default().entry(*target).or_default();
            for index in alone.allowed(rule, flows) {
                let place = places[index];
                by_port
                    .entry(seen[place].counted.flow.port)
                    .or_default()
                    .push(place);
            }
        }
    }
    for place in undecided {
        let one = &seen[place];
        let by_port = parts
            .entry(one.source)
            .or_default()
            .entry(one.target)
            .or_default();
        by_port.entry(one.counted.flow.port).or_default().push(place);
    }
    let kept = without_needless(rules, &parts, seen.len())?;
    Some(told(kept, &parts, &seen))
}

/// Where a target is looked at, where `several` sources may be others or not; `None` where no other can allow what it allows.
fn shelf<'r>(source: &'r End, target: &'r Target, several: bool) -> Option<Shelf<'r>> {
    let (shared, wide) = (several && may_be_others(source), may_be_others(&target.0));
    (shared || wide).then_some(((!shared).then_some(source), (!wide).then_some(target)))
}

/// The targets that are not alone where they are looked at, each as a rule of its own.
fn shelves<'r>(rules: &'r Rules<'_>, set: &PolicySet, several: bool) -> BTreeMap<Shelf<'r>, Vec<Narrow<'r>>> {
    // One rule a source and one item a target, in their order.
    let written = set.policies().iter().flat_map(|policy| &policy.rules);
    let mut shelves: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for ((source, targets), rule) in rules.iter().zip(written) {
        for (target, written) in targets.keys().zip(&rule.to) {
            if let Some(shelf) = shelf(source, target, several) {
                let alone = (source, target, only(rule, written));
                shelves.entry(shelf).or_default().push(alone);
            }
        }
    }
    shelves.retain(|_, targets| targets.len() > 1);
    shelves
}

/// The rules without what others of them allow; `None` where there is nothing of that kind.
fn without_needless<'s>(
    rules: &Rules<'s>,
    parts: &BTreeMap<&End, BTreeMap<&Target, Places>>,
    seen: usize,
) -> Option<Rules<'s>> {
    let mut times = vec![0_usize; seen];
    let every = parts.values().flat_map(BTreeMap::values);
    for place in every.flat_map(BTreeMap::values).flatten() {
        times[*place] += 1;
    }
    let mut kept = rules.clone();
    let mut smaller = false;
    for (source, targets) in parts {
        let whole = rules.get(*source).is_some_and(|rule| rule.len() == targets.len());
        if whole && is_needless(targets.values().flat_map(BTreeMap::values), &mut times) {
            smaller |= kept.remove(*source).is_some();
        }
    }
    for (source, targets) in parts {
        let Some(rule) = kept.get_mut(*source) else {
            continue;
        };
        for (target, places) in targets {
            if is_needless(places.values(), &mut times) {
                smaller |= rule.remove(*target).is_some();
            }
        }
    }
    for (source, targets) in parts {
        for (target, places) in targets {
            let Some(ports) = kept.get_mut(*source).and_then(|rule| rule.get_mut(*target)) else {
                continue;
            };
            for (port, places) in places {
                if is_needless(std::iter::once(places), &mut times) {
                    smaller |= ports.remove(port).is_some();
                }
            }
        }
    }
    smaller.then_some(kept)
}

/// Whether something else allows all that these parts do, of which `times` says how many allow it; if so, they are counted no more.
fn is_needless<'p>(parts: impl Iterator<Item = &'p Vec<usize>> + Clone, times: &mut [usize]) -> bool {
    for place in parts.clone().flatten() {
        times[*place] -= 1;
    }
    let needless = parts.clone().flatten().all(|place| times[*place] > 0);
    if !needless {
        for place in parts.flatten() {
            times[*place] += 1;
        }
    }
    needless
}

/// The rules with what was seen at parts that are gone told of at the first that allows it.
fn told<'s>(
    mut rules: Rules<'s>,
    parts: &BTreeMap<&End, BTreeMap<&Target, Places>>,
    seen: &[Seen<'_, 's>],
) -> Rules<'s> {
    let mut homeless: Vec<bool> = seen.iter().map(|one| !one.is_at_home(&rules)).collect();
    for (source, targets) in parts {
        for (target, places) in targets {
            let Some(ports) = rules.get_mut(*source).and_then(|rule| rule.get_mut(*target)) else {
                continue;
            };
            for (port, places) in places {
                let Some(told) = ports.get_mut(port) else {
                    continue;
                };
                for place in places {
                    if std::mem::take(&mut homeless[*place]) {
                        told.push(seen[*place].counted);
                    }
                }
            }
        }
    }
    rules
}
