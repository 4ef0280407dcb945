// SPDX-License-Identifier: Apache-2.0
//! What one Service comes to.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use zt_common::identity;

use super::{
    Backend, Backends, Endpoint, Occupant, Occupants, Place, Port, ServiceRecord, SliceRecord, TargetPort,
};
use crate::spiffe_id::SpiffeId;

/// More different backends than this behind one place are not told apart: whoever connects there connects to `unknown`.
pub const MAX_BACKENDS: usize = 256;

/// The Service through which pods reach the API server.
const API_SERVER: (&str, &str) = ("default", "kubernetes");

/// Places that one Service may have. What goes beyond is left out, addresses outside the cluster first to go.
pub const MAX_PLACES_OF_ONE: usize = 1024;

/// Who pods were when they were last seen, by uid and address.
pub(super) type Remembered = HashMap<Arc<str>, HashMap<IpAddr, SpiffeId>>;

/// The places of a Service and who is behind them: everybody to whom a connection there may be led by any node's
/// translator. Whom that leaves out, it would let through.
pub(super) fn claimed<'s>(
    service: &ServiceRecord,
    slices: impl Iterator<Item = &'s SliceRecord>,
    occupants: &dyn Occupants,
    remembered: &mut Remembered,
) -> BTreeMap<Place, Backends> {
    let slices: Vec<&SliceRecord> = slices.collect();
    let mut claimed = BTreeMap::new();
    let virtual_addresses = service
        .cluster_addresses
        .iter()
        .map(|address| (*address, false))
        .chain(service.external_addresses.iter().map(|address| (*address, true)));
    for (address, external) in virtual_addresses {
        for port in &service.ports {
            let place = Place {
                address,
                port: port.port,
                protocol: port.protocol,
            };
            if claimed.len() >= MAX_PLACES_OF_ONE && !claimed.contains_key(&place) {
                return claimed;
            }
            let mut backends = Backends::new();
            for (slice, target) in listening(&slices, port) {
                let found = led_to(service, slice, address, occupants, remembered);
                backends.extend(found.into_iter().map(|backend| (backend, target)));
                if backends.len() > MAX_BACKENDS {
                    break;
                }
            }
            // Anybody may write any address there, and not every node translates it: the connection may go to whoever is
            // really there.
            if external {
                backends.insert((really_at(address, occupants), port.port));
            }
            if backends.is_empty() || backends.len() > MAX_BACKENDS {
                backends = Backends::from([(Backend::Entity(identity::UNKNOWN), aimed_at(port))]);
            }
            claimed
                .entry(place)
                .or_insert_with(Backends::new)
                .extend(backends);
        }
    }
    if is_api_server(service) {
        claimed.extend(api_servers(service, &slices, occupants));
    }
    claimed
}

/// Those of a slice to whom a connection to a virtual address may be led.
fn led_to(
    service: &ServiceRecord,
    slice: &SliceRecord,
    address: IpAddr,
    occupants: &dyn Occupants,
    remembered: &mut Remembered,
) -> BTreeSet<Backend> {
    let mut found = BTreeSet::<Backend>::new();
    // What was made for an earlier Service of that name says nothing about this one; but translators go by the label.
    let foreign = slice.owner.as_ref().is_some_and(|owner| *owner != service.uid);
    if foreign && !slice.endpoints.is_empty() {
        found.insert(Backend::Entity(identity::UNKNOWN));
        return found;
    }
    let of_the_api_server = is_api_server(service) && is_the_api_servers(slice);
    for endpoint in &slice.endpoints {
        if endpoint.has_odd_address {
            found.insert(Backend::Entity(identity::UNKNOWN));
        }
        let same_family = endpoint
            .addresses
            .iter()
            .filter(|at| at.is_ipv4() == address.is_ipv4());
        for at in same_family {
            if of_the_api_server && !matches!(occupants.at(*at), Some(Occupant::Workload { .. })) {
                found.insert(Backend::Entity(identity::KUBE_APISERVER));
            } else {
                found.extend(backend(*at, endpoint, occupants, remembered));
            }
        }
        if found.len() > MAX_BACKENDS {
            break;
        }
    }
    found
}

/// Whether it is the Service through which pods reach the API server.
fn is_api_server(service: &ServiceRecord) -> bool {
    (&*service.name.0, &*service.name.1) == API_SERVER && !service.has_selector
}

/// Whether it is the slice that the API servers write of themselves, and see to; anybody with rights in its namespace may
/// write others beside it.
fn is_the_api_servers(slice: &SliceRecord) -> bool {
    (&*slice.name.0, &*slice.name.1) == API_SERVER
}

/// Who has an address, whatever a Service says of it.
fn really_at(address: IpAddr, occupants: &dyn Occupants) -> Backend {
    match occupants.at(address) {
        Some(Occupant::Workload { identity, .. }) => named(identity),
        Some(Occupant::Entity(number)) => Backend::Entity(number),
        None => Backend::Address(address),
    }
}

/// The slices that serve a port, and where.
fn listening<'s>(slices: &[&'s SliceRecord], port: &Port) -> Vec<(&'s SliceRecord, u16)> {
    let serves = |slice: &&'s SliceRecord| {
        let of = slice
            .ports
            .iter()
            .filter(|of| of.name == port.name && of.protocol == port.protocol);
        let slice = *slice;
        of.map(move |of| (slice, of.port.unwrap_or_else(|| aimed_at(port))))
            .collect::<Vec<_>>()
    };
    slices.iter().flat_map(serves).collect()
}

/// The API servers themselves, where they listen: their Service is the one place that tells them from their nodes.
fn api_servers(
    service: &ServiceRecord,
    slices: &[&SliceRecord],
    occupants: &dyn Occupants,
) -> BTreeMap<Place, Backends> {
    let mut places = BTreeMap::new();
    for port in &service.ports {
        let own = |(slice, _): &(&SliceRecord, u16)| is_the_api_servers(slice);
        for (slice, target) in listening(slices, port).into_iter().filter(own) {
            let pods = |at: &IpAddr| matches!(occupants.at(*at), Some(Occupant::Workload { .. }));
            for address in slice.addresses().filter(|at| !pods(at)).take(MAX_BACKENDS) {
                let place = Place {
                    address,
                    port: target,
                    protocol: port.protocol,
                };
                places.insert(
                    place,
                    Backends::from([(Backend::Entity(identity::KUBE_APISERVER), target)]),
                );
            }
        }
    }
    places
}

/// Who an endpoint is at one of its addresses; `None` where it is nobody that a connection could reach.
fn backend(
    address: IpAddr,
    endpoint: &Endpoint,
    occupants: &dyn Occupants,
    remembered: &mut Remembered,
) -> Option<Backend> {
    match (occupants.at(address), &endpoint.pod) {
        (Some(Occupant::Entity(number)), _) => Some(Backend::Entity(number)),
        // The address is another pod's by now, or still: one of the two who say so has not heard of it yet.
        (Some(Occupant::Workload { uid: Some(uid), .. }), Some(pod)) if uid != &**pod => {
            Some(Backend::Entity(identity::UNKNOWN))
        }
        (Some(Occupant::Workload { uid, identity }), pod) => {
            // Anybody may write any uid: only at an address that is known to be that pod's it is remembered, and of that
            // address alone.
            if let (Some(_), Some(pod), Some(id)) = (uid, pod, identity) {
                let places = remembered.entry(Arc::clone(pod)).or_default();
                places.insert(address, id.clone());
            }
            Some(named(identity))
        }
        (None, Some(pod)) => match remembered.get(pod).and_then(|places| places.get(&address)) {
            Some(id) => Some(Backend::Workload(id.clone())),
            None if endpoint.ready => Some(Backend::Entity(identity::UNKNOWN)),
            None => None,
        },
        (None, None) => Some(Backend::Address(address)),
    }
}

fn named(identity: Option<&SpiffeId>) -> Backend {
    identity.map_or(Backend::Entity(identity::UNKNOWN), |id| {
        Backend::Workload(id.clone())
    })
}

/// Where a port leads when no slice says.
fn aimed_at(port: &Port) -> u16 {
    match port.target {
        TargetPort::Number(number) => number,
        TargetPort::Named => port.port,
    }
}
