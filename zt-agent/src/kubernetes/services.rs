// SPDX-License-Identifier: Apache-2.0
//! What is read of Services and `EndpointSlice`s.

use std::net::IpAddr;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;
use tokio::sync::mpsc;

use super::{Client, Collection, Freshness, Said, Timing, follow};
use crate::identity::services::{
    Endpoint, ObjectName, Port, ServiceEvent, ServiceRecord, SlicePort, SliceRecord, TargetPort,
};

/// The label by which a slice says whose it is.
const OF_SERVICE: &str = "kubernetes.io/service-name";
/// The labels of a Service that nodes do not translate.
const ELSEWHERE: [&str; 2] = [
    "service.kubernetes.io/service-proxy-name",
    "service.kubernetes.io/headless",
];
/// What is sent in one piece at most.
const BATCH: usize = 1024;

/// All Services.
pub fn services() -> Collection {
    Collection {
        name: "services",
        path: "/api/v1/services".to_owned(),
        field_selector: None,
    }
}

/// All `EndpointSlice`s.
pub fn slices() -> Collection {
    Collection {
        name: "endpointslices",
        path: "/apis/discovery.k8s.io/v1/endpointslices".to_owned(),
        field_selector: None,
    }
}

/// Follows both, and tells of them in pieces, until nobody listens any more.
pub async fn follow_services(
    client: Client,
    timing: Timing,
    freshness: Arc<Freshness>,
    out: mpsc::Sender<Vec<ServiceEvent>>,
) {
    let (to_services, mut of_services) = mpsc::channel::<Said<ReadService>>(BATCH);
    let (to_slices, mut of_slices) = mpsc::channel::<Said<ReadSlice>>(BATCH);
    let first = follow(
        client.clone(),
        services(),
        timing,
        Arc::clone(&freshness),
        to_services,
    );
    let second = follow(client, slices(), timing, freshness, to_slices);
    let telling = async move {
        loop {
            let event = tokio::select! {
                Some(said) = of_services.recv() => service_event(said),
                Some(said) = of_slices.recv() => slice_event(said),
                else => return,
            };
            let mut batch = vec![event];
            while batch.len() < BATCH {
                let more = of_services.try_recv().map(service_event);
                let more = more.or_else(|_| of_slices.try_recv().map(slice_event));
                match more {
                    Ok(event) => batch.push(event),
                    Err(_) => break,
                }
            }
            if out.send(batch).await.is_err() {
                return;
            }
        }
    };
    // The followers end when what they tell is not taken any more.
    tokio::join!(first, second, telling);
}

fn service_event(said: Said<ReadService>) -> ServiceEvent {
    match said {
        Said::All(all) => ServiceEvent::Services(all.into_iter().map(|ReadService(record)| record).collect()),
        Said::Applied(ReadService(record)) => ServiceEvent::Service(Box::new(record)),
        Said::Deleted(ReadService(record)) => ServiceEvent::ServiceGone {
            name: record.name,
            uid: record.uid,
        },
    }
}

fn slice_event(said: Said<ReadSlice>) -> ServiceEvent {
    match said {
        Said::All(all) => ServiceEvent::Slices(all.into_iter().map(|ReadSlice(record)| record).collect()),
        Said::Applied(ReadSlice(record)) => ServiceEvent::Slice(Box::new(record)),
        Said::Deleted(ReadSlice(record)) => ServiceEvent::SliceGone {
            name: record.name,
            uid: record.uid,
        },
    }
}

/// A Service, read from what the API says. One without a name or a uid is not understood; anything else that makes no
/// sense is as if it were not there.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Value")]
pub struct ReadService(pub ServiceRecord);

/// An `EndpointSlice`, read likewise.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Value")]
pub struct ReadSlice(pub SliceRecord);

impl TryFrom<Value> for ReadService {
    type Error = String;

    fn try_from(object: Value) -> Result<Self, String> {
        let (name, uid) = identified(&object)?;
        let spec = &object["spec"];
        let is_external = spec["type"] == "ExternalName";
        let several = addresses(&spec["clusterIPs"]);
        let cluster_addresses = if several.is_empty() {
            address(&spec["clusterIP"]).into_iter().collect()
        } else {
            several
        };
        // A headless one has backends of its own, at their own addresses.
        let none = is_external || cluster_addresses.is_empty();
        let mut external_addresses = addresses(&spec["externalIPs"]);
        let ingress = list(&object["status"]["loadBalancer"]["ingress"]);
        // `Proxy`: what goes there leaves the node as it is.
        let translated = ingress.iter().filter(|ingress| ingress["ipMode"] != "Proxy");
        external_addresses.extend(translated.filter_map(|ingress| address(&ingress["ip"])));
        let mut cluster_addresses = cluster_addresses;
        // Those that nodes leave to somebody else's translator, of which nothing is known here.
        let labels = &object["metadata"]["labels"];
        if ELSEWHERE.iter().any(|label| !labels[label].is_null()) {
            external_addresses.append(&mut cluster_addresses);
        }
        external_addresses.retain(|external| !cluster_addresses.contains(external));
        let ports = list(&spec["ports"]).iter().filter_map(port).collect();
        Ok(Self(ServiceRecord {
            name,
            uid,
            cluster_addresses: if none { Vec::new() } else { cluster_addresses },
            external_addresses: if none { Vec::new() } else { external_addresses },
            ports: if none { Vec::new() } else { ports },
            has_selector: spec["selector"]
                .as_object()
                .is_some_and(|selector| !selector.is_empty()),
        }))
    }
}

impl TryFrom<Value> for ReadSlice {
    type Error = String;

    fn try_from(object: Value) -> Result<Self, String> {
        let (name, uid) = identified(&object)?;
        let metadata = &object["metadata"];
        let owners = list(&metadata["ownerReferences"]);
        let owner = owners.iter().find(|owner| owner["kind"] == "Service");
        Ok(Self(SliceRecord {
            name,
            uid,
            // One that is no Service's has endpoints for nobody.
            service: metadata["labels"][OF_SERVICE].as_str().unwrap_or_default().into(),
            owner: owner.and_then(|owner| owner["uid"].as_str()).map(Arc::from),
            ports: list(&object["ports"]).iter().filter_map(slice_port).collect(),
            endpoints: list(&object["endpoints"]).iter().map(endpoint).collect(),
        }))
    }
}

fn identified(object: &Value) -> Result<(ObjectName, Arc<str>), String> {
    let metadata = &object["metadata"];
    let text = |field: &str| -> Result<Arc<str>, String> {
        let text = metadata[field].as_str().filter(|text| !text.is_empty());
        text.map(Arc::from)
            .ok_or_else(|| format!("metadata.{field} is missing"))
    };
    Ok(((text("namespace")?, text("name")?), text("uid")?))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn address(value: &Value) -> Option<IpAddr> {
    let address: IpAddr = value.as_str()?.parse().ok()?;
    let address = address.to_canonical();
    // Nobody is reached there but oneself.
    (!address.is_unspecified() && !address.is_loopback()).then_some(address)
}

fn addresses(value: &Value) -> Vec<IpAddr> {
    list(value).iter().filter_map(address).collect()
}

fn number(value: &Value) -> Option<u16> {
    u16::try_from(value.as_u64()?).ok().filter(|port| *port != 0)
}

/// IP protocol number; `None` for one that no policy speaks about.
fn protocol(value: &Value) -> Option<u8> {
    match value.as_str() {
        None | Some("TCP") => Some(6),
        Some("UDP") => Some(17),
        Some(_) => None,
    }
}

fn port(value: &Value) -> Option<Port> {
    let port = number(&value["port"])?;
    let target = match &value["targetPort"] {
        Value::String(text) => text
            .parse()
            .ok()
            .filter(|port| *port != 0)
            .map_or(TargetPort::Named, TargetPort::Number),
        other => TargetPort::Number(number(other).unwrap_or(port)),
    };
    Some(Port {
        name: value["name"].as_str().unwrap_or_default().into(),
        protocol: protocol(&value["protocol"])?,
        port,
        target,
    })
}

fn slice_port(value: &Value) -> Option<SlicePort> {
    Some(SlicePort {
        name: value["name"].as_str().unwrap_or_default().into(),
        protocol: protocol(&value["protocol"])?,
        port: number(&value["port"]),
    })
}

fn endpoint(value: &Value) -> Endpoint {
    let target = &value["targetRef"];
    let is_pod = target["kind"] == "Pod";
    let read = addresses(&value["addresses"]);
    let conditions = &value["conditions"];
    // What is not said is so, except that it ends.
    let says = |condition: &str, otherwise| conditions[condition].as_bool().unwrap_or(otherwise);
    Endpoint {
        has_odd_address: list(&value["addresses"]).len() != read.len(),
        addresses: read,
        // A pod without a uid is one that nobody is.
        pod: is_pod.then(|| target["uid"].as_str().unwrap_or_default().into()),
        ready: says("ready", true) || (says("serving", true) && says("terminating", false)),
    }
}

#[cfg(test)]
mod tests {
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
}
