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
mod tests;
