// SPDX-License-Identifier: Apache-2.0
//! Kubernetes and the agents of other nodes together, as in a cluster: each agent in the network namespace of its node, with a SPIRE
//! agent and an entry of its own, and an API server that all of them reach. The agents find each other by the Nodes.

#[path = "peers/away.rs"]
mod away;
#[path = "peers/cut.rs"]
mod cut;
#[path = "peers/lies.rs"]
mod lies;
#[path = "peers/moved.rs"]
mod moved;

use zt_tests::nodes::Overlay;
use zt_tests::pair::any;
use zt_tests::spire::{self, Spire};
use zt_tests::trail::party;
use zt_tests::{Party, Scene};

use super::*;

const NODES: &str = "/api/v1/nodes";
const NAMES: [&str; 3] = ["one", "two", "three"];
/// Where agents listen for each other, as the chart has it.
const PEERS: u16 = 8056;

/// What the chart's agents call a pod of this service account.
fn id(account: &str) -> String {
    format!("spiffe://hanzo.ai/hanzo-k8s/shop/{account}")
}

/// One node.
struct Member {
    agent: Agent,
    spire: spire::Node,
    /// Where its kubelet puts pods.
    pods: Cgroup,
}

/// Several of them.
struct Mesh {
    // In the order in which they end: agents before what they run in.
    members: Vec<Member>,
    api: KubeApi,
    spire: Spire,
    overlay: Overlay,
    scene: Scene,
}

/// A pod in which somebody serves at both ports.
struct Pod {
    party: Party,
    /// Its entry in SPIRE.
    entry: String,
}

impl Pod {
    fn at(&self, port: u16) -> SocketAddr {
        self.party.v4(port)
    }
}

impl Mesh {
    /// So many nodes, whose agents are believed for so long when they are not heard. `chat` may reach `iam` and `next`, at one port.
    fn new(label: &str, count: usize, hold: &str) -> Result<Self> {
        let scene = Scene::new(label)?;
        let overlay = Overlay::of(&scene, &NAMES[..count])?;
        let api = KubeApi::start_in(&scene.host("api")?)?;
        let mut mesh = Self {
            members: Vec::new(),
            api,
            spire: Spire::start(Duration::from_secs(3600))?,
            overlay,
            scene,
        };
        for index in 0..count {
            mesh.put_node(index, &[index], "2026-01-01T00:00:00Z");
        }
        for index in 0..count {
            let member = mesh.member(index, hold)?;
            mesh.members.push(member);
        }
        Ok(mesh)
    }

    /// Makes the Node of a node, with the networks of these.
    fn put_node(&self, index: usize, networks: &[usize], created: &str) {
        let networks: Vec<String> = networks
            .iter()
            .map(|index| format!("10.244.{}.0/24", index + 1))
            .collect();
        let address = self.overlay.nodes[index].ipv4;
        self.api.put(
            NODES,
            json!({
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": { "name": NAMES[index], "creationTimestamp": created },
                "spec": { "podCIDR": networks[0], "podCIDRs": networks },
                "status": { "addresses": [
                    { "type": "InternalIP", "address": address },
                    { "type": "Hostname", "address": NAMES[index] },
                ] },
            }),
        );
    }

    /// Starts what is on a node: what the chart configures, where it has no network of its own in this world.
    fn member(&self, index: usize, hold: &str) -> Result<Member> {
        let (name, sandbox) = (NAMES[index], self.scene.sandbox());
        let spire = self.spire.join(name)?;
        let binary = format!("unix:path:{}", zt_tests::agent::binary()?.display());
        let own = format!("spiffe://hanzo.ai/hanzo-k8s/zt-system/zt-agent/nodes/{name}");
        for (id, hint) in [(Spire::delegate(), "zt"), (own, "zt-node")] {
            self.spire
                .register_on(&spire.id, &id, &[&binary], &["-hint", hint])?;
        }
        let pods = sandbox.cgroup(name)?;
        let open = OPEN.to_string();
        let policy = Policy::new("pods")
            .allow(&id("chat"), &id("iam"), TCP, &open)
            .allow(&id("chat"), &id("next"), TCP, &open);
        let kubeconfig = self.api.kubeconfig(sandbox.directory())?;
        let identity = json!({
            "source": ["spire", "kubernetes", "peers"],
            "spireSocket": spire.socket,
            "spireAdminSocket": spire.admin_socket,
            "peers": { "listen": format!("0.0.0.0:{PEERS}"), "hold": hold },
        });
        let [listen, health] = [8054, 8055].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        let builder = sandbox.agent_beside(name)?;
        let socket = sandbox.directory().join(name).join("agent.sock");
        let agent = builder
            .inside(&self.overlay.nodes[index])
            .listens(listen, health)
            .mode("enforce")
            .policy("policy.yaml", &policy.text())?
            .config("node", json!(name))
            .config("managedCgroup", json!(pods.relative()))
            .config("bpffs", json!(sandbox.pins()?.join(name)))
            .config("unknownWorkload", json!("deny"))
            .config("clusterCIDRs", json!(["10.244.0.0/16"]))
            .config("identity", identity)
            .config("kubernetes", json!({ "kubeconfig": kubeconfig }))
            .config(
                "api",
                json!({ "listen": listen, "health": "0.0.0.0:8055", "socket": socket, "tls": "spire" }),
            )
            .start()
            .with_context(|| format!("the agent of {name}"))?;
        Ok(Member { agent, spire, pods })
    }

    /// A pod of a node, of this service account, with the last byte of its address. It is there when its node knows it.
    fn pod(&self, index: usize, account: &str, last: u8) -> Result<Pod> {
        let mut host = self.scene.host(&format!("{account}-{last}"))?;
        self.overlay.pod(index, last, &mut host)?;
        let mut of = pod(account, account, NAMES[index], &host.ipv4.to_string());
        of["status"]["hostIP"] = json!(self.overlay.nodes[index].ipv4);
        let uid = uid(&self.api.put(PODS, of))?;
        let member = &self.members[index];
        let selector = format!("k8s:pod-uid:{uid}");
        let entry = self
            .spire
            .register_on(&member.spire.id, &id(account), &[&selector], &[])?;
        let cgroup = member.pods.child(&format!("burstable/pod{uid}/app"))?;
        let mut party = self.scene.start(account, &cgroup, &host)?;
        party.id = id(account);
        wait_pod(&member.agent, account, Some(&party.id))?;
        for port in [OPEN, OPEN + 1] {
            party.serve(any(port))?.local()?;
        }
        Ok(Pod { party, entry })
    }

    /// A pod is deleted, and its entry with it, as the controller manager does. Its processes and its network stay.
    fn delete(&self, account: &str, pod: &Pod) -> Result<()> {
        anyhow::ensure!(self.api.delete(PODS, "shop", account), "{account} is there");
        self.spire.unregister(&pod.entry)
    }

    /// What the agent of a node says of that of another.
    fn peer(&self, index: usize, other: usize) -> Result<Value> {
        let status = self.members[index].agent.get("/v1/status")?;
        let nodes = status["peers"]["nodes"].as_array();
        let nodes = nodes.with_context(|| status.to_string())?;
        let found = nodes.iter().find(|node| node["node"] == NAMES[other]);
        Ok(found.cloned().unwrap_or_default())
    }

    /// Waits until that stands so.
    fn wait_peer(
        &self,
        index: usize,
        other: usize,
        what: &str,
        holds: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let mut last = Value::Null;
        let what = format!("{} to have {} {what}", NAMES[index], NAMES[other]);
        let done = wait_for(&what, LATER * 2, || {
            last = self.peer(index, other)?;
            Ok(holds(&last).then(|| last.clone()))
        });
        done.with_context(|| format!("last: {last}"))
    }

    /// What was recorded at one end of connections to an address, oldest first.
    fn recorded(&self, index: usize, observer: &str, to: SocketAddr) -> Result<Vec<Value>> {
        let query = format!("port={}", to.port());
        let mut all = self.members[index].agent.all_records(&query)?;
        let at = json!(to.ip());
        all.retain(|record| record["observer"] == observer && record["destination"]["address"] == at);
        Ok(all)
    }

    /// A client on a node calls an address and says a word: what comes of it, and the record of that.
    fn talk(&self, index: usize, client: &mut Pod, to: SocketAddr) -> Result<(String, Value)> {
        let before = count(&self.recorded(index, "source", to)?);
        let outcome = client.party.talk(to)?;
        let record = wait_for("the record of a connection", LATER, || {
            let recorded = self.recorded(index, "source", to)?;
            Ok(recorded.last().filter(|_| count(&recorded) > before).cloned())
        })?;
        Ok((outcome, record))
    }

    /// Talks until both ends have proven who they are, and says so in the records of both nodes. Nobody else's name is in them.
    fn is_proven(&self, (from, client): (usize, &mut Pod), (at, server): (usize, &Pod)) -> Result<()> {
        let (to, mut last) = (server.at(OPEN), (String::new(), Value::Null));
        let mut before = 0;
        let proven = wait_for("a connection that is proven at both ends", LATER, || {
            before = count(&self.recorded(at, "destination", to)?);
            last = self.talk(from, client, to)?;
            let (outcome, record) = &last;
            let destination = party(&record["destination"]);
            anyhow::ensure!(
                [server.party.id.as_str(), "unknown"].contains(&destination),
                "{destination} was never there"
            );
            let mutual = outcome == "ok" && record["proof"] == "mutual";
            Ok((mutual && destination == server.party.id).then_some(()))
        });
        proven.with_context(|| format!("last: {last:?}"))?;
        assert_eq!(party(&last.1["source"]), client.party.id, "{}", last.1);
        let far = wait_for("the record of the other end", LATER, || {
            let recorded = self.recorded(at, "destination", to)?;
            Ok(recorded.last().filter(|_| count(&recorded) > before).cloned())
        })?;
        assert_eq!(party(&far["source"]), client.party.id, "{far}");
        assert_eq!(party(&far["destination"]), server.party.id, "{far}");
        assert_eq!(
            (&far["decision"], &far["proof"]),
            (&json!("ALLOW"), &json!("source")),
            "{far}"
        );
        Ok(())
    }

    /// Talks until it is refused as a call to somebody unknown. Until then no record has any of `never` at that address, and where
    /// there are some, it comes to nothing as well: who is being taken away is called by their name until that is known.
    fn is_unknown(&self, (from, client): (usize, &mut Pod), to: SocketAddr, never: &[&Pod]) -> Result<()> {
        let mut last = (String::new(), Value::Null);
        let refused = wait_for("who is there to be unknown", LATER, || {
            last = self.talk(from, client, to)?;
            let (outcome, record) = &last;
            anyhow::ensure!(outcome != "ok" || never.is_empty(), "a connection to nobody");
            let destination = party(&record["destination"]);
            let named = never.iter().find(|pod| pod.party.id == destination);
            anyhow::ensure!(named.is_none(), "{destination} is not there");
            Ok((outcome == "EPERM" && destination == "unknown").then_some(()))
        });
        refused.with_context(|| format!("last: {last:?}"))
    }
}

/// How many connections these records are of: equal ones may be joined.
fn count(records: &[Value]) -> u64 {
    let counts = records.iter().map(|record| record["count"].as_u64().unwrap_or(1));
    counts.sum()
}
