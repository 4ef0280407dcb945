// SPDX-License-Identifier: Apache-2.0
//! Identities from Kubernetes: a server that speaks the API's protocol and fails as it is told, cgroups as the kubelet makes
//! them, real processes in them, and enforcement in the kernel by who the API says they are.

#[path = "kubernetes/canary.rs"]
mod canary;
#[path = "kubernetes/host_network.rs"]
mod host_network;
#[path = "kubernetes/lies.rs"]
mod lies;
#[path = "kubernetes/life.rs"]
mod life;
#[path = "kubernetes/nodes_in_force.rs"]
mod nodes_in_force;
#[path = "kubernetes/outage.rs"]
mod outage;
#[path = "kubernetes/peers.rs"]
mod peers;
#[path = "kubernetes/protocol.rs"]
mod protocol;
#[path = "kubernetes/with_spire.rs"]
mod with_spire;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use zt_tests::{Agent, AgentBuilder, Cgroup, Host, KubeApi, Policy, Probe, Sandbox, TCP, http, wait_for};

/// How long anything may take on a machine that has much else to do.
const LATER: Duration = Duration::from_secs(90);
const PODS: &str = "/api/v1/pods";
/// The name of this node, and of another one.
const NODE: &str = "test-node";
const OTHER: &str = "other-node";
/// The one port that the policy allows.
const OPEN: u16 = 8000;
const CLIENT: &str = "spiffe://hanzo.ai/hanzo-k8s/shop/client";
const SERVER: &str = "spiffe://hanzo.ai/hanzo-k8s/shop/server";

/// A pod of namespace `shop` and the service account `account`.
fn pod(name: &str, account: &str, node: &str, address: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "namespace": "shop", "name": name },
        "spec": { "nodeName": node, "serviceAccountName": account },
        "status": {
            "phase": "Running",
            "qosClass": "Burstable",
            "podIP": address,
            "podIPs": [{ "ip": address }],
            "hostIP": if node == NODE { "192.0.2.1" } else { "192.0.2.2" },
        },
    })
}

/// The names that a kubelet gives to cgroups.
#[derive(Clone, Copy, Debug)]
enum Driver {
    Cgroupfs,
    Systemd,
}

/// A client's namespace and a server's, the server outside of what the agent manages: it stands for another node.
struct World {
    api: KubeApi,
    sandbox: Sandbox,
    driver: Driver,
    /// Where the kubelet puts its pods.
    pods: Cgroup,
    client: Host,
    server: Host,
    /// Listens.
    _far: Probe,
}

impl World {
    fn new(label: &str) -> Result<Self> {
        Self::of(Driver::Cgroupfs, label)
    }

    /// Does the same with the names of each driver.
    fn with_each_driver(label: &str, test: impl Fn(&Self) -> Result<()>) -> Result<()> {
        for driver in [Driver::Cgroupfs, Driver::Systemd] {
            let world = Self::of(driver, label)?;
            test(&world).with_context(|| format!("{driver:?}"))?;
        }
        Ok(())
    }

    fn of(driver: Driver, label: &str) -> Result<Self> {
        let sandbox = Sandbox::new(label)?;
        let pods = match driver {
            Driver::Cgroupfs => sandbox.managed().clone(),
            Driver::Systemd => sandbox.cgroup("kubepods.slice")?,
        };
        let (client, server) = (sandbox.host("client")?, sandbox.host("server")?);
        let mut far = sandbox.probe(sandbox.outside(), Some(&server))?;
        far.serve(SocketAddr::new(server.addresses()[0], OPEN))?.ok()?;
        Ok(Self {
            api: KubeApi::start()?,
            sandbox,
            driver,
            pods,
            client,
            server,
            _far: far,
        })
    }

    fn agent(&self) -> Result<AgentBuilder> {
        let policy = Policy::new("pods").allow(CLIENT, SERVER, TCP, &OPEN.to_string());
        let kubeconfig = self.api.kubeconfig(self.sandbox.directory())?;
        self.sandbox
            .agent()?
            .mode("enforce")
            .config("managedCgroup", json!(self.pods.relative()))
            .config("unknownWorkload", json!("deny"))
            .config("identity", json!({ "source": "kubernetes" }))
            .config("kubernetes", json!({ "kubeconfig": kubeconfig }))
            .policy("pods.yaml", &policy.text())
    }

    /// The address at which the far server listens.
    fn far(&self) -> IpAddr {
        self.server.addresses()[0]
    }

    /// Puts a pod of the account `client` on this node, and returns its uid.
    fn put_client(&self, name: &str) -> Result<String> {
        let address = self.client.addresses()[0].to_string();
        uid(&self.api.put(PODS, pod(name, "client", NODE, &address)))
    }

    /// Puts a pod at the far server's address.
    fn put_far(&self, name: &str, account: &str) -> Result<String> {
        uid(&self
            .api
            .put(PODS, pod(name, account, OTHER, &self.far().to_string())))
    }

    /// Where the cgroup of a pod is, below that of all pods: in that of its class, unless it is guaranteed what it asks for.
    fn pod_path(&self, uid: &str, class: Option<&str>) -> String {
        let escaped = uid.replace('-', "_");
        match (self.driver, class) {
            (Driver::Cgroupfs, None) => format!("pod{uid}"),
            (Driver::Cgroupfs, Some(class)) => format!("{class}/pod{uid}"),
            (Driver::Systemd, None) => format!("kubepods-pod{escaped}.slice"),
            (Driver::Systemd, Some(class)) => {
                format!("kubepods-{class}.slice/kubepods-{class}-pod{escaped}.slice")
            }
        }
    }

    /// The cgroup of a pod of the class `Burstable`.
    fn pod_cgroup(&self, uid: &str) -> Result<Cgroup> {
        self.pods.child(&self.pod_path(uid, Some("burstable")))
    }

    /// A process in a container of a pod, which is the first part of what its cgroup is called.
    fn start(&self, uid: &str, container: &str) -> Result<Probe> {
        self.start_in(&self.pod_cgroup(uid)?, container)
    }

    /// The same in the cgroup of a pod.
    fn start_in(&self, pod: &Cgroup, container: &str) -> Result<Probe> {
        let (container, below) = container.split_once('/').unwrap_or((container, ""));
        let container = match self.driver {
            Driver::Cgroupfs => container.to_owned(),
            Driver::Systemd => format!("cri-containerd-{container}.scope"),
        };
        let cgroup = pod.child(&format!("{container}/{below}"))?;
        self.sandbox.probe(&cgroup, Some(&self.client))
    }

    /// A connection to the far server: `ok`, or the name of the error.
    fn connect(&self, client: &mut Probe) -> Result<String> {
        let reply = client.connect(SocketAddr::new(self.far(), OPEN))?;
        if let Some(socket) = reply.socket {
            client.close(socket)?;
        }
        Ok(reply.outcome().to_owned())
    }

    /// Connects until it comes out so.
    fn connects(&self, client: &mut Probe, outcome: &str) -> Result<()> {
        let mut last = String::new();
        let done = wait_for(&format!("the far server to be {outcome}"), LATER, || {
            last = self.connect(client)?;
            Ok((last == outcome).then_some(()))
        });
        done.with_context(|| format!("the last attempt was {last}"))
    }
}

fn uid(pod: &Value) -> Result<String> {
    Ok(pod["metadata"]["uid"].as_str().context("a uid")?.to_owned())
}

/// Waits until the pod has this identity, or none.
fn wait_pod(agent: &Agent, pod: &str, identity: Option<&str>) -> Result<Value> {
    let name = format!("shop/{pod}");
    let mut last = Value::Null;
    let done = wait_for(&format!("{name} to be {identity:?}"), LATER, || {
        last = agent.get("/v1/identities")?;
        let identities = last["identities"].as_array().context("a list")?;
        let found = identities.iter().find(|found| found["pod"] == name.as_str());
        let is = found.and_then(|found| found["spiffe_id"].as_str());
        Ok((is == identity).then(|| found.cloned().unwrap_or_default()))
    });
    done.with_context(|| format!("last: {last}"))
}

/// Waits until a cgroup is known as a pod's, by its id.
fn wait_cgroup(agent: &Agent, cgroup: &Cgroup) -> Result<()> {
    let id = cgroup.id()?;
    wait_for("the cgroup to be known", LATER, || {
        let answer = agent.get("/v1/identities")?;
        let identities = answer["identities"].as_array().context("a list")?;
        let has = |identity: &Value| {
            identity["cgroups"]
                .as_array()
                .is_some_and(|ids| ids.contains(&json!(id)))
        };
        Ok(identities.iter().any(has).then_some(()))
    })
}

/// Waits until `/v1/status` stands so with Kubernetes.
fn wait_status(agent: &Agent, what: &str, holds: impl Fn(&Value) -> bool) -> Result<Value> {
    let mut last = Value::Null;
    let done = wait_for(what, LATER, || {
        last = agent.get("/v1/status")?["kubernetes"].clone();
        Ok(holds(&last).then(|| last.clone()))
    });
    done.with_context(|| format!("last: {last}"))
}

/// What `/readyz` answers.
fn ready(agent: &Agent) -> Result<Value> {
    http::get(agent.health(), "/readyz")?.success()?.json()
}
