// SPDX-License-Identifier: Apache-2.0
//! Events in any order, twice, and lists in between: what is known in the end is what a list would say, and on the way no
//! address bears the name of a pod that is known not to have it.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

/// What happens to one of a few names, at one of a few addresses.
#[derive(Clone, Debug)]
enum Happens {
    Made { name: u8, here: bool, address: u8 },
    Moved { name: u8, address: u8 },
    Ended { name: u8 },
    Deleted { name: u8 },
}

fn happens() -> impl Strategy<Value = Happens> {
    let (name, address) = (0..5_u8, 0..4_u8);
    prop_oneof![
        3 => (name.clone(), any::<bool>(), address.clone()).prop_map(|(name, here, address)| Happens::Made { name, here, address }),
        1 => (name.clone(), address).prop_map(|(name, address)| Happens::Moved { name, address }),
        1 => name.clone().prop_map(|name| Happens::Ended { name }),
        2 => name.prop_map(|name| Happens::Deleted { name }),
    ]
}

/// An event as the API sends it.
#[derive(Clone, Debug)]
struct Event {
    part: Part,
    pod: Pod,
    deleted: bool,
}

/// What the API sends while that happens, and what it lists in the end.
fn play(history: &[Happens]) -> (Vec<Event>, Vec<Event>) {
    let mut live: HashMap<u8, Event> = HashMap::new();
    let mut events = Vec::new();
    for (happens, version) in history.iter().zip(1_u64..) {
        let mut event = match *happens {
            Happens::Made { name, here, address } => {
                if live.contains_key(&name) {
                    continue;
                }
                let node = if here { NODE } else { "two" };
                let pod = pod(
                    &format!("p{name}"),
                    &format!("u{version}"),
                    node,
                    &format!("10.0.0.{address}"),
                );
                Event {
                    part: if here { Part::Here } else { Part::Elsewhere },
                    pod,
                    deleted: false,
                }
            }
            Happens::Moved { name, .. } | Happens::Ended { name } | Happens::Deleted { name } => {
                let Some(mut event) = live.get(&name).cloned() else {
                    continue;
                };
                match *happens {
                    Happens::Moved { address, .. } => {
                        event.pod.addresses = vec![ip(&format!("10.0.0.{address}"))];
                    }
                    Happens::Ended { .. } => event.pod.is_over = true,
                    _ => event.deleted = true,
                }
                event
            }
        };
        event.pod.version = version;
        let name = event.pod.name[1..].parse().expect("a number");
        if event.deleted {
            live.remove(&name);
        } else {
            live.insert(name, event.clone());
        }
        events.push(event);
    }
    (events, live.into_values().collect())
}

fn take(directory: &mut Directory, event: &Event) {
    if event.deleted {
        directory.deleted(event.part, &event.pod);
    } else {
        directory.applied(event.part, &event.pod);
    }
}

fn listed(events: &[Event], part: Part) -> Vec<Pod> {
    let of = events.iter().filter(|event| event.part == part);
    of.map(|event| event.pod.clone()).collect()
}

/// Addresses elsewhere, and whose they are.
type Told = Vec<(IpAddr, Whose)>;
/// Workloads here: their cgroups, who they are, and where they are reached.
type Placed = Vec<(PathBuf, SpiffeId, Vec<IpAddr>)>;

/// All that is told.
fn state(directory: &mut Directory) -> (Told, Placed) {
    directory.changes();
    let mut told: Vec<_> = (0..4)
        .map(|last| ip(&format!("10.0.0.{last}")))
        .chain([ip("192.168.0.1"), ip("192.168.0.2")])
        .filter_map(|address| Some((address, directory.told(address)?.clone())))
        .collect();
    told.sort_by_key(|(address, _)| *address);
    let records = directory.workloads().iter();
    let here = records.map(|record| {
        (
            record.cgroup.clone(),
            record.spiffe.clone(),
            record.addresses.clone(),
        )
    });
    (told, here.collect())
}

/// No address bears the name of a pod that, by what was heard so far, does not have it.
fn nobody_is_who_it_is_not(directory: &mut Directory, heard: &[Event]) {
    directory.changes();
    let mut newest: HashMap<&str, &Event> = HashMap::new();
    for event in heard {
        let known = newest.entry(&event.pod.uid).or_insert(event);
        if event.pod.version > known.pod.version {
            *known = event;
        }
    }
    let has = |pod: &str, address: IpAddr| {
        newest.values().any(|event| {
            let name = format!("{}/{}", event.pod.namespace, event.pod.name);
            name == pod && !event.deleted && !event.pod.is_over && event.pod.addresses.contains(&address)
        })
    };
    for last in 0..4 {
        let address = ip(&format!("10.0.0.{last}"));
        if let Some(Whose::Pod { pod, .. }) = directory.told(address) {
            assert!(has(pod, address), "{address} is said to be {pod}'s");
        }
    }
    for record in directory.workloads() {
        for address in &record.addresses {
            assert!(
                has(record.pod.as_deref().expect("a pod"), *address),
                "{address} {record:?}"
            );
        }
    }
}

/// What happens to a pod of this node, of which three share one address: the API has it, or no more; its cgroup comes or goes.
#[derive(Clone, Copy, Debug)]
enum Step {
    Applied(u8),
    Deleted(u8),
    Made(u8),
    Removed(u8),
}

fn step() -> impl Strategy<Value = Step> {
    (0..4_u8, 0..3_u8).prop_map(|(what, pod)| match what {
        0 => Step::Applied(pod),
        1 => Step::Deleted(pod),
        2 => Step::Made(pod),
        _ => Step::Removed(pod),
    })
}

proptest! {
    #[test]
    fn a_pod_whose_cgroup_is_gone_is_nobody_at_its_address_until_it_is_back(steps in prop::collection::vec(step(), 1..40)) {
        let of = |number: u8| pod(&format!("p{number}"), &format!("u{number}"), NODE, "10.0.0.1");
        let cgroup = |number: u8| PathBuf::from(format!("kubepods/burstable/podu{number}"));
        let mut directory = directory();
        let (mut told, mut over, mut there, mut gone) = ([false; 3], [false; 3], [false; 3], [false; 3]);
        for step in steps {
            match step {
                Step::Applied(number) => {
                    directory.applied(Part::Here, &of(number));
                    let at = usize::from(number);
                    told[at] = !over[at];
                }
                Step::Deleted(number) => {
                    directory.deleted(Part::Here, &of(number));
                    (told[usize::from(number)], over[usize::from(number)]) = (false, true);
                }
                Step::Made(number) => {
                    directory.cgroup_created(&cgroup(number));
                    (there[usize::from(number)], gone[usize::from(number)]) = (true, false);
                }
                Step::Removed(number) => {
                    directory.cgroup_removed(&cgroup(number));
                    let at = usize::from(number);
                    gone[at] |= there[at];
                    there[at] = false;
                }
            }
            directory.changes();
            let claimants: Vec<usize> = (0..3).filter(|at| told[*at]).collect();
            let sole = match *claimants {
                [one] if !gone[one] => Some(format!("n/p{one}")),
                _ => None,
            };
            let named = directory.workloads().iter().find(|record| !record.addresses.is_empty());
            prop_assert_eq!(named.and_then(|record| record.pod.clone()), sole.clone());
            let whose = directory.told(ip("10.0.0.1"));
            let is_nobodys = sole.is_none() && !claimants.is_empty();
            prop_assert_eq!(whose, is_nobodys.then_some(&Whose::Nobody));
        }
    }

    #[test]
    fn any_order_comes_to_what_a_list_says(
        (history, seed) in (prop::collection::vec(happens(), 1..24), any::<u64>()),
        relist in any::<bool>(),
    ) {
        let (events, live) = play(&history);
        let mut fresh = directory();
        fresh.all(Part::Here, &listed(&live, Part::Here));
        fresh.all(Part::Elsewhere, &listed(&live, Part::Elsewhere));
        let expected = state(&mut fresh);

        // Shuffled, and some of them twice.
        let mut shuffled: Vec<(u64, &Event)> = Vec::new();
        let mut mixed = seed;
        for event in &events {
            for _ in 0..2 {
                mixed = mixed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                if shuffled.last().is_none_or(|(_, last)| !std::ptr::eq(*last, event)) || mixed >> 63 == 1 {
                    shuffled.push((mixed >> 16, event));
                }
            }
        }
        shuffled.sort_by_key(|(key, _)| *key);
        let mut directory = directory();
        let mut heard = Vec::new();
        for (_, event) in shuffled {
            take(&mut directory, event);
            heard.push(event.clone());
            nobody_is_who_it_is_not(&mut directory, &heard);
        }
        prop_assert_eq!(state(&mut directory), expected.clone());
        if relist {
            directory.all(Part::Here, &listed(&live, Part::Here));
            directory.all(Part::Elsewhere, &listed(&live, Part::Elsewhere));
            let changes = directory.changes();
            prop_assert!(changes.told, "this node's pods are known now");
            let rest = Changes { told: false, ..changes };
            prop_assert!(rest.is_empty());
            for event in &events {
                take(&mut directory, event);
            }
            prop_assert_eq!(state(&mut directory), expected);
        }
    }

    #[test]
    fn garbage_names_nobody_and_stays_small(texts in prop::collection::vec(("\\PC{0,12}", "\\PC{0,12}", "\\PC{0,8}"), 0..40)) {
        let mut directory = directory();
        for (name, uid, account) in &texts {
            let pod = Pod { service_account: account.clone(), ..pod(name, uid, NODE, "10.0.0.1") };
            directory.applied(Part::Here, &pod);
            directory.applied(Part::Elsewhere, &Pod { node: account.clone(), ..pod });
        }
        directory.changes();
        for record in directory.workloads() {
            prop_assert!(record.cgroup.components().count() == 3);
            prop_assert_eq!(record.spiffe.path().split('/').count(), 3);
        }
    }
}
