// SPDX-License-Identifier: Apache-2.0
//! Whoever may write Services and `EndpointSlice`s wants a place of theirs to be named after their own pods, and connections
//! to it to go somewhere else.

use super::*;

const MINE: &str = "10.0.0.1";
const ELSEWHERE: &str = "203.0.113.9";

fn pods() -> Pods {
    Pods::default().with(MINE, "mine", "evil")
}

fn lead(slices: Vec<SliceRecord>, pods: &Pods) -> Option<Vec<(Backend, u16)>> {
    let mut events = vec![add(service("web", "u", &["10.96.0.1"]))];
    events.extend(slices.into_iter().map(ends));
    at(&known(events, pods), "10.96.0.1", 80)
}

#[test]
fn a_uid_of_ones_own_names_no_other_address() {
    let both = [(MINE, Some("mine")), (ELSEWHERE, Some("mine"))];
    assert_eq!(
        lead(vec![slice("web", Some("u"), 8080, &both)], &pods()),
        Some(vec![workload("evil", 8080), (UNKNOWN, 8080)])
    );
    // Nor does a pod whose uid is not known lend its name to the uid that an endpoint claims.
    let mut nameless = Pods::default();
    nameless.0.insert(ip(MINE), (None, Some(id("victim"))));
    let endpoints = [(MINE, Some("mine"))];
    let mut services = known(
        vec![
            add(service("web", "u", &["10.96.0.1"])),
            ends(slice("web", Some("u"), 8080, &endpoints)),
        ],
        &nameless,
    );
    services.moved(ip(MINE));
    services.settle(&nameless.without(MINE));
    assert_eq!(at(&services, "10.96.0.1", 80), Some(vec![(UNKNOWN, 8080)]));
}

#[test]
fn slices_made_for_another_service_are_not_passed_over() {
    let own = slice("web", Some("u"), 8080, &[(MINE, Some("mine"))]);
    let mut foreign = slice("web", Some("another"), 8080, &[(ELSEWHERE, None)]);
    foreign.name = object("foreign");
    assert_eq!(
        lead(vec![own.clone(), foreign.clone()], &pods()),
        Some(vec![workload("evil", 8080), (UNKNOWN, 8080)])
    );
    foreign.endpoints.clear();
    assert_eq!(
        lead(vec![own, foreign], &pods()),
        Some(vec![workload("evil", 8080)])
    );
}

#[test]
fn an_address_that_is_not_understood_is_somebody() {
    let mut odd = slice("web", Some("u"), 8080, &[(MINE, Some("mine"))]);
    odd.endpoints[0].has_odd_address = true;
    assert_eq!(
        lead(vec![odd], &pods()),
        Some(vec![workload("evil", 8080), (UNKNOWN, 8080)])
    );
}

#[test]
fn an_address_outside_stands_for_who_is_really_there_at_any_time() {
    let mut web = service("web", "u", &[]);
    web.external_addresses = vec![ip("192.0.2.1"), ip(ELSEWHERE), ip("10.0.0.7")];
    let mut pods = pods();
    pods.1.insert(ip("192.0.2.1"), identity::REMOTE_NODE);
    let mine = slice("web", Some("u"), 8080, &[(MINE, Some("mine"))]);
    let mut services = known(vec![add(web), ends(mine)], &pods);
    let with = |really: Backend| Some(vec![workload("evil", 8080), (really, 80)]);
    assert_eq!(
        at(&services, "192.0.2.1", 80),
        with(Backend::Entity(identity::REMOTE_NODE))
    );
    assert_eq!(
        at(&services, ELSEWHERE, 80),
        with(Backend::Address(ip(ELSEWHERE)))
    );
    assert_eq!(
        at(&services, "10.0.0.7", 80),
        with(Backend::Address(ip("10.0.0.7")))
    );
    // A pod takes an address that was free.
    let pods = pods.with("10.0.0.7", "p7", "victim");
    services.moved(ip("10.0.0.7"));
    assert!(services.settle(&pods));
    assert_eq!(
        at(&services, "10.0.0.7", 80),
        with(Backend::Workload(id("victim")))
    );
}

#[test]
fn only_the_api_servers_say_where_they_are() {
    let mut api = service("kubernetes", "u", &["10.96.0.1"]);
    api.name.0 = Arc::from("default");
    api.has_selector = false;
    let mut theirs = slice("kubernetes", None, 443, &[(ELSEWHERE, None)]);
    theirs.name.0 = Arc::from("default");
    let mut own = slice("kubernetes", None, 6443, &[("192.0.2.1", None), (MINE, None)]);
    own.name = api.name.clone();
    let services = known(vec![add(api), ends(theirs), ends(own)], &pods());
    assert_eq!(at(&services, ELSEWHERE, 443), None);
    assert_eq!(at(&services, MINE, 6443), None);
    let named = (Backend::Entity(identity::KUBE_APISERVER), 6443);
    assert_eq!(at(&services, "192.0.2.1", 6443), Some(vec![named.clone()]));
    assert_eq!(
        at(&services, "10.96.0.1", 80),
        Some(vec![
            workload("evil", 6443),
            named,
            (Backend::Address(ip(ELSEWHERE)), 443)
        ])
    );
}

#[test]
fn one_service_does_not_take_the_room_of_the_others() {
    let mut greedy = service("greedy", "g", &["10.96.0.9"]);
    greedy.external_addresses = (0..200_u8).map(|last| IpAddr::from([1, 0, 0, last])).collect();
    greedy.ports = (1..=100)
        .map(|number| port("", number, TargetPort::Number(number)))
        .collect();
    let services = known(
        vec![add(greedy), add(service("web", "u", &["10.96.0.1"]))],
        &Pods::default(),
    );
    let places: Vec<_> = services.places().map(|(place, ..)| place).collect();
    assert_eq!(places.len(), MAX_PLACES_OF_ONE + 1);
    // Where there is not room for all, those of the cluster are there.
    let inside = places[..101].iter().map(|place| place.address);
    assert!(inside.eq([vec![ip("10.96.0.1")], vec![ip("10.96.0.9"); 100]].concat()));
}
