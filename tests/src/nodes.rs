// SPDX-License-Identifier: Apache-2.0
//! Two agents as two nodes: each has a managed tree, maps and ports of its own, and the certificate of its node.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use serde_json::{Value, json};
use zt_agent::tls::Files;

use crate::agent::AgentBuilder;
use crate::network::Host;
use crate::ports;
use crate::sandbox::Sandbox;
use crate::scene::Scene;

/// The SPIFFE ID of a node's agent.
pub const PATTERN: &str = "spiffe://hanzo.ai/agents/{node}";

/// Their names. The first one dials.
pub const NODES: [&str; 2] = ["one", "two"];

/// Who certifies the agents of nodes, with its certificate in `ca.pem` of a directory.
#[derive(Debug)]
pub struct Authority {
    directory: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// A new one.
    pub fn new(directory: &Path) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate()?;
        fs::write(directory.join("ca.pem"), params.self_signed(&key)?.pem())?;
        Ok(Self {
            directory: directory.to_owned(),
            issuer: Issuer::new(params, key),
        })
    }

    /// Writes the certificate of a node's agent and its key: `NODE.pem` and `NODE.key`.
    pub fn certify(&self, node: &str) -> Result<Files> {
        let files = Files {
            cert: self.directory.join(format!("{node}.pem")),
            key: self.directory.join(format!("{node}.key")),
            client_ca: self.directory.join("ca.pem"),
        };
        let mut params = CertificateParams::default();
        let id = PATTERN.replace("{node}", node);
        params
            .subject_alt_names
            .push(SanType::URI(id.as_str().try_into()?));
        let key = KeyPair::generate()?;
        fs::write(&files.cert, params.signed_by(&key, &self.issuer)?.pem())?;
        fs::write(&files.key, key.serialize_pem())?;
        Ok(files)
    }
}

/// What the agents of both know of each other.
#[derive(Debug)]
pub struct Nodes {
    directory: PathBuf,
    listen: [SocketAddr; 2],
    speak_for: [Vec<String>; 2],
}

impl Nodes {
    /// Two nodes, with certificates of one authority, that speak for these addresses and networks.
    pub fn new(sandbox: &Sandbox, speak_for: [Vec<String>; 2]) -> Result<Self> {
        let directory = sandbox.directory().to_owned();
        let authority = Authority::new(&directory)?;
        for node in NODES {
            authority.certify(node)?;
        }
        let (one, two) = ports::two()?;
        Ok(Self {
            directory,
            listen: [one, two],
            speak_for,
        })
    }

    /// The agent of a node, not started yet. The others may tell of identities that match; `sources` are those beside `file`
    /// and `peers`.
    pub fn agent(
        &self,
        sandbox: &Sandbox,
        index: usize,
        identities: &str,
        sources: &[&str],
    ) -> Result<AgentBuilder> {
        let node = NODES[index];
        let entry = |index: usize| {
            json!({
                "name": NODES[index],
                "address": self.listen[index].to_string(),
                "speaksFor": self.speak_for[index],
                "identities": identities,
            })
        };
        let nodes: Vec<Value> = (0..NODES.len()).map(entry).collect();
        let sources: Vec<&str> = ["file", "peers"].iter().chain(sources).copied().collect();
        let (listen, health) = ports::two()?;
        let files = self.directory.join(node);
        let builder = sandbox.agent_beside(node)?;
        Ok(builder
            .mode("enforce")
            .listens(listen, health)
            .config("node", json!(node))
            .config("handshake", json!("auto"))
            .config("managedCgroup", json!(sandbox.cgroup(node)?.relative()))
            .config("bpffs", json!(sandbox.pins()?.join(node)))
            .config(
                "identity",
                json!({
                    "source": sources,
                    "file": files.join("workloads.yaml"),
                    "peers": {
                        "listen": self.listen[index],
                        "nodes": nodes,
                        "id": "spiffe://hanzo.ai/agents/{node}",
                        "hold": "1s",
                    },
                }),
            )
            .config(
                "api",
                json!({
                    "listen": listen,
                    "health": health,
                    "socket": files.join("agent.sock"),
                    "tls": {
                        "cert": self.directory.join(format!("{node}.pem")),
                        "key": self.directory.join(format!("{node}.key")),
                        "clientCa": self.directory.join("ca.pem"),
                    },
                }),
            ))
    }
}

/// The network of pods as the usual plugin makes it: a bridge on each node, 10.244.1.0/24, 10.244.2.0/24 and so on, and VXLAN between
/// them, with an end at 10.245.0.1, 10.245.0.2 and so on.
#[derive(Debug)]
pub struct Overlay {
    /// The namespaces of the nodes.
    pub nodes: Vec<Host>,
}

impl Overlay {
    /// Two nodes without pods.
    pub fn new(scene: &Scene) -> Result<Self> {
        Self::of(scene, &NODES)
    }

    /// Nodes of these names without pods.
    pub fn of(scene: &Scene, names: &[&str]) -> Result<Self> {
        let nodes = names.iter().map(|name| scene.host(&format!("node-{name}")));
        let nodes: Vec<Host> = nodes.collect::<Result<_>>()?;
        for (own, node) in (1..).zip(&nodes) {
            node.ip(&format!(
                "link add cni0 type bridge\nlink set cni0 up\naddr add 10.244.{own}.1/24 dev cni0\n\
                 link add vx0 type vxlan id 1 dstport 8472 local {} dev eth0\n\
                 link set vx0 up\naddr add 10.245.0.{own}/24 dev vx0\n",
                node.ipv4
            ))?;
            for (other, far) in (1..).zip(&nodes).filter(|(other, _)| *other != own) {
                node.ip(&format!("route add 10.244.{other}.0/24 via 10.245.0.{other}\n"))?;
                node.bridge(&format!("fdb append 00:00:00:00:00:00 dev vx0 dst {}", far.ipv4))?;
            }
            node.sysctl("net/ipv4/ip_forward", "1")?;
        }
        Ok(Self { nodes })
    }

    /// Makes a namespace a pod of a node: that is its address from then on. Nodes' own addresses there and virtual ones, 10.96.0.0/16,
    /// lead to the node.
    pub fn pod(&self, index: usize, last: u8, host: &mut Host) -> Result<()> {
        let (node, own) = (&self.nodes[index], index + 1);
        let address = Ipv4Addr::new(10, 244, own as u8, last);
        node.ip(&format!(
            "link add v{last} type veth peer name pod0 netns {}\nlink set v{last} master cni0 up\n\
             link set dev v{last} type bridge_slave hairpin on\n",
            host.namespace()
        ))?;
        host.ip(&format!(
            "link set pod0 up\naddr add {address}/24 dev pod0\nroute add 10.244.0.0/16 via 10.244.{own}.1\n\
             route add 10.245.0.0/16 via 10.244.{own}.1\nroute add 10.96.0.0/16 via 10.244.{own}.1\n"
        ))?;
        host.ipv4 = address;
        Ok(())
    }
}
