// SPDX-License-Identifier: Apache-2.0
//! More than is kept: it costs whoever wrote it, and hides nobody.

use super::*;

const ROOM: Amount = Amount {
    services: 8,
    slices: 8,
    endpoints: 16,
};

fn services() -> Services {
    let mut services = Services::with_room(ROOM);
    services.apply(ServiceEvent::Service(Box::new(service(
        "web",
        "u",
        &["10.96.0.1"],
    ))));
    services
}

fn there(services: &mut Services, pods: &Pods) -> Option<Backends> {
    services.settle(pods);
    let found = services.places().next();
    found.map(|(_, _, backends)| backends)
}

fn with_unknown(backends: &Backends) -> bool {
    backends
        .iter()
        .any(|(backend, _)| *backend == Backend::Entity(identity::UNKNOWN))
}

#[test]
fn a_service_with_an_endpoint_that_is_not_kept_leads_to_nobody_until_it_is() {
    let pods = Pods::default()
        .with("10.0.0.1", "p", "web")
        .with("10.0.0.2", "q", "other");
    let mut services = services();
    let apply =
        |services: &mut Services, slice: SliceRecord| services.apply(ServiceEvent::Slice(Box::new(slice)));
    apply(
        &mut services,
        slice("web", None, 8080, &[("10.0.0.1", Some("p"))]),
    );
    let whole = there(&mut services, &pods).expect("a place");
    assert_eq!(whole, Backends::from([(Backend::Workload(id("web")), 8080)]));
    // One namespace has a quarter: this one has room for one slice more, of three endpoints.
    let many = [("10.0.0.2", Some("q")); 4];
    let hidden = slice("web", None, 8081, &many);
    apply(&mut services, hidden.clone());
    let lacking = there(&mut services, &pods).expect("a place");
    assert!(
        with_unknown(&lacking) && lacking.is_superset(&whole),
        "{lacking:?}"
    );
    assert_eq!(services.refused(), 1);
    // Said again, it is the same; smaller, it has room.
    apply(&mut services, hidden);
    assert!(there(&mut services, &pods).is_some_and(|backends| with_unknown(&backends)));
    apply(&mut services, slice("web", None, 8081, &many[..3]));
    let all = there(&mut services, &pods).expect("a place");
    assert!(!with_unknown(&all) && all.len() == 2, "{all:?}");
    // A third has none, until one of the others is gone and it is told of anew, or it goes itself.
    let third = slice("web", None, 8082, &[]);
    apply(&mut services, third.clone());
    assert!(there(&mut services, &pods).is_some_and(|backends| with_unknown(&backends)));
    let (name, uid) = (third.name.clone(), Arc::clone(&third.uid));
    services.apply(ServiceEvent::SliceGone { name, uid });
    assert_eq!(there(&mut services, &pods), Some(all.clone()));
    apply(&mut services, third.clone());
    services.apply(ServiceEvent::Slices(vec![
        slice("web", None, 8080, &[("10.0.0.1", Some("p"))]),
        third,
    ]));
    assert_eq!(there(&mut services, &pods), Some(whole));
}

#[test]
fn one_namespace_leaves_room_for_the_others() {
    let mut services = services();
    for number in 0..20 {
        services.apply(ServiceEvent::Service(Box::new(service(
            &format!("more-{number}"),
            "u",
            &[],
        ))));
    }
    assert_eq!((services.counts().0, services.refused()), (2, 19));
    let mut others = service("web", "u", &["10.96.0.2"]);
    others.name.0 = "another".into();
    services.apply(ServiceEvent::Service(Box::new(others)));
    assert_eq!(services.counts().0, 3);
    // What goes gives its room back.
    let (name, uid) = (object("web"), Arc::from("u"));
    services.apply(ServiceEvent::ServiceGone { name, uid });
    services.apply(ServiceEvent::Service(Box::new(service("late", "u", &[]))));
    assert_eq!((services.counts().0, services.refused()), (3, 19));
}
