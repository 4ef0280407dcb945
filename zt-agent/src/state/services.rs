// SPDX-License-Identifier: Apache-2.0
//! Virtual places with a number each, as the kernel and whoever asks are told of them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use zt_common::identity;
use zt_common::names::MAX_SERVICES;

use crate::identity::services::{Backend, Backends, Place};
use crate::policy::{AllowTable, Group, Groups, Member, Party};
use crate::spiffe_id::SpiffeId;

/// What stands behind a virtual place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Front {
    /// The Services whose place it is: `namespace/name`, more than one joined by `+`.
    pub service: Arc<str>,
    /// The number that the kernel decides by: an identity's, an entity's, or a group's.
    pub number: u64,
    /// The port that policy speaks about.
    pub target_port: u16,
    /// Who is behind it.
    pub backends: Arc<Backends>,
}

impl Front {
    /// Whether any of them is a workload.
    pub fn has_workloads(&self) -> bool {
        let is_workload = |(backend, _): &(Backend, u16)| matches!(backend, Backend::Workload(_));
        self.backends.iter().any(is_workload)
    }

    /// Who is behind it, as policy speaks of them, and at which port each.
    pub fn members(&self) -> impl Iterator<Item = (Member, u16)> {
        members(&self.backends)
    }

    /// Whether not all of them listen on the same port.
    pub fn ports_differ(&self) -> bool {
        self.backends.iter().any(|(_, port)| *port != self.target_port)
    }

    /// The number that a table answers about: `unknown` for a group that it says nothing about, and for a name that is
    /// nobody by it.
    pub fn number_in(&self, table: &AllowTable) -> u64 {
        if identity::is_group(self.number) {
            return if table.answers_about(self.number) {
                self.number
            } else {
                identity::UNKNOWN
            };
        }
        match self.backends.first() {
            Some((Backend::Workload(id), _)) => table.number(Party::Spiffe(id)),
            _ => self.number,
        }
    }
}

/// All virtual places.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fronts {
    fronts: BTreeMap<Place, Front>,
    /// Places that there was no room for.
    left_out: usize,
}

impl Fronts {
    /// Numbers what stands behind each place. New groups are added to `groups`. What does not fit the kernel's map is left
    /// out, the highest addresses first to go.
    pub fn new(places: impl Iterator<Item = (Place, Arc<str>, Backends)>, groups: &mut Groups) -> Self {
        let mut fronts = BTreeMap::new();
        let mut left_out = 0;
        for (place, service, backends) in places {
            if fronts.len() >= MAX_SERVICES as usize {
                left_out += 1;
                continue;
            }
            let (number, target_port) = number(&place, &service, &backends, groups);
            let front = Front {
                service,
                number,
                target_port,
                backends: Arc::new(backends),
            };
            fronts.insert(place, front);
        }
        Self { fronts, left_out }
    }

    /// What stands behind a place, if anything does.
    pub fn at(&self, address: IpAddr, port: u16, protocol: u8) -> Option<&Front> {
        let address = address.to_canonical();
        self.fronts.get(&Place {
            address,
            port,
            protocol,
        })
    }

    /// All, in the order of their addresses.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&Place, &Front)> {
        self.fronts.iter()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.fronts.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.fronts.is_empty()
    }

    /// How many lead to a group: several identities, several ports, or an address.
    pub fn groups(&self) -> usize {
        let is_group = |front: &&Front| identity::is_group(front.number);
        self.fronts.values().filter(is_group).count()
    }

    /// Places that there was no room for.
    pub fn left_out(&self) -> usize {
        self.left_out
    }

    /// The workloads behind all of them.
    pub fn workloads(&self) -> impl Iterator<Item = &SpiffeId> {
        let backends = self.fronts.values().flat_map(|front| front.backends.iter());
        backends.filter_map(|(backend, _)| match backend {
            Backend::Workload(id) => Some(id),
            Backend::Entity(_) | Backend::Address(_) => None,
        })
    }
}

/// The number for those behind a place, and the port to ask about. Who is alone needs no group, unless it is an address:
/// who that is depends on the policy, and is found out when that is compiled.
fn number(place: &Place, service: &str, backends: &Backends, groups: &mut Groups) -> (u64, u16) {
    let mut all = backends.iter();
    let port = backends.iter().map(|(_, port)| *port).min().unwrap_or(place.port);
    match (all.next(), all.next()) {
        (None, _) => return (identity::UNKNOWN, place.port),
        (Some((Backend::Workload(id), port)), None) => return (id.number(), *port),
        (Some((Backend::Entity(number), port)), None) => return (*number, *port),
        _ => {}
    }
    let group = Group {
        name: format!("service:{service}").into(),
        protocol: place.protocol,
        port,
        members: members(backends).collect(),
    };
    (groups.add(group), port)
}

fn members(backends: &Backends) -> impl Iterator<Item = (Member, u16)> {
    backends.iter().map(|(backend, port)| {
        let member = match backend {
            Backend::Workload(id) => Member::Workload(id.clone()),
            Backend::Entity(number) => Member::Entity(*number),
            Backend::Address(address) => Member::Address(*address),
        };
        (member, *port)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{PolicySet, Settings, compile_with};

    fn place(last: u8) -> Place {
        Place {
            address: IpAddr::from([10, 96, 0, last]),
            port: 80,
            protocol: 6,
        }
    }

    fn id(name: &str) -> SpiffeId {
        SpiffeId::parse(&format!("spiffe://hanzo.ai/{name}")).expect("literal")
    }

    #[test]
    fn who_is_alone_has_its_own_number_and_others_have_one_together() {
        let mut groups = Groups::default();
        let web: Arc<str> = "hanzo/web".into();
        let (one, other) = (Backend::Workload(id("a")), Backend::Workload(id("b")));
        let outside = Backend::Address(IpAddr::from([203, 0, 113, 1]));
        let places = [
            (place(1), Backends::from([(one.clone(), 8080)])),
            (place(2), Backends::from([(one.clone(), 8080), (other, 9090)])),
            (place(3), Backends::from([(one.clone(), 9090), (one, 8080)])),
            (place(4), Backends::from([(outside, 443)])),
            (
                place(5),
                Backends::from([(Backend::Entity(identity::KUBE_APISERVER), 6443)]),
            ),
        ];
        let places = places
            .into_iter()
            .map(|(place, backends)| (place, Arc::clone(&web), backends));
        let fronts = Fronts::new(places, &mut groups);
        let at = |last: u8| {
            fronts
                .at(IpAddr::from([10, 96, 0, last]), 80, 6)
                .expect("a front")
        };
        assert_eq!((at(1).number, at(1).target_port), (id("a").number(), 8080));
        for last in [2, 3, 4] {
            assert!(identity::is_group(at(last).number), "{last}");
        }
        assert_eq!(
            (at(2).target_port, at(3).target_port, at(4).target_port),
            (8080, 8080, 443)
        );
        assert_ne!(at(2).number, at(3).number);
        assert_eq!(
            [1, 2, 3, 4].map(|last| at(last).ports_differ()),
            [false, true, true, false]
        );
        assert_eq!(
            [1, 2, 4, 5].map(|last| at(last).has_workloads()),
            [true, true, false, false]
        );
        assert_eq!(
            (at(5).number, at(5).target_port),
            (identity::KUBE_APISERVER, 6443)
        );
        assert_eq!(
            &*groups.get(at(2).number).expect("there").name,
            "service:hanzo/web"
        );
        assert!(
            fronts
                .at("::ffff:10.96.0.1".parse().expect("literal"), 80, 6)
                .is_some()
        );
        assert!(fronts.at(IpAddr::from([10, 96, 0, 1]), 80, 17).is_none());
        assert_eq!((fronts.len(), fronts.left_out(), groups.len()), (5, 0, 3));
    }

    #[test]
    fn what_a_table_does_not_answer_about_leads_to_nobody() {
        let twins = ["a", "b"].map(|name| SpiffeId::numbered(&format!("spiffe://hanzo.ai/{name}"), 1 << 40));
        let [one, other] = twins.clone().map(Backend::Workload);
        let mut groups = Groups::default();
        let places = [
            (place(1), Backends::from([(one.clone(), 80)])),
            (place(2), Backends::from([(one, 80), (other, 80)])),
        ];
        let places = places
            .into_iter()
            .map(|(place, backends)| (place, Arc::from("hanzo/web"), backends));
        let fronts = Fronts::new(places, &mut groups);
        let numbers = |table: &AllowTable| -> Vec<u64> {
            fronts.iter().map(|(_, front)| front.number_in(table)).collect()
        };
        let group = groups.iter().next().expect("one").0;
        let compiled = |groups: &Groups, ids: &[SpiffeId]| {
            let ids = ids.iter().cloned().collect();
            compile_with(&PolicySet::default(), &ids, groups, &Settings::default(), 1).expect("it fits")
        };
        assert_eq!(
            numbers(&compiled(&Groups::default(), &twins[..1])),
            [1 << 40, identity::UNKNOWN]
        );
        assert_eq!(numbers(&compiled(&groups, &[])), [identity::UNKNOWN, group]);
    }
}
