// SPDX-License-Identifier: Apache-2.0
//! Kubernetes Services and their endpoints, as the API says them, and who stands behind one.

use std::net::Ipv4Addr;

use anyhow::Result;
use serde_json::{Value, json};

use crate::agent::{Agent, AgentBuilder};
use crate::kube_api::KubeApi;
use crate::pair::any;
use crate::rules::Policy;
use crate::scene::{Party, Scene};

/// Where Services are.
pub const SERVICES: &str = "/api/v1/services";
/// Where their endpoints are.
pub const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";

/// A Service of the namespace `hanzo` with these ports, each with its target port.
pub fn service(name: &str, uid: &str, address: Ipv4Addr, ports: &[(u16, u16)]) -> Value {
    let ports: Vec<Value> = ports
        .iter()
        .map(|(port, target)| json!({"name": format!("p{target}"), "port": port, "targetPort": target}))
        .collect();
    json!({
        "metadata": {"namespace": "hanzo", "name": name, "uid": uid},
        "spec": {"clusterIP": address.to_string(), "clusterIPs": [address.to_string()], "ports": ports, "selector": {"app": name}},
    })
}

/// Its endpoints.
pub fn slice(service: &str, owner: &str, ports: &[u16], behind: &[&Party]) -> Value {
    let ports: Vec<Value> = ports
        .iter()
        .map(|port| json!({"name": format!("p{port}"), "port": port, "protocol": "TCP"}))
        .collect();
    let endpoints: Vec<Value> = behind
        .iter()
        .map(|party| json!({"addresses": [party.host.ipv4.to_string()], "conditions": {"ready": true}}))
        .collect();
    json!({
        "metadata": {
            "namespace": "hanzo", "name": format!("{service}-x"), "uid": format!("slice-of-{owner}"),
            "labels": {"kubernetes.io/service-name": service},
            "ownerReferences": [{"kind": "Service", "name": service, "uid": owner}],
        },
        "addressType": "IPv4",
        "ports": ports,
        "endpoints": endpoints,
    })
}

/// A client, two workloads that a Service may have behind it, and an agent that hears of Services. None is known yet.
#[derive(Debug)]
pub struct Served {
    _scene: Scene,
    /// What says the Services.
    pub api: KubeApi,
    /// The one agent.
    pub agent: Agent,
    /// Has a way to the virtual address.
    pub client: Party,
    /// Serves at port 80, at every address.
    pub a: Party,
    /// Serves nothing.
    pub b: Party,
}

impl Served {
    /// `a` has the virtual address besides its own, so that a connection to it really comes about: nobody translates.
    pub fn at(
        address: Ipv4Addr,
        label: &str,
        policy: &Policy,
        change: impl FnOnce(AgentBuilder) -> AgentBuilder,
    ) -> Result<Self> {
        let mut scene = Scene::new(label)?;
        let (mut a, b, client) = (
            scene.workload("a")?,
            scene.workload("b")?,
            scene.workload("client")?,
        );
        a.serve(any(80))?.local()?;
        a.host.add_address(&format!("{address}/32"))?;
        client.host.add_route("10.96.0.0/16")?;
        let api = KubeApi::start()?;
        let kubeconfig = api.kubeconfig(scene.sandbox().directory())?;
        let agent = scene
            .agent(policy)?
            .env("ZT_IDENTITY_SOURCE", "file,kubernetes")
            .env("ZT_KUBECONFIG", &kubeconfig.display().to_string());
        let agent = change(agent).start()?;
        Ok(Self {
            _scene: scene,
            api,
            agent,
            client,
            a,
            b,
        })
    }
}
