// SPDX-License-Identifier: Apache-2.0
//! What is read of Services and `EndpointSlice`s, and what is not.

use serde_json::json;

use super::*;

fn service(object: Value) -> ServiceRecord {
    serde_json::from_value::<ReadService>(object)
        .expect("understood")
        .0
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("literal")
}

#[test]
fn a_service_is_read() {
    let metadata = json!({"namespace": "hanzo", "name": "web", "uid": "u"});
    let record = service(json!({
        "metadata": metadata,
        "spec": {
            "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd96::1"], "selector": {"app": "web"},
            "externalIPs": ["198.51.100.1", "no address", "0.0.0.0"],
            "ports": [
                {"name": "http", "port": 80, "targetPort": "web"},
                {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 5353},
                {"name": "plain", "port": 81},
                {"name": "sctp", "port": 1, "protocol": "SCTP"},
                {"name": "absurd", "port": 70000},
            ],
        },
        "status": {"loadBalancer": {"ingress": [
            {"ip": "203.0.113.1"}, {"ip": "203.0.113.2", "ipMode": "Proxy"}, {"hostname": "lb.example.org"},
        ]}},
    }));
    assert_eq!(record.cluster_addresses, [ip("10.96.0.1"), ip("fd96::1")]);
    assert_eq!(record.external_addresses, [ip("198.51.100.1"), ip("203.0.113.1")]);
    let ports: Vec<_> = record
        .ports
        .iter()
        .map(|port| (port.port, port.protocol, port.target.clone()))
        .collect();
    assert_eq!(
        ports,
        [
            (80, 6, TargetPort::Named),
            (53, 17, TargetPort::Number(5353)),
            (81, 6, TargetPort::Number(81))
        ]
    );
    assert!(record.has_selector);
    for spec in [
        json!({"type": "ExternalName", "externalName": "example.org", "clusterIP": "10.96.0.1", "externalIPs": ["198.51.100.1"]}),
        json!({"clusterIP": "None", "clusterIPs": ["None"], "ports": [{"port": 80}]}),
        json!({"clusterIP": 7, "ports": "many"}),
        json!(null),
    ] {
        let record = service(json!({"metadata": metadata, "spec": spec}));
        assert!(
            record.cluster_addresses.is_empty() && record.external_addresses.is_empty(),
            "{record:?}"
        );
    }
}

#[test]
fn what_nodes_do_not_translate_is_outside() {
    for label in ELSEWHERE {
        let record = service(json!({
            "metadata": {"namespace": "hanzo", "name": "web", "uid": "u", "labels": {label: ""}},
            "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]},
        }));
        assert_eq!(
            (record.cluster_addresses, record.external_addresses),
            (vec![], vec![ip("10.96.0.1")])
        );
    }
}

#[test]
fn endpoints_that_may_be_given_connections_are_ready() {
    let read = |object: Value| (endpoint(&object).ready, endpoint(&object).has_odd_address);
    let at = |conditions: Value| read(json!({"addresses": ["10.0.0.1"], "conditions": conditions})).0;
    assert!(at(json!(null)) && at(json!({"ready": true})));
    assert!(!at(json!({"ready": false})) && !at(json!({"ready": false, "serving": true})));
    assert!(!at(
        json!({"ready": false, "serving": false, "terminating": true})
    ));
    assert!(at(json!({"ready": false, "terminating": true})));
    assert!(at(json!({"ready": false, "serving": true, "terminating": true})));
    assert!(!read(json!({"addresses": ["10.0.0.1"]})).1);
    assert!(read(json!({"addresses": ["203.0.113.009"]})).1);
}

#[test]
fn what_has_no_name_is_not_understood() {
    for object in [
        json!({}),
        json!(null),
        json!([]),
        json!({"metadata": {"namespace": "a", "name": "b"}}),
        json!({"metadata": {"namespace": "", "name": "b", "uid": "c"}}),
        json!({"metadata": {"namespace": 1, "name": "b", "uid": "c"}}),
    ] {
        assert!(
            serde_json::from_value::<ReadService>(object.clone()).is_err(),
            "{object}"
        );
        assert!(
            serde_json::from_value::<ReadSlice>(object.clone()).is_err(),
            "{object}"
        );
    }
}

#[test]
fn a_slice_is_read() {
    let read: ReadSlice = serde_json::from_value(json!({
        "metadata": {
            "namespace": "hanzo", "name": "web-x", "uid": "s", "labels": {OF_SERVICE: "web"},
            "ownerReferences": [{"kind": "Other", "uid": "o"}, {"kind": "Service", "uid": "u"}],
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}, {"port": null}, {"protocol": "SCTP", "port": 1}],
        "endpoints": [
            {"addresses": ["10.0.0.1"], "conditions": {"ready": false}, "targetRef": {"kind": "Pod", "uid": "p"}},
            {"addresses": ["::ffff:10.0.0.2", "web.example.org"], "targetRef": {"kind": "Pod"}},
            {"addresses": null, "conditions": {"ready": null}, "targetRef": {"kind": "Node", "uid": "n"}},
            7,
        ],
    }))
    .expect("understood");
    let slice = read.0;
    assert_eq!((&*slice.service, slice.owner.as_deref()), ("web", Some("u")));
    let ports: Vec<_> = slice.ports.iter().map(|port| (&*port.name, port.port)).collect();
    assert_eq!(ports, [("http", Some(8080)), ("", None)]);
    let endpoints: Vec<_> = slice
        .endpoints
        .iter()
        .map(|endpoint| {
            (
                endpoint.addresses.clone(),
                endpoint.pod.as_deref(),
                endpoint.ready,
            )
        })
        .collect();
    assert_eq!(
        endpoints,
        [
            (vec![ip("10.0.0.1")], Some("p"), false),
            (vec![ip("10.0.0.2")], Some(""), true),
            (vec![], None, true),
            (vec![], None, true),
        ]
    );
}
