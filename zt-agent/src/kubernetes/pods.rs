// SPDX-License-Identifier: Apache-2.0
//! What is read of a pod.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::Collection;
use crate::identity::kubernetes::{Pod, Qos, STATIC_NAMESPACE};

/// The annotation by which the API's copy of a static pod bears the uid that the kubelet knows it by.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// The collections of pods.
pub(super) const COLLECTIONS: [&str; 2] = ["node-pods", "pods"];

/// The pods of one node.
pub fn of_node(node: &str) -> Collection {
    Collection {
        name: COLLECTIONS[0],
        path: "/api/v1/pods".to_owned(),
        field_selector: Some(format!("spec.nodeName={node}")),
    }
}

/// The pods of all other nodes.
pub fn of_others(node: &str) -> Collection {
    Collection {
        name: COLLECTIONS[1],
        path: "/api/v1/pods".to_owned(),
        field_selector: Some(format!("spec.nodeName!={node}")),
    }
}

/// A pod, read from what the API says.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(from = "ApiPod")]
pub struct ReadPod(pub Pod);

/// A pod as the API has it, as far as it is of interest. A field that is missing or makes no sense is empty.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ApiPod {
    #[serde(deserialize_with = "lenient")]
    metadata: Metadata,
    #[serde(deserialize_with = "lenient")]
    spec: Spec,
    #[serde(deserialize_with = "lenient")]
    status: Status,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Metadata {
    #[serde(deserialize_with = "lenient")]
    name: String,
    #[serde(deserialize_with = "lenient")]
    namespace: String,
    #[serde(deserialize_with = "lenient")]
    uid: String,
    #[serde(deserialize_with = "lenient")]
    resource_version: String,
    #[serde(deserialize_with = "lenient")]
    annotations: BTreeMap<String, Value>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Spec {
    #[serde(deserialize_with = "lenient")]
    node_name: String,
    #[serde(deserialize_with = "lenient")]
    service_account_name: String,
    #[serde(deserialize_with = "lenient")]
    host_network: bool,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Status {
    #[serde(deserialize_with = "lenient")]
    phase: String,
    #[serde(deserialize_with = "lenient", rename = "qosClass")]
    qos_class: String,
    #[serde(deserialize_with = "lenient", rename = "podIP")]
    pod_ip: String,
    #[serde(deserialize_with = "lenient", rename = "podIPs")]
    pod_ips: Vec<Ip>,
    #[serde(deserialize_with = "lenient", rename = "hostIP")]
    host_ip: String,
    #[serde(deserialize_with = "lenient", rename = "hostIPs")]
    host_ips: Vec<Ip>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Ip {
    #[serde(deserialize_with = "lenient")]
    ip: String,
}

/// The value, or none where it is of another kind.
fn lenient<'de, D: Deserializer<'de>, T: DeserializeOwned + Default>(deserializer: D) -> Result<T, D::Error> {
    let value = Value::deserialize(deserializer)?;
    Ok(serde_json::from_value(value).unwrap_or_default())
}

impl From<ApiPod> for ReadPod {
    fn from(pod: ApiPod) -> Self {
        let ApiPod {
            metadata,
            spec,
            status,
        } = pod;
        let mut odd = 0;
        let addresses = parsed(status.pod_ips, status.pod_ip, &mut odd);
        let host_addresses = parsed(status.host_ips, status.host_ip, &mut odd);
        let mirror = metadata.annotations.get(MIRROR).and_then(Value::as_str);
        // Anybody who may make pods can write the annotation, in their own namespaces.
        let mirror = mirror.filter(|_| metadata.namespace == STATIC_NAMESPACE);
        Self(Pod {
            namespace: metadata.namespace,
            name: metadata.name,
            uid: metadata.uid,
            version: metadata.resource_version.parse().unwrap_or(0),
            node: spec.node_name,
            service_account: spec.service_account_name,
            host_network: spec.host_network,
            is_over: matches!(status.phase.as_str(), "Succeeded" | "Failed"),
            addresses,
            host_addresses,
            odd_addresses: odd,
            mirror: mirror.map(str::to_owned),
            qos: Qos::from_name(&status.qos_class),
        })
    }
}

/// The addresses of a list, or of the field that was there before the list.
fn parsed(list: Vec<Ip>, single: String, odd: &mut u32) -> Vec<IpAddr> {
    let mut texts: Vec<String> = list.into_iter().map(|entry| entry.ip).collect();
    if texts.is_empty() {
        texts.push(single);
    }
    let mut addresses = Vec::new();
    for text in texts.iter().filter(|text| !text.is_empty()) {
        match text.parse::<IpAddr>() {
            Ok(address) => addresses.push(address.to_canonical()),
            Err(_) => *odd += 1,
        }
    }
    addresses
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: Value) -> Pod {
        serde_json::from_value::<ReadPod>(value)
            .expect("any object is read")
            .0
    }

    #[test]
    fn what_matters_of_a_pod_is_read() {
        let pod = read(json!({
            "metadata": {
                "name": "iam-0", "namespace": "kube-system", "uid": "u-1", "resourceVersion": "17",
                "annotations": { "kubernetes.io/config.mirror": "abc", "other": 1 },
                "managedFields": [{ "anything": {} }]
            },
            "spec": { "nodeName": "one", "serviceAccountName": "iam", "hostNetwork": true },
            "status": {
                "phase": "Failed", "qosClass": "BestEffort", "podIP": "10.0.0.9",
                "podIPs": [{ "ip": "10.0.0.1" }, { "ip": "::ffff:10.0.0.2" }, { "ip": "fd00::1" }],
                "hostIP": "192.168.0.1"
            }
        }));
        let ip = |text: &str| text.parse::<IpAddr>().expect("literal");
        assert_eq!(
            (pod.namespace.as_str(), pod.name.as_str(), pod.uid.as_str()),
            ("kube-system", "iam-0", "u-1")
        );
        assert_eq!(
            (pod.version, pod.node.as_str(), pod.service_account.as_str()),
            (17, "one", "iam")
        );
        assert!(pod.host_network && pod.is_over);
        assert_eq!(pod.addresses, [ip("10.0.0.1"), ip("10.0.0.2"), ip("fd00::1")]);
        assert_eq!(pod.host_addresses, [ip("192.168.0.1")]);
        assert_eq!(
            (pod.mirror.as_deref(), pod.qos),
            (Some("abc"), Some(Qos::BestEffort))
        );
    }

    #[test]
    fn only_where_static_pods_are_the_annotation_makes_one() {
        let pod = read(json!({"metadata": {
            "name": "iam-0", "namespace": "hanzo", "uid": "u-1",
            "annotations": { "kubernetes.io/config.mirror": "0123456789abcdef0123456789abcdef" },
        }}));
        assert_eq!(pod.mirror, None);
    }

    #[test]
    fn fields_that_make_no_sense_are_empty_and_cost_nothing_else() {
        let pod = read(json!({
            "metadata": { "name": 7, "namespace": "n", "uid": null, "annotations": ["a"] },
            "spec": "none",
            "status": { "podIPs": [{ "ip": "10.0.0.1" }, { "ip": "10.0.0.300" }, { "ip": 5 }, "x"], "podIP": "10.0.0.2" }
        }));
        assert_eq!(
            (pod.name.as_str(), pod.namespace.as_str(), pod.uid.as_str()),
            ("", "n", "")
        );
        assert_eq!(
            pod.addresses,
            ["10.0.0.2".parse::<IpAddr>().expect("literal")],
            "the list is none"
        );
        let pod = read(
            json!({ "status": { "podIPs": [{ "ip": "10.0.0.1" }, { "ip": "10.0.0.300" }, { "ip": 5 }] } }),
        );
        assert_eq!((pod.addresses.len(), pod.odd_addresses), (1, 1));
        for odd in [json!({}), json!({ "metadata": null, "spec": null, "status": [] })] {
            assert_eq!(read(odd), Pod::default());
        }
    }
}
