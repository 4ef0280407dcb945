// SPDX-License-Identifier: Apache-2.0
//! Against the real API server of Kubernetes and its etcd: what it validates, watches and allows is what zt meets in a
//! cluster. Only the kubelet is missing; its cgroups and its words about pods are made here.

#[path = "apiserver/cluster.rs"]
mod cluster;
#[path = "apiserver/manifests.rs"]
mod manifests;
#[path = "apiserver/network_policies.rs"]
mod network_policies;
#[path = "apiserver/pods.rs"]
mod pods;
#[path = "apiserver/policies.rs"]
mod policies;
#[path = "apiserver/registration.rs"]
mod registration;
#[path = "apiserver/registry.rs"]
mod registry;
#[path = "apiserver/roles.rs"]
mod roles;

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use zt_tests::{Agent, AgentBuilder, Cgroup, Host, Probe, Sandbox, eventually, wait_for};

use cluster::Cluster;

/// How long anything may take on a machine that has much else to do.
const LATER: Duration = Duration::from_secs(120);
const NAMESPACES: &str = "/api/v1/namespaces";
const PODS: &str = "/api/v1/namespaces/shop/pods";
const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const POLICIES: &str = "/apis/zt.hanzo.ai/v1/serviceaccesspolicies";
/// The name of this node, and of another one.
const NODE: &str = "test-node";
const OTHER: &str = "other-node";
/// The port that the policy allows.
const OPEN: u16 = 8000;
/// One more at which the server listens.
const MORE: u16 = 8001;
/// The virtual address of a Service. The far server has it besides its own address: nobody translates here.
const WEB: Ipv4Addr = Ipv4Addr::new(10, 96, 7, 1);
const CLIENT: &str = "spiffe://hanzo.ai/hanzo-k8s/shop/client";
const SERVER: &str = "spiffe://hanzo.ai/hanzo-k8s/shop/server";
const THIEF: &str = "spiffe://hanzo.ai/hanzo-k8s/shop/thief";

/// A file of the repository.
fn repository(path: &str) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    fs::read_to_string(&path).with_context(|| path.display().to_string())
}

/// A policy that lets the client reach the server at these ports.
fn policy(name: &str, ports: &[u32]) -> Value {
    json!({
        "apiVersion": "zt.hanzo.ai/v1",
        "kind": "ServiceAccessPolicy",
        "metadata": { "name": name },
        "spec": { "rules": [{ "from": { "spiffe": CLIENT }, "to": [{ "spiffe": SERVER, "ports": ports }] }] },
    })
}

/// A cluster with zt's resources, and a client's namespace and a server's. The server is outside of what the agent manages:
/// it stands for another node.
struct World {
    cluster: Cluster,
    sandbox: Sandbox,
    client: Host,
    server: Host,
    /// Listens.
    _far: Probe,
}

impl World {
    /// With a policy that allows the one port.
    fn new(label: &str) -> Result<Self> {
        let sandbox = Sandbox::new(label)?;
        let (client, server) = (sandbox.host("client")?, sandbox.host("server")?);
        server.add_address(&format!("{WEB}/32"))?;
        client.add_route("10.96.0.0/16")?;
        let mut far = sandbox.probe(sandbox.outside(), Some(&server))?;
        for port in [OPEN, MORE] {
            far.serve(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port))?
                .ok()?;
        }
        let cluster = Cluster::start(&sandbox)?;
        for kind in [
            "serviceaccesspolicies",
            "operatoraccesspolicies",
            "enforcementrollouts",
        ] {
            cluster.create_yaml(CRDS, &repository(&format!("deploy/crds/{kind}.yaml"))?)?;
            let collection = format!("/apis/zt.hanzo.ai/v1/{kind}");
            eventually(&format!("{collection} to be served"), LATER, || {
                cluster.has(&collection)
            })?;
        }
        // Served by a list is not yet accepted in a create.
        wait_for("the first policy to be taken", LATER, || {
            Ok(cluster.create(POLICIES, &policy("shop", &[OPEN.into()])).ok())
        })?;
        cluster.create(NAMESPACES, &json!({ "metadata": { "name": "shop" } }))?;
        Ok(Self {
            cluster,
            sandbox,
            client,
            server,
            _far: far,
        })
    }

    /// An agent with this kubeconfig.
    fn agent(&self, kubeconfig: &Path) -> Result<AgentBuilder> {
        Ok(self
            .sandbox
            .agent()?
            .mode("enforce")
            .config("unknownWorkload", json!("deny"))
            .config("policySource", json!("kubernetes"))
            .config("identity", json!({ "source": "kubernetes" }))
            .config("kubernetes", json!({ "kubeconfig": kubeconfig })))
    }

    /// An agent that may do everything in the cluster, and runs.
    fn started(&self) -> Result<Agent> {
        self.agent(&self.cluster.kubeconfig()?)?.start()
    }

    /// Makes a pod as its controller would, and says of it what its kubelet would. Returns its uid.
    fn pod(&self, name: &str, account: &str, node: &str, address: IpAddr) -> Result<String> {
        let container = json!({
            "name": "app",
            "image": "registry.invalid/app",
            "resources": { "requests": { "cpu": "10m" } },
        });
        let pod = self.cluster.create(
            PODS,
            &json!({
                "metadata": { "name": name },
                "spec": { "nodeName": node, "serviceAccountName": account, "containers": [container] },
            }),
        )?;
        let host = if node == NODE { "192.0.2.1" } else { "192.0.2.2" };
        self.status(
            name,
            &json!({
                "phase": "Running",
                "podIP": address,
                "podIPs": [{ "ip": address }],
                "hostIP": host,
                "hostIPs": [{ "ip": host }],
            }),
        )?;
        Ok(pod["metadata"]["uid"].as_str().context("a uid")?.to_owned())
    }

    fn status(&self, name: &str, status: &Value) -> Result<()> {
        let path = format!("{PODS}/{name}/status");
        self.cluster.merge(&path, &json!({ "status": status })).map(drop)
    }

    /// Takes a pod away at once, as its kubelet does when it has ended.
    fn remove(&self, name: &str) -> Result<()> {
        self.cluster.delete(&format!("{PODS}/{name}"), 0)
    }

    /// Puts a pod of the account `client` on this node.
    fn put_client(&self, name: &str) -> Result<String> {
        self.pod(name, "client", NODE, self.client.ipv4.into())
    }

    /// Puts a pod at the far server's address, on another node.
    fn put_far(&self, name: &str, account: &str) -> Result<String> {
        self.pod(name, account, OTHER, self.server.ipv4.into())
    }

    /// The cgroup of a pod, as the `cgroupfs` driver has it.
    fn pod_cgroup(&self, uid: &str) -> Result<Cgroup> {
        self.sandbox.cgroup(&format!("burstable/pod{uid}"))
    }

    /// A process in a container of a pod.
    fn start(&self, uid: &str, container: &str) -> Result<Probe> {
        let cgroup = self.pod_cgroup(uid)?.child(container)?;
        self.sandbox.probe(&cgroup, Some(&self.client))
    }

    /// The far server, at a port.
    fn far(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.server.ipv4.into(), port)
    }
}

/// A connection: `ok`, or the name of the error.
fn connect(client: &mut Probe, to: SocketAddr) -> Result<String> {
    let reply = client.connect(to)?;
    if let Some(socket) = reply.socket {
        client.close(socket)?;
    }
    Ok(reply.outcome().to_owned())
}

/// Connects until it comes out so.
fn becomes(client: &mut Probe, to: SocketAddr, outcome: &str) -> Result<()> {
    let mut last = String::new();
    let done = eventually(&format!("{to} to become {outcome}"), LATER, || {
        last = connect(client, to)?;
        Ok(last == outcome)
    });
    done.with_context(|| format!("the last attempt was {last}"))
}

/// Waits until the pod has this identity.
fn wait_pod(agent: &Agent, pod: &str, identity: &str) -> Result<()> {
    let mut last = Value::Null;
    let done = eventually(&format!("{pod} to be {identity}"), LATER, || {
        last = agent.get("/v1/identities")?;
        let identities = last["identities"].as_array().context("a list")?;
        let is = |found: &Value| found["pod"] == format!("shop/{pod}") && found["spiffe_id"] == identity;
        Ok(identities.iter().any(is))
    });
    done.with_context(|| format!("last: {last}"))
}

/// Connects until the refusal of it names the pod that has taken the far server's address.
fn refused_as_thief(agent: &Agent, client: &mut Probe, to: SocketAddr) -> Result<()> {
    eventually("the thief to be refused by its name", LATER, || {
        let outcome = connect(client, to)?;
        let records = agent.audit("decision=DENY&limit=5")?;
        let named = |record: &Value| record["destination"]["spiffe_id"] == THIEF;
        Ok(outcome == "EPERM" && records.iter().any(named))
    })
}

/// Waits until a cgroup is known as a pod's, by its id.
fn wait_cgroup(agent: &Agent, cgroup: &Cgroup) -> Result<()> {
    let id = json!(cgroup.id()?);
    eventually("the cgroup to be known", LATER, || {
        let answer = agent.get("/v1/identities")?;
        let identities = answer["identities"].as_array().context("a list")?;
        let has = |found: &Value| found["cgroups"].as_array().is_some_and(|ids| ids.contains(&id));
        Ok(identities.iter().any(has))
    })
}

/// Waits until `/v1/status` stands so with Kubernetes.
fn wait_status(agent: &Agent, what: &str, holds: impl Fn(&Value) -> bool) -> Result<()> {
    let mut last = Value::Null;
    let done = eventually(what, LATER, || {
        last = agent.get("/v1/status")?["kubernetes"].clone();
        Ok(holds(&last))
    });
    done.with_context(|| format!("last: {last}"))
}
