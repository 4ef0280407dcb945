// SPDX-License-Identifier: Apache-2.0
//! What of a Service and of an `EndpointSlice` matters here.

use std::net::IpAddr;
use std::sync::Arc;

use super::ObjectName;

/// A Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceRecord {
    /// Namespace and name.
    pub name: ObjectName,
    /// Which of those that had that name, one after the other.
    pub uid: Arc<str>,
    /// Its virtual addresses in the cluster; none for a headless or an external one.
    pub cluster_addresses: Vec<IpAddr>,
    /// Addresses outside that nodes translate as well: `externalIPs`, and those of a load balancer that says so.
    pub external_addresses: Vec<IpAddr>,
    /// Its ports over TCP and UDP.
    pub ports: Vec<Port>,
    /// Whether it finds its backends by itself.
    pub has_selector: bool,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its name; empty where it has none.
    pub name: Arc<str>,
    /// IP protocol number.
    pub protocol: u8,
    /// The virtual port.
    pub port: u16,
    /// Where backends listen, as the Service says.
    pub target: TargetPort,
}

/// `targetPort`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetPort {
    /// That port.
    Number(u16),
    /// Whatever each pod calls so: only the slices know.
    Named,
}

/// An `EndpointSlice`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceRecord {
    /// Namespace and name.
    pub name: ObjectName,
    /// Which of those that had that name.
    pub uid: Arc<str>,
    /// The name of its Service, in the same namespace.
    pub service: Arc<str>,
    /// The uid of the Service that it was made for, if it says so.
    pub owner: Option<Arc<str>>,
    /// The ports of all its endpoints.
    pub ports: Vec<SlicePort>,
    /// The endpoints.
    pub endpoints: Vec<Endpoint>,
}

/// A port of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// The name of the Service's port.
    pub name: Arc<str>,
    /// IP protocol number.
    pub protocol: u8,
    /// Where the endpoints listen; `None`: at every port.
    pub port: Option<u16>,
}

/// An endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// It has one that cannot be read here, and may be read by whoever translates.
    pub has_odd_address: bool,
    /// The uid of the pod that it says it is; empty where it names a pod without one.
    pub pod: Option<Arc<str>>,
    /// Whether it may be given new connections: also while it ends, since that is where they go when nobody else is there.
    pub ready: bool,
}

impl SliceRecord {
    /// Namespace and name of its Service.
    pub(super) fn service_name(&self) -> ObjectName {
        (Arc::clone(&self.name.0), Arc::clone(&self.service))
    }

    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.endpoints
            .iter()
            .flat_map(|endpoint| endpoint.addresses.iter().copied())
    }

    pub(super) fn pods(&self) -> impl Iterator<Item = &Arc<str>> {
        self.endpoints.iter().filter_map(|endpoint| endpoint.pod.as_ref())
    }
}

/// Something that the API said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServiceEvent {
    /// A Service as it is now.
    Service(Box<ServiceRecord>),
    /// A Service is gone: that one, not another of its name.
    ServiceGone {
        /// Which.
        name: ObjectName,
        /// Its uid.
        uid: Arc<str>,
    },
    /// An `EndpointSlice` as it is now.
    Slice(Box<SliceRecord>),
    /// An `EndpointSlice` is gone.
    SliceGone {
        /// Which.
        name: ObjectName,
        /// Its uid.
        uid: Arc<str>,
    },
    /// All Services there are: others are gone.
    Services(Vec<ServiceRecord>),
    /// All `EndpointSlice`s there are: others are gone.
    Slices(Vec<SliceRecord>),
}
