// SPDX-License-Identifier: Apache-2.0
//! What one Service comes to.

use std::collections::{BTreeMap, HashMap};
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

/// The places of a Service and who is behind them.
pub(super) fn claimed<'s>(
    service: &ServiceRecord,
    slices: impl Iterator<Item = &'s SliceRecord>,
    occupants: &dyn Occupants,
    remembered: &mut HashMap<Arc<str>, SpiffeId>,
) -> BTreeMap<Place, Backends> {
    // What was made for an earlier Service of that name says nothing about this one.
    let own = |slice: &&SliceRecord| slice.owner.as_ref().is_none_or(|owner| *owner == service.uid);
    let slices: Vec<&SliceRecord> = slices.filter(own).collect();
    let mut claimed = BTreeMap::new();
    let virtual_addresses = service
        .cluster_addresses
        .iter()
        .map(|address| (*address, false))
        .chain(service.external_addresses.iter().map(|address| (*address, true)));
    let is_api_server = (&*service.name.0, &*service.name.1) == API_SERVER && !service.has_selector;
    for (address, external) in virtual_addresses {
        for port in &service.ports {
            let mut backends = Backends::new();
            for (slice, target) in listening(&slices, port) {
                for endpoint in &slice.endpoints {
                    let same_family = endpoint
                        .addresses
                        .iter()
                        .filter(|at| at.is_ipv4() == address.is_ipv4());
                    let found = same_family.filter_map(|at| backend(*at, endpoint, occupants, remembered));
                    backends.extend(found.map(|backend| (backend, target)));
                }
            }
            if is_api_server {
                backends = backends
                    .into_iter()
                    .map(|(_, port)| (Backend::Entity(identity::KUBE_APISERVER), port))
                    .collect();
            }
            // Anybody may write any address there. Where it is somebody's, the connection may go to them as well.
            if external && let Some(Occupant::Workload { identity, .. }) = occupants.at(address) {
                backends.insert((named(identity), port.port));
            }
            if backends.is_empty() || backends.len() > MAX_BACKENDS {
                backends = Backends::from([(Backend::Entity(identity::UNKNOWN), aimed_at(port))]);
            }
            let place = Place {
                address,
                port: port.port,
                protocol: port.protocol,
            };
            claimed
                .entry(place)
                .or_insert_with(Backends::new)
                .extend(backends);
        }
    }
    if is_api_server {
        claimed.extend(api_servers(service, &slices));
    }
    claimed
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
fn api_servers(service: &ServiceRecord, slices: &[&SliceRecord]) -> BTreeMap<Place, Backends> {
    let mut places = BTreeMap::new();
    for port in &service.ports {
        for (slice, target) in listening(slices, port) {
            for address in slice.addresses() {
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
    remembered: &mut HashMap<Arc<str>, SpiffeId>,
) -> Option<Backend> {
    match (occupants.at(address), &endpoint.pod) {
        (Some(Occupant::Entity(number)), _) => Some(Backend::Entity(number)),
        // The address is another pod's by now, or still: one of the two who say so has not heard of it yet.
        (Some(Occupant::Workload { uid: Some(uid), .. }), Some(pod)) if uid != &**pod => {
            Some(Backend::Entity(identity::UNKNOWN))
        }
        (Some(Occupant::Workload { identity, .. }), pod) => {
            if let (Some(pod), Some(id)) = (pod, identity) {
                remembered.insert(Arc::clone(pod), id.clone());
            }
            Some(named(identity))
        }
        (None, Some(pod)) => match remembered.get(pod) {
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
