// SPDX-License-Identifier: Apache-2.0
//! Containers of a real containerd wait until their pod has an identity: a plugin over NRI, cgroups that runc makes, and
//! enforcement in the kernel from the first connection of the first process on.

use std::net::{IpAddr, SocketAddr};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use zt_tests::{Agent, Cgroup, Containerd, Host, KubeApi, Policy, Probe, Sandbox, TCP, wait_for};

/// How long anything may take on a machine that has much else to do.
const LATER: Duration = Duration::from_secs(90);
const PODS: &str = "/api/v1/pods";
const NODE: &str = "test-node";
/// The one port that the policy allows.
const OPEN: u16 = 8000;
const CLIENT: &str = "spiffe://hanzo.ai/hanzo-k8s/shop/client";
const SERVER: &str = "spiffe://hanzo.ai/hanzo-k8s/shop/server";
/// What the shell of a container says where the kernel refused its connection.
const REFUSED: i64 = 1;

/// A node with a runtime and an API, and a server on another node.
struct World {
    api: KubeApi,
    containerd: Containerd,
    sandbox: Sandbox,
    client: Host,
    server: Host,
    /// Listens.
    _far: Probe,
}

impl World {
    fn new(label: &str) -> Result<Self> {
        let sandbox = Sandbox::new(label)?;
        let (client, server) = (sandbox.host("client")?, sandbox.host("server")?);
        let mut far = sandbox.probe(sandbox.outside(), Some(&server))?;
        far.serve(SocketAddr::new(server.addresses()[0], OPEN))?.ok()?;
        let world = Self {
            api: KubeApi::start()?,
            containerd: Containerd::start(&sandbox, &client)?,
            sandbox,
            client,
            server,
            _far: far,
        };
        world.put("server", "server", "other-node", world.far(), None);
        Ok(world)
    }

    /// An agent that has containers wait.
    fn agent(&self, wait: &str) -> Result<Agent> {
        let policy = Policy::new("pods").allow(CLIENT, SERVER, TCP, &OPEN.to_string());
        let kubeconfig = self.api.kubeconfig(self.sandbox.directory())?;
        let nri = json!({ "socket": self.containerd.nri_socket(), "wait": wait });
        let agent = self
            .sandbox
            .agent()?
            .mode("enforce")
            .config("unknownWorkload", json!("deny"))
            .config("identity", json!({ "source": "kubernetes", "nri": nri }))
            .config("kubernetes", json!({ "kubeconfig": kubeconfig }))
            .policy("pods.yaml", &policy.text())?
            .start()?;
        wait_metric(&agent, "zt_nri_connected", &[], 1)?;
        Ok(agent)
    }

    fn far(&self) -> IpAddr {
        self.server.addresses()[0]
    }

    /// Has the API know a pod.
    fn put(&self, name: &str, account: &str, node: &str, address: IpAddr, uid: Option<&str>) {
        let mut metadata = json!({ "namespace": "shop", "name": name });
        if let Some(uid) = uid {
            metadata["uid"] = json!(uid);
        }
        self.api.put(
            PODS,
            json!({
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": metadata,
                "spec": { "nodeName": node, "serviceAccountName": account },
                "status": {
                    "phase": "Running",
                    "qosClass": "Burstable",
                    "podIP": address.to_string(),
                    "podIPs": [{ "ip": address.to_string() }],
                    "hostIP": if node == NODE { "192.0.2.1" } else { "192.0.2.2" },
                },
            }),
        );
    }

    /// Has the API know the pod that the runtime has, in the client's network.
    fn announce(&self, name: &str, uid: &str) {
        self.put(name, "client", NODE, self.client.addresses()[0], Some(uid));
    }

    /// A container whose first act is a connection to the far server, in a pod of this uid, made but not started.
    fn container(&self, name: &str, uid: &str) -> Result<String> {
        // The kubelet makes it, before it asks for the sandbox.
        let cgroup: Cgroup = self.sandbox.cgroup(&format!("burstable/pod{uid}"))?;
        let pod = self.containerd.run_pod(name, uid, &cgroup)?;
        let connect = format!("exec 3<>/dev/tcp/{}/{OPEN}", self.far());
        self.containerd
            .create(&pod, "app", &["/bin/bash", "-c", &connect])
    }
}

fn uid(number: u32) -> String {
    format!("2f8c6f0e-3a7d-4d0e-9f4b-{number:012}")
}

fn wait_metric(agent: &Agent, name: &str, labels: &[(&str, &str)], least: u64) -> Result<()> {
    let mut last = 0;
    let done = wait_for(&format!("{name} {labels:?}"), LATER, || {
        last = agent.metrics()?.sum(name, labels);
        Ok((last >= least).then_some(()))
    });
    done.with_context(|| format!("it is {last}, not {least}"))
}

fn starts(agent: &Agent, outcome: &str) -> Result<u64> {
    Ok(agent
        .metrics()?
        .sum("zt_nri_starts_total", &[("outcome", outcome)]))
}

#[test]
fn the_first_process_of_a_container_has_its_name() -> Result<()> {
    let world = World::new("nri-birth")?;
    let agent = world.agent("60s")?;
    // The API has told of the pod before the runtime does.
    world.announce("early", &uid(1));
    let early = world.container("early", &uid(1))?;
    assert_eq!(world.containerd.run(&early)?, 0);
    // The other way round, and the runtime has nothing else to do meanwhile.
    let late = world.container("late", &uid(2))?;
    let mut start = world.containerd.starting(&late).stdout(Stdio::null()).spawn()?;
    wait_metric(&agent, "zt_nri_holding", &[], 1)?;
    assert_eq!(world.containerd.inspect(&late)?["state"], "CONTAINER_CREATED");
    assert_eq!(start.try_wait()?, None, "it is held");
    world.announce("late", &uid(2));
    assert!(start.wait()?.success());
    assert_eq!(world.containerd.wait_exit(&late)?, 0);
    wait_metric(&agent, "zt_nri_starts_total", &[("outcome", "held")], 1)?;
    assert_eq!((starts(&agent, "unnamed")?, starts(&agent, "unmanaged")?), (0, 0));
    let records = agent.wait_audit("port=8000", LATER, |records| records.len() >= 2)?;
    for record in &records {
        assert_eq!(
            (&record["decision"], &record["source"]["spiffe_id"]),
            (&json!("ALLOW"), &json!(CLIENT)),
            "{record}"
        );
    }
    let pods: Vec<&Value> = records.iter().map(|record| &record["source"]["pod"]).collect();
    assert!(pods.contains(&&json!("shop/late")), "{pods:?}");
    Ok(())
}

#[test]
fn a_container_without_a_name_starts_as_nobody_and_a_runtime_that_comes_back_is_followed() -> Result<()> {
    let mut world = World::new("nri-vain")?;
    let agent = world.agent("300ms")?;
    let nobody = world.container("nobody", &uid(1))?;
    assert_eq!(world.containerd.run(&nobody)?, REFUSED);
    assert_eq!(starts(&agent, "unnamed")?, 1);
    let records = agent.wait_audit("decision=DENY", LATER, |records| !records.is_empty())?;
    assert_eq!(records[0]["source"]["spiffe_id"], Value::Null, "{records:?}");
    // The runtime dies with all that it runs, and starts again.
    world.containerd.kill()?;
    wait_for("the loss to be noticed", LATER, || {
        Ok((agent.metrics()?.sum("zt_nri_connected", &[]) == 0).then_some(()))
    })?;
    world.containerd.launch()?;
    wait_metric(&agent, "zt_nri_connected", &[], 1)?;
    world.announce("again", &uid(2));
    let again = world.container("again", &uid(2))?;
    assert_eq!(world.containerd.run(&again)?, 0);
    assert!(starts(&agent, "named")? + starts(&agent, "held")? >= 1);
    Ok(())
}
