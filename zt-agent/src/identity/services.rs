// SPDX-License-Identifier: Apache-2.0
//! Kubernetes Services: who stands behind a virtual address. Pure, from what the API says of Services, `EndpointSlice`s
//! and the occupants of addresses, in whatever order it says so.
//!
//! A backend is whoever has the endpoint's address *now*. What an endpoint says of itself (`targetRef`) can only take
//! that away: where it speaks of another pod than the one that has the address, one of the two is old, and nobody is
//! named. A pod that is gone is remembered by its uid, which is never given again, for as long as an endpoint speaks of it
//! and nobody else has the address.

mod backends;
mod few;
mod memory;
mod record;
mod room;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use zt_common::identity;

use crate::spiffe_id::SpiffeId;

use self::backends::Remembered;
pub use self::backends::{MAX_BACKENDS, MAX_PLACES_OF_ONE};
use self::few::Few;
pub use self::memory::{FILE, Recalled, recall, remember};
pub use self::record::{Endpoint, Port, ServiceEvent, ServiceRecord, SlicePort, SliceRecord, TargetPort};
pub use self::room::Amount;
use self::room::Room;

/// Namespace and name of an object.
pub type ObjectName = (Arc<str>, Arc<str>);

/// A place that many may connect to and that nobody has: it is translated after `connect`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Place {
    /// The virtual address.
    pub address: IpAddr,
    /// The virtual port.
    pub port: u16,
    /// IP protocol number.
    pub protocol: u8,
}

/// One of those behind a place.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Backend {
    /// A workload.
    Workload(SpiffeId),
    /// An entity, by its number; `unknown` where a pod has no identity, or nobody is there.
    Entity(u64),
    /// An address that no pod and no node has.
    Address(IpAddr),
}

/// Those behind a place, each with the port that it listens on. Never empty.
pub type Backends = BTreeSet<(Backend, u16)>;

/// Who has an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occupant<'o> {
    /// A pod, or a workload that another source declares.
    Workload {
        /// The pod's uid, where the source knows.
        uid: Option<&'o str>,
        /// Who it is, if that is known.
        identity: Option<&'o SpiffeId>,
    },
    /// Something that is an entity as a whole, such as a node, by its number.
    Entity(u64),
}

/// Knows who has which address.
pub trait Occupants {
    /// Who has `address` now; `None` where nobody does.
    fn at(&self, address: IpAddr) -> Option<Occupant<'_>>;
}

/// Everything known about Services, and what it comes to.
#[derive(Debug, Default)]
pub struct Services {
    known: BTreeMap<ObjectName, ServiceRecord>,
    slices: BTreeMap<ObjectName, SliceRecord>,
    /// The slices that speak of a Service, by its name.
    of_service: BTreeMap<ObjectName, Few<ObjectName>>,
    /// The Services that have an endpoint at an address.
    at_address: HashMap<IpAddr, Few<ObjectName>>,
    /// The Services that say that an address outside is theirs.
    outside: HashMap<IpAddr, Few<ObjectName>>,
    /// Who a pod was when it was last seen, and where, as long as endpoints speak of it.
    remembered: Remembered,
    /// How many endpoints speak of a pod.
    spoken_of: HashMap<Arc<str>, usize>,
    /// Who says what of a place.
    claims: BTreeMap<Place, BTreeMap<ObjectName, Backends>>,
    /// The places that each Service claims.
    places: BTreeMap<ObjectName, BTreeSet<Place>>,
    /// Services to look at again.
    stale: BTreeSet<ObjectName>,
    /// What may be kept.
    room: Room,
}

impl Services {
    /// Knows nothing, and keeps so much at most.
    pub fn with_room(most: Amount) -> Self {
        Self {
            room: Room::of(most),
            ..Self::default()
        }
    }

    /// How often there was no room for a Service or an `EndpointSlice`, so far.
    pub fn refused(&self) -> u64 {
        self.room.refused()
    }

    /// Takes note of what the API said. What it comes to is found out by [`Self::settle`].
    pub fn apply(&mut self, event: ServiceEvent) {
        match event {
            ServiceEvent::Service(service) => self.service(*service),
            ServiceEvent::ServiceGone { name, uid } => {
                if self.known.get(&name).is_some_and(|service| service.uid == uid) {
                    self.forget_service(&name);
                }
            }
            ServiceEvent::Slice(slice) => self.slice(*slice),
            ServiceEvent::SliceGone { name, uid } => {
                if self.slices.get(&name).is_some_and(|known| known.uid == uid) {
                    self.forget_slice(&name);
                } else if self.room.is_within(&name) {
                    self.look_at_all_of(&name.0);
                }
            }
            ServiceEvent::Services(all) => {
                let names: BTreeSet<ObjectName> = all.iter().map(|service| service.name.clone()).collect();
                let known = self.known.keys();
                let gone: Vec<ObjectName> = known.filter(|name| !names.contains(*name)).cloned().collect();
                for name in &gone {
                    self.forget_service(name);
                }
                for service in all {
                    self.service(service);
                }
            }
            ServiceEvent::Slices(all) => {
                let names: BTreeSet<ObjectName> = all.iter().map(|slice| slice.name.clone()).collect();
                let gone: Vec<ObjectName> = self
                    .slices
                    .keys()
                    .filter(|name| !names.contains(*name))
                    .cloned()
                    .collect();
                for name in &gone {
                    self.forget_slice(name);
                }
                for namespace in self.room.listed_anew() {
                    self.look_at_all_of(&namespace);
                }
                for slice in all {
                    self.slice(slice);
                }
            }
        }
    }

    /// Another pod, or none, has an address now: the Services that have endpoints there are looked at again.
    pub fn moved(&mut self, address: IpAddr) {
        for names in [self.at_address.get(&address), self.outside.get(&address)] {
            self.stale.extend(names.into_iter().flatten().cloned());
        }
    }

    /// Everybody may have moved.
    pub fn all_moved(&mut self) {
        self.stale.extend(self.known.keys().cloned());
    }

    /// Whether there is anything to settle.
    pub fn is_settled(&self) -> bool {
        self.stale.is_empty()
    }

    /// Looks again at what changed. Whether any place is another than it was.
    pub fn settle(&mut self, occupants: &dyn Occupants) -> bool {
        let mut changed = false;
        for name in std::mem::take(&mut self.stale) {
            let claimed = match self.known.get(&name) {
                Some(service) => {
                    let slices = self.of_service.get(&name).into_iter().flatten();
                    let slices = slices.filter_map(|slice| self.slices.get(slice));
                    let mut claimed = backends::claimed(service, slices, occupants, &mut self.remembered);
                    if self.room.lacks(&name.0) {
                        for (place, backends) in &mut claimed {
                            let port = backends.first().map_or(place.port, |(_, port)| *port);
                            backends.insert((Backend::Entity(identity::UNKNOWN), port));
                        }
                    }
                    claimed
                }
                None => BTreeMap::new(),
            };
            changed |= self.claim(&name, claimed);
        }
        changed
    }

    /// What a place comes to, and the Services that say so. Where several claim one place, whoever connects may reach the
    /// backends of any. The virtual addresses of the cluster come first: there may not be room for all.
    pub fn places(&self) -> impl Iterator<Item = (Place, Vec<&ObjectName>, Backends)> {
        let inside: HashSet<IpAddr> = self.cluster_addresses().collect();
        let (first, last): (Vec<_>, Vec<_>) = self
            .claims
            .iter()
            .partition(|(place, _)| inside.contains(&place.address));
        first.into_iter().chain(last).map(|(place, claims)| {
            let backends = claims.values().flatten().cloned().collect();
            (*place, claims.keys().collect(), backends)
        })
    }

    /// How many Services are known, and how many places they have.
    pub fn counts(&self) -> (usize, usize) {
        (self.known.len(), self.claims.len())
    }

    /// The virtual addresses in the cluster.
    pub fn cluster_addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.known
            .values()
            .flat_map(|service| service.cluster_addresses.iter().copied())
    }

    fn service(&mut self, service: ServiceRecord) {
        let name = service.name.clone();
        if self.known.get(&name) == Some(&service) {
            return;
        }
        // One of the same name and another uid is another: the older one is gone, whether that was said or not.
        self.forget_service(&name);
        if !self.room.take_service(&name.0) {
            return;
        }
        for address in &service.external_addresses {
            self.outside.entry(*address).or_default().insert(name.clone());
        }
        self.known.insert(name, service);
    }

    fn forget_service(&mut self, name: &ObjectName) {
        self.stale.insert(name.clone());
        let Some(service) = self.known.remove(name) else {
            return;
        };
        self.room.give_service(&name.0);
        for address in &service.external_addresses {
            if let Some(names) = self.outside.get_mut(address) {
                names.remove(name);
                if names.is_empty() {
                    self.outside.remove(address);
                }
            }
        }
    }

    fn slice(&mut self, slice: SliceRecord) {
        if self.slices.get(&slice.name) == Some(&slice) {
            return;
        }
        // Before the old one goes: a pod that both speak of is not forgotten.
        for pod in slice.pods() {
            *self.spoken_of.entry(Arc::clone(pod)).or_default() += 1;
        }
        self.forget_slice(&slice.name.clone());
        if !self.room.take_slice(&slice.name.0, slice.endpoints.len()) {
            for pod in slice.pods() {
                self.speaks_no_more_of(pod);
            }
            // Whoever is in it, a connection may be led there.
            if self.room.is_without(&slice.name) {
                self.look_at_all_of(&slice.name.0);
            }
            return;
        }
        if self.room.is_within(&slice.name) {
            self.look_at_all_of(&slice.name.0);
        }
        let service = slice.service_name();
        for address in slice.addresses() {
            self.at_address
                .entry(address)
                .or_default()
                .insert(service.clone());
        }
        self.of_service
            .entry(service.clone())
            .or_default()
            .insert(slice.name.clone());
        self.slices.insert(slice.name.clone(), slice);
        self.stale.insert(service);
    }

    fn forget_slice(&mut self, name: &ObjectName) {
        let Some(slice) = self.slices.remove(name) else {
            return;
        };
        self.room.give_slice(&name.0, slice.endpoints.len());
        let service = slice.service_name();
        if let Some(slices) = self.of_service.get_mut(&service) {
            slices.remove(name);
            if slices.is_empty() {
                self.of_service.remove(&service);
            }
        }
        let others = self.of_service.get(&service).into_iter().flatten();
        let others = others.filter_map(|slice| self.slices.get(slice));
        let left: HashSet<IpAddr> = others.flat_map(SliceRecord::addresses).collect();
        for address in slice.addresses().filter(|address| !left.contains(address)) {
            if let Some(names) = self.at_address.get_mut(&address) {
                names.remove(&service);
                if names.is_empty() {
                    self.at_address.remove(&address);
                }
            }
        }
        for pod in slice.pods() {
            self.speaks_no_more_of(pod);
        }
        self.stale.insert(service);
    }

    /// One endpoint fewer speaks of a pod.
    fn speaks_no_more_of(&mut self, pod: &Arc<str>) {
        let left = self.spoken_of.get_mut(pod).map_or(0, |count| {
            *count = count.saturating_sub(1);
            *count
        });
        if left == 0 {
            self.spoken_of.remove(pod);
            self.remembered.remove(pod);
        }
    }

    fn look_at_all_of(&mut self, namespace: &Arc<str>) {
        let names = self.known.keys().filter(|(of, _)| of == namespace);
        self.stale.extend(names.cloned());
    }

    /// Puts what a Service claims in the place of what it claimed. Whether that is something else.
    fn claim(&mut self, name: &ObjectName, claimed: BTreeMap<Place, Backends>) -> bool {
        let before = self.places.remove(name).unwrap_or_default();
        let mut changed = false;
        for place in before.iter().filter(|place| !claimed.contains_key(place)) {
            changed = true;
            if let Some(claims) = self.claims.get_mut(place) {
                claims.remove(name);
                if claims.is_empty() {
                    self.claims.remove(place);
                }
            }
        }
        if claimed.is_empty() {
            return changed;
        }
        self.places
            .insert(name.clone(), claimed.keys().copied().collect());
        for (place, backends) in claimed {
            let claims = self.claims.entry(place).or_default();
            if claims.get(name) != Some(&backends) {
                changed = true;
                claims.insert(name.clone(), backends);
            }
        }
        changed
    }
}
