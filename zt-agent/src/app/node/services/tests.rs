// SPDX-License-Identifier: Apache-2.0
//! What stands behind virtual places, before anything of it reaches the kernel.

use super::*;
use crate::identity::services::{Endpoint, Port, ServiceRecord, SlicePort, SliceRecord, TargetPort};

fn ip(text: &str) -> IpAddr {
    text.parse().expect("literal")
}

fn name(name: &str) -> (Arc<str>, Arc<str>) {
    (Arc::from("n"), Arc::from(name))
}

fn service(uid: &str) -> ServiceRecord {
    ServiceRecord {
        name: name("web"),
        uid: uid.into(),
        cluster_addresses: vec![ip("10.96.0.1")],
        external_addresses: Vec::new(),
        ports: vec![Port {
            name: "".into(),
            protocol: 6,
            port: 80,
            target: TargetPort::Number(8080),
        }],
        has_selector: true,
    }
}

fn slice(addresses: &[&str]) -> SliceRecord {
    SliceRecord {
        name: name("web-1"),
        uid: "s".into(),
        service: "web".into(),
        owner: None,
        ports: vec![SlicePort {
            name: "".into(),
            protocol: 6,
            port: Some(8080),
        }],
        endpoints: addresses
            .iter()
            .map(|address| Endpoint {
                addresses: vec![ip(address)],
                pod: None,
                has_odd_address: false,
                ready: true,
            })
            .collect(),
    }
}

fn id(name: &str) -> SpiffeId {
    SpiffeId::parse(&format!("spiffe://hanzo.ai/{name}")).expect("literal")
}

fn occupied(all: &[(&str, &str)]) -> Here {
    let tenants = all.iter().map(|(address, name)| {
        let identity = Some(id(name));
        (ip(address), Tenant::Workload { uid: None, identity })
    });
    Here(tenants.collect())
}

fn settle(fronting: &mut Fronting, here: Here) -> bool {
    fronting.settle(here, &Elsewhere::default())
}

fn led_to(fronting: &Fronting) -> Vec<u64> {
    let entries = fronting.entries(&Numbers::of(Some(&Arc::default())));
    entries.values().map(|service| service.identity).collect()
}

#[test]
fn nothing_changes_before_everything_has_been_told() {
    let directory = tempfile::tempdir().expect("a directory");
    let memory = Some(directory.path().join(services::FILE));
    let mut first = Fronting::new(memory.clone(), "hanzo.ai");
    let here = || occupied(&[("10.0.0.1", "a")]);
    first.apply(vec![ServiceEvent::Services(vec![service("u")])]);
    assert!(!settle(&mut first, here()));
    first.apply(vec![ServiceEvent::Slices(vec![slice(&["10.0.0.1"])])]);
    assert!(settle(&mut first, here()));
    assert_eq!(led_to(&first), [id("a").number()]);
    first.remember("hanzo.ai");
    // The next agent begins with it, and keeps it until it knows better.
    let mut next = Fronting::new(memory, "hanzo.ai");
    assert_eq!(led_to(&next), [id("a").number()]);
    next.apply(vec![ServiceEvent::Slices(vec![])]);
    assert!(!settle(&mut next, here()));
    assert_eq!(led_to(&next), [id("a").number()]);
    next.apply(vec![ServiceEvent::Services(vec![])]);
    assert!(settle(&mut next, here()) && next.fronts().is_empty());
}

#[test]
fn a_group_that_no_table_answers_about_is_nobody() {
    let mut fronting = Fronting::new(Some(PathBuf::from("/nonexistent")), "hanzo.ai");
    fronting.apply(vec![
        ServiceEvent::Services(vec![service("u")]),
        ServiceEvent::Slices(vec![slice(&["10.0.0.1", "10.0.0.2"])]),
    ]);
    assert!(settle(
        &mut fronting,
        occupied(&[("10.0.0.1", "a"), ("10.0.0.2", "b")])
    ));
    assert_eq!(fronting.groups().len(), 1);
    assert_eq!(led_to(&fronting), [identity::UNKNOWN]);
    // Both are one workload now: the group stays until the next policy.
    assert!(settle(
        &mut fronting,
        occupied(&[("10.0.0.1", "a"), ("10.0.0.2", "a")])
    ));
    assert_eq!(led_to(&fronting), [id("a").number()]);
    assert_eq!(fronting.groups().len(), 1);
    fronting.forget_past_groups();
    assert!(fronting.groups().is_empty());
    assert_eq!(
        fronting.virtual_addresses().collect::<Vec<_>>(),
        [ip("10.96.0.1")]
    );
}
