// SPDX-License-Identifier: Apache-2.0
//! Services in every order that the API may tell of them.

mod hiding;
mod orders;
mod room;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use zt_common::identity;

use super::*;

const TCP: u8 = 6;

/// Who has which address: uid and name.
#[derive(Clone, Debug, Default)]
struct Pods(
    BTreeMap<IpAddr, (Option<String>, Option<SpiffeId>)>,
    BTreeMap<IpAddr, u64>,
);

impl Occupants for Pods {
    fn at(&self, address: IpAddr) -> Option<Occupant<'_>> {
        if let Some(entity) = self.1.get(&address) {
            return Some(Occupant::Entity(*entity));
        }
        let (uid, identity) = self.0.get(&address)?;
        Some(Occupant::Workload {
            uid: uid.as_deref(),
            identity: identity.as_ref(),
        })
    }
}

impl Pods {
    fn with(mut self, address: &str, uid: &str, name: &str) -> Self {
        self.0.insert(ip(address), (Some(uid.to_owned()), Some(id(name))));
        self
    }

    fn without(mut self, address: &str) -> Self {
        self.0.remove(&ip(address));
        self
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("a literal address")
}

fn id(name: &str) -> SpiffeId {
    SpiffeId::parse(&format!("spiffe://hanzo.ai/c/n/{name}")).expect("a literal")
}

fn object(name: &str) -> ObjectName {
    (Arc::from("ns"), Arc::from(name))
}

fn port(name: &str, port: u16, target: TargetPort) -> Port {
    Port {
        name: Arc::from(name),
        protocol: TCP,
        port,
        target,
    }
}

fn service(name: &str, uid: &str, addresses: &[&str]) -> ServiceRecord {
    ServiceRecord {
        name: object(name),
        uid: Arc::from(uid),
        cluster_addresses: addresses.iter().map(|text| ip(text)).collect(),
        external_addresses: Vec::new(),
        ports: vec![port("", 80, TargetPort::Number(8080))],
        has_selector: true,
    }
}

fn slice(service: &str, owner: Option<&str>, at: u16, endpoints: &[(&str, Option<&str>)]) -> SliceRecord {
    SliceRecord {
        name: object(&format!("{service}-{at}")),
        uid: Arc::from(format!("slice-{service}-{at}")),
        service: Arc::from(service),
        owner: owner.map(Arc::from),
        ports: vec![SlicePort {
            name: Arc::from(""),
            protocol: TCP,
            port: Some(at),
        }],
        endpoints: endpoints
            .iter()
            .map(|(address, pod)| Endpoint {
                addresses: vec![ip(address)],
                pod: pod.map(Arc::from),
                has_odd_address: false,
                ready: true,
            })
            .collect(),
    }
}

fn known(events: Vec<ServiceEvent>, pods: &Pods) -> Services {
    let mut services = Services::default();
    for event in events {
        services.apply(event);
    }
    services.settle(pods);
    services
}

fn at(services: &Services, address: &str, port: u16) -> Option<Vec<(Backend, u16)>> {
    let mut places = services.places();
    let found = places.find(|(place, ..)| (place.address, place.port) == (ip(address), port));
    found.map(|(_, _, backends)| backends.into_iter().collect())
}

fn workload(name: &str, port: u16) -> (Backend, u16) {
    (Backend::Workload(id(name)), port)
}

const UNKNOWN: Backend = Backend::Entity(identity::UNKNOWN);

fn add(service: ServiceRecord) -> ServiceEvent {
    ServiceEvent::Service(Box::new(service))
}

fn ends(slice: SliceRecord) -> ServiceEvent {
    ServiceEvent::Slice(Box::new(slice))
}

#[test]
fn each_family_leads_to_the_endpoints_of_its_own() {
    let pods = Pods::default()
        .with("10.0.0.1", "p1", "a")
        .with("fd00::1", "p1", "a")
        .with("fd00::2", "p2", "b");
    let mut six = slice(
        "web",
        Some("u"),
        8080,
        &[("fd00::1", Some("p1")), ("fd00::2", Some("p2"))],
    );
    six.name = object("web-six");
    let services = known(
        vec![
            add(service("web", "u", &["10.96.0.1", "fd96::1"])),
            ends(slice("web", Some("u"), 8080, &[("10.0.0.1", Some("p1"))])),
            ends(six),
        ],
        &pods,
    );
    assert_eq!(at(&services, "10.96.0.1", 80), Some(vec![workload("a", 8080)]));
    assert_eq!(
        at(&services, "fd96::1", 80),
        Some(vec![workload("a", 8080), workload("b", 8080)])
    );
    assert_eq!(services.cluster_addresses().count(), 2);
    assert_eq!(services.counts(), (1, 2));
}

#[test]
fn a_named_port_leads_where_each_slice_says() {
    let pods = Pods::default()
        .with("10.0.0.1", "p1", "a")
        .with("10.0.0.2", "p2", "a");
    let mut web = service("web", "u", &["10.96.0.1"]);
    web.ports = vec![port("", 80, TargetPort::Named)];
    let services = known(
        vec![
            add(web),
            ends(slice("web", Some("u"), 8080, &[("10.0.0.1", Some("p1"))])),
            ends(slice("web", Some("u"), 9090, &[("10.0.0.2", Some("p2"))])),
        ],
        &pods,
    );
    assert_eq!(
        at(&services, "10.96.0.1", 80),
        Some(vec![workload("a", 8080), workload("a", 9090)])
    );
}

#[test]
fn headless_and_external_services_have_no_place() {
    let services = known(
        vec![
            add(service("headless", "u", &[])),
            ends(slice("headless", Some("u"), 8080, &[("10.0.0.1", Some("p1"))])),
        ],
        &Pods::default(),
    );
    assert_eq!(services.counts(), (1, 0));
}

#[test]
fn nobody_behind_a_service_is_unknown_and_not_the_world() {
    let mut named = service("named", "u2", &["10.96.0.2"]);
    named.ports = vec![port("http", 80, TargetPort::Named)];
    let services = known(
        vec![add(service("web", "u", &["10.96.0.1"])), add(named)],
        &Pods::default(),
    );
    assert_eq!(at(&services, "10.96.0.1", 80), Some(vec![(UNKNOWN, 8080)]));
    assert_eq!(at(&services, "10.96.0.2", 80), Some(vec![(UNKNOWN, 80)]));
    assert_eq!(at(&services, "10.96.0.1", 81), None);
}

#[test]
fn endpoints_without_a_pod_are_their_address_or_whoever_has_it() {
    let mut pods = Pods::default().with("10.0.0.9", "p9", "b");
    pods.1.insert(ip("192.0.2.1"), identity::REMOTE_NODE);
    let mut outside = service("outside", "u", &["10.96.0.1"]);
    outside.has_selector = false;
    let endpoints = [("203.0.113.7", None), ("10.0.0.9", None), ("192.0.2.1", None)];
    let services = known(
        vec![add(outside), ends(slice("outside", None, 443, &endpoints))],
        &pods,
    );
    assert_eq!(
        at(&services, "10.96.0.1", 80),
        Some(vec![
            workload("b", 443),
            (Backend::Entity(identity::REMOTE_NODE), 443),
            (Backend::Address(ip("203.0.113.7")), 443),
        ])
    );
}

#[test]
fn the_api_server_is_named_at_its_service_and_where_it_listens() {
    let mut pods = Pods::default();
    pods.1.insert(ip("192.0.2.1"), identity::REMOTE_NODE);
    let rename = |name: &ObjectName| (Arc::from("default"), Arc::clone(&name.1));
    let mut api = service("kubernetes", "u", &["10.96.0.1"]);
    api.name = rename(&api.name);
    api.has_selector = false;
    let mut slice = slice("kubernetes", None, 6443, &[("192.0.2.1", None)]);
    slice.name = rename(&api.name);
    let services = known(vec![add(api.clone()), ends(slice.clone())], &pods);
    let named = Some(vec![(Backend::Entity(identity::KUBE_APISERVER), 6443)]);
    assert_eq!(at(&services, "10.96.0.1", 80), named);
    assert_eq!(at(&services, "192.0.2.1", 6443), named);
    // Whoever calls a Service of their own so, elsewhere, names nobody by it.
    api.name.0 = Arc::from("theirs");
    slice.name.0 = Arc::from("theirs");
    let services = known(vec![add(api), ends(slice)], &pods);
    assert_eq!(
        at(&services, "10.96.0.1", 80),
        Some(vec![(Backend::Entity(identity::REMOTE_NODE), 6443)])
    );
    assert_eq!(at(&services, "192.0.2.1", 6443), None);
}

#[test]
fn an_external_address_that_is_a_pods_names_that_pod_as_well() {
    let pods = Pods::default()
        .with("10.0.0.1", "p1", "mine")
        .with("10.0.0.2", "p2", "victim");
    let mut web = service("web", "u", &["10.96.0.1"]);
    web.external_addresses = vec![ip("10.0.0.2"), ip("198.51.100.1")];
    let services = known(
        vec![
            add(web),
            ends(slice("web", Some("u"), 8080, &[("10.0.0.1", Some("p1"))])),
        ],
        &pods,
    );
    assert_eq!(
        at(&services, "198.51.100.1", 80),
        Some(vec![
            workload("mine", 8080),
            (Backend::Address(ip("198.51.100.1")), 80)
        ]),
        "not every node translates it"
    );
    assert_eq!(
        at(&services, "10.0.0.2", 80),
        Some(vec![workload("mine", 8080), workload("victim", 80)])
    );
}

#[test]
fn an_address_given_to_another_pod_never_has_the_old_name() {
    let before = Pods::default().with("10.0.0.1", "old", "a");
    let old = || slice("web", Some("u"), 8080, &[("10.0.0.1", Some("old"))]);
    let new = || slice("web", Some("u"), 8080, &[("10.0.0.1", Some("new"))]);
    let start = || {
        known(
            vec![add(service("web", "u", &["10.96.0.1"])), ends(old())],
            &before,
        )
    };
    let after = before.clone().with("10.0.0.1", "new", "b");
    // The pod first.
    let mut services = start();
    services.moved(ip("10.0.0.1"));
    assert!(services.settle(&after));
    assert_eq!(at(&services, "10.96.0.1", 80), Some(vec![(UNKNOWN, 8080)]));
    services.apply(ends(new()));
    assert!(services.settle(&after));
    assert_eq!(at(&services, "10.96.0.1", 80), Some(vec![workload("b", 8080)]));
    // The endpoint first.
    let mut services = start();
    services.apply(ends(new()));
    services.settle(&before);
    assert_eq!(at(&services, "10.96.0.1", 80), Some(vec![(UNKNOWN, 8080)]));
    services.moved(ip("10.0.0.1"));
    services.settle(&after);
    assert_eq!(at(&services, "10.96.0.1", 80), Some(vec![workload("b", 8080)]));
}

#[test]
fn a_pod_that_is_gone_is_remembered_while_its_endpoint_is_there() {
    let pods = Pods::default()
        .with("10.0.0.1", "p1", "a")
        .with("10.0.0.2", "p2", "a");
    let both = slice(
        "web",
        Some("u"),
        8080,
        &[("10.0.0.1", Some("p1")), ("10.0.0.2", Some("p2"))],
    );
    let mut services = known(vec![add(service("web", "u", &["10.96.0.1"])), ends(both)], &pods);
    let pods = pods.without("10.0.0.1");
    services.moved(ip("10.0.0.1"));
    assert!(!services.settle(&pods), "it is still whom the endpoint is about");
    let mut ending = slice(
        "web",
        Some("u"),
        8080,
        &[("10.0.0.1", Some("p1")), ("10.0.0.2", Some("p2"))],
    );
    ending.endpoints[0].ready = false;
    services.apply(ends(ending));
    assert!(!services.settle(&pods), "the endpoint still speaks of it");
    // And is nobody any more once another has the address.
    let pods = pods.with("10.0.0.1", "p3", "b");
    services.moved(ip("10.0.0.1"));
    assert!(services.settle(&pods));
    assert_eq!(
        at(&services, "10.96.0.1", 80),
        Some(vec![workload("a", 8080), (UNKNOWN, 8080)])
    );
    // A pod that was never seen is nobody; one that takes no connections either does not matter.
    let mut unseen = slice(
        "web",
        Some("u"),
        8080,
        &[("10.0.0.2", Some("p2")), ("10.0.0.9", Some("p9"))],
    );
    services.apply(ends(unseen.clone()));
    services.settle(&pods);
    assert_eq!(
        at(&services, "10.96.0.1", 80),
        Some(vec![workload("a", 8080), (UNKNOWN, 8080)])
    );
    unseen.endpoints[1].ready = false;
    services.apply(ends(unseen));
    services.settle(&pods);
    assert_eq!(at(&services, "10.96.0.1", 80), Some(vec![workload("a", 8080)]));
}

#[test]
fn a_service_made_anew_under_its_name_has_nothing_of_the_old_one() {
    let pods = Pods::default().with("10.0.0.1", "p1", "a");
    let mut services = known(
        vec![
            add(service("web", "old", &["10.96.0.1"])),
            ends(slice("web", Some("old"), 8080, &[("10.0.0.1", Some("p1"))])),
        ],
        &pods,
    );
    services.apply(add(service("web", "new", &["10.96.0.1"])));
    services.settle(&pods);
    assert_eq!(at(&services, "10.96.0.1", 80), Some(vec![(UNKNOWN, 8080)]));
    // Word of the old one's end comes late.
    services.apply(ServiceEvent::ServiceGone {
        name: object("web"),
        uid: Arc::from("old"),
    });
    services.settle(&pods);
    assert_eq!(at(&services, "10.96.0.1", 80), Some(vec![(UNKNOWN, 8080)]));
}
