// SPDX-License-Identifier: Apache-2.0
//! Lists, and random sequences of events.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use proptest::prelude::*;

use super::{Pods, UNKNOWN, add, at, ends, ip, known, service, slice};
use crate::identity::services::{ServiceEvent, ServiceRecord, Services, SliceRecord};

#[test]
fn a_list_takes_away_what_is_not_in_it() {
    let pods = Pods::default().with("10.0.0.1", "p1", "a");
    let (one, other) = (
        service("one", "1", &["10.96.0.1"]),
        service("other", "2", &["10.96.0.2"]),
    );
    let ends_of = |name: &str| slice(name, None, 8080, &[("10.0.0.1", Some("p1"))]);
    let mut services = known(
        vec![
            add(one.clone()),
            add(other),
            ends(ends_of("one")),
            ends(ends_of("other")),
        ],
        &pods,
    );
    services.apply(ServiceEvent::Services(vec![one.clone()]));
    assert!(services.settle(&pods));
    assert_eq!(services.counts(), (1, 1));
    services.apply(ServiceEvent::Slices(vec![]));
    assert!(services.settle(&pods));
    assert_eq!(at(&services, "10.96.0.1", 80), Some(vec![(UNKNOWN, 8080)]));
    services.apply(ServiceEvent::Services(vec![one]));
    assert!(services.is_settled(), "the same again is nothing new");
}

fn sequences() -> impl Strategy<Value = Vec<(u8, u8, u8)>> {
    proptest::collection::vec((0_u8..5, 0_u8..3, 0_u8..3), 1..24)
}

proptest! {
    /// Whatever is said in whatever order: at the end it is as if only the last word had been said, and nobody is ever
    /// behind a place who has no address that an endpoint of that place has.
    #[test]
    fn the_last_word_counts(steps in sequences()) {
        let mut services = Services::default();
        let mut pods = Pods::default();
        let mut last: (BTreeMap<u8, ServiceRecord>, BTreeMap<u8, SliceRecord>) = Default::default();
        for (what, one, other) in steps {
            let name = format!("s{one}");
            let address = format!("10.0.0.{other}");
            match what {
                0 => {
                    let record = service(&name, &format!("u{other}"), &[&format!("10.96.0.{other}")]);
                    last.0.insert(one, record.clone());
                    services.apply(add(record));
                }
                1 => {
                    if let Some(gone) = last.0.remove(&one) {
                        services.apply(ServiceEvent::ServiceGone { name: gone.name, uid: gone.uid });
                    }
                }
                2 => {
                    let record = slice(&name, None, 8080, &[(&address, None)]);
                    last.1.insert(one, record.clone());
                    services.apply(ends(record));
                }
                3 => {
                    if let Some(gone) = last.1.remove(&one) {
                        services.apply(ServiceEvent::SliceGone { name: gone.name, uid: gone.uid });
                    }
                }
                _ => {
                    pods = pods.with(&address, &format!("p{one}"), &format!("w{one}"));
                    services.moved(ip(&address));
                }
            }
            services.settle(&pods);
        }
        let fresh = known(
            vec![
                ServiceEvent::Slices(last.1.values().cloned().collect()),
                ServiceEvent::Services(last.0.values().cloned().collect()),
            ],
            &pods,
        );
        let all = |services: &Services| -> Vec<_> {
            services.places().map(|(place, _, backends)| (place, backends)).collect()
        };
        prop_assert_eq!(all(&services), all(&fresh));
        let addresses: BTreeSet<IpAddr> = last.1.values().flat_map(SliceRecord::addresses).collect();
        let indexed: BTreeSet<IpAddr> = services.at_address.keys().copied().collect();
        prop_assert_eq!(addresses, indexed);
    }
}
