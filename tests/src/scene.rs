// SPDX-License-Identifier: Apache-2.0
//! The usual cast of a kernel test: named workloads in cgroups and namespaces of their own, and whoever is not managed.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV4};
use std::ops::{Deref, DerefMut};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::agent::AgentBuilder;
use crate::agent_files::Workload;
use crate::cgroup::Cgroup;
use crate::network::Host;
use crate::probe::{Handle, Operation, Probe, Reply, TIMEOUT};
use crate::rules::{Policy, spiffe};
use crate::sandbox::Sandbox;

/// A sandbox and the workloads declared in it.
#[derive(Debug)]
pub struct Scene {
    sandbox: Sandbox,
    workloads: Vec<(String, Workload)>,
}

/// A process of a scene. It does what a [`Probe`] does.
#[derive(Debug)]
pub struct Party {
    /// Its SPIFFE ID; meaningless for who is not managed.
    pub id: String,
    /// The cgroup that its process is in.
    pub cgroup: Cgroup,
    /// The namespace that its process is in.
    pub host: Host,
    probe: Probe,
}

impl Scene {
    /// An empty one.
    pub fn new(label: &str) -> Result<Self> {
        Ok(Self {
            sandbox: Sandbox::new(label)?,
            workloads: Vec::new(),
        })
    }

    /// One with a `server`, which serves these ports, and a `client`.
    pub fn served(label: &str, ports: &[u16]) -> Result<(Self, Party, Party)> {
        let mut scene = Self::new(label)?;
        let (mut server, client) = (scene.workload("server")?, scene.workload("client")?);
        for port in ports {
            server
                .serve(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), *port))?
                .local()?;
        }
        Ok((scene, server, client))
    }

    /// The sandbox below it.
    pub fn sandbox(&self) -> &Sandbox {
        &self.sandbox
    }

    /// A namespace without anyone in it.
    pub fn host(&self, name: &str) -> Result<Host> {
        self.sandbox.host(name)
    }

    /// A workload with a cgroup, a namespace and addresses of its own.
    pub fn workload(&mut self, name: &str) -> Result<Party> {
        let host = self.host(name)?;
        let party = self.start(name, &self.sandbox.cgroup(name)?, &host)?;
        let workload = Workload::new(&party.id, &party.cgroup).at(host.addresses());
        self.workloads.push((name.to_owned(), workload));
        Ok(party)
    }

    /// A workload that shares a namespace with others, and so has no address of its own.
    pub fn workload_in(&mut self, name: &str, host: &Host) -> Result<Party> {
        let party = self.start(name, &self.sandbox.cgroup(name)?, host)?;
        let workload = Workload::new(&party.id, &party.cgroup);
        self.workloads.push((name.to_owned(), workload));
        Ok(party)
    }

    /// A process that no agent manages, in a namespace of its own.
    pub fn outsider(&self, name: &str) -> Result<Party> {
        self.outsider_in(name, &self.host(name)?)
    }

    /// A process that no agent manages, in a namespace that others may be in.
    pub fn outsider_in(&self, name: &str, host: &Host) -> Result<Party> {
        self.start(name, &self.sandbox.outside().child(name)?, host)
    }

    /// A process in a cgroup that is already there.
    pub fn start(&self, name: &str, cgroup: &Cgroup, host: &Host) -> Result<Party> {
        Ok(Party {
            id: spiffe(name),
            cgroup: cgroup.clone(),
            host: host.clone(),
            probe: self.sandbox.probe(cgroup, Some(host))?,
        })
    }

    /// Changes the declaration of a workload.
    pub fn declare(&mut self, name: &str, change: impl FnOnce(Workload) -> Workload) -> Result<()> {
        let found = self.workloads.iter_mut().find(|(known, _)| known == name);
        let (_, workload) = found.with_context(|| format!("no workload {name}"))?;
        *workload = change(workload.clone());
        Ok(())
    }

    /// Declares a workload that nobody runs in.
    pub fn add(&mut self, name: &str, workload: Workload) {
        self.workloads.push((name.to_owned(), workload));
    }

    /// What `workloads.yaml` shall say.
    pub fn workloads(&self) -> Vec<Workload> {
        self.workloads
            .iter()
            .map(|(_, workload)| workload.clone())
            .collect()
    }

    /// An agent that enforces this policy on the workloads declared so far, not started yet.
    pub fn agent(&self, policy: &Policy) -> Result<AgentBuilder> {
        self.for_all(self.sandbox.agent()?, policy)
    }

    /// One more agent on the same pins, with a policy, files and ports of its own.
    pub fn agent_beside(&self, name: &str, policy: &Policy) -> Result<AgentBuilder> {
        self.for_all(self.sandbox.agent_beside(name)?, policy)
    }

    fn for_all(&self, agent: AgentBuilder, policy: &Policy) -> Result<AgentBuilder> {
        let agent = agent.mode("enforce");
        let agent = self.workloads().into_iter().fold(agent, AgentBuilder::workload);
        agent.policy("policy.yaml", &policy.text())
    }
}

impl Party {
    /// A port at its IPv4 address.
    pub fn v4(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.host.ipv4.into(), port)
    }

    /// As [`Self::v4`], for who speaks without a kernel.
    pub fn socket_v4(&self, port: u16) -> SocketAddrV4 {
        SocketAddrV4::new(self.host.ipv4, port)
    }

    /// A port at each of its addresses, and at the v4-mapped form of one.
    pub fn everywhere(&self, port: u16) -> [SocketAddr; 3] {
        [self.v4(port), self.v6(port), self.mapped(port)]
    }

    /// Tries a TCP connection and closes it: `ok`, or the name of the error.
    pub fn tcp(&mut self, to: SocketAddr) -> Result<String> {
        let reply = self.connect(to)?;
        if let Some(socket) = reply.socket {
            self.close(socket)?;
        }
        Ok(reply.outcome().to_owned())
    }

    /// Connects to an echo server, sends a word, and waits for it: `ok`, `eof`, or the name of the error of either.
    pub fn talk(&mut self, to: SocketAddr) -> Result<String> {
        let connected = self.connect(to)?;
        let Some(socket) = connected.socket else {
            return Ok(connected.outcome().to_owned());
        };
        let sent = self.send_text(socket, "word")?;
        let reply = if sent.errno.is_none() {
            self.receive(socket)?
        } else {
            sent
        };
        self.close(socket)?;
        Ok(match reply.data.as_deref() {
            Some("") => "eof".to_owned(),
            _ => reply.outcome().to_owned(),
        })
    }

    /// How a connection ended within this time, or `alive`.
    pub fn end(&mut self, socket: Handle, timeout: Duration) -> Result<String> {
        let reply = self.call(Operation::WaitEnd { socket, timeout })?;
        Ok(reply.data.unwrap_or_else(|| "alive".to_owned()))
    }

    /// Waits for a connection to be destroyed. Whichever end goes first resets the other.
    pub fn dies(&mut self, socket: Handle) -> Result<()> {
        let end = self.end(socket, TIMEOUT)?;
        ensure!(["ECONNABORTED", "ECONNRESET"].contains(&end.as_str()), "{end}");
        Ok(())
    }

    /// Says a word on a connection, if there is one.
    pub fn say(&mut self, connected: &Reply, word: &str) -> Result<Option<Reply>> {
        connected
            .socket
            .map(|socket| self.send_text(socket, word))
            .transpose()
    }

    /// Waits for the reset that a connection to a destination that refuses it gets, and which may come at any moment from
    /// `connect` on. What it said before may have been `sent`, or have been answered with the reset.
    pub fn was_reset(&mut self, connected: &Reply, sent: Option<&Reply>) -> Result<()> {
        let Some(socket) = connected.socket else {
            ensure!(connected.outcome() == "ECONNRESET", "{connected:?}");
            return Ok(());
        };
        let end = self.end(socket, TIMEOUT)?;
        // Whoever is told of the reset first has it; after that there is only the end.
        let told = sent.is_some_and(|sent| sent.errno.is_some());
        ensure!(end == if told { "eof" } else { "ECONNRESET" }, "{end}, {sent:?}");
        Ok(())
    }

    /// Tries to send a datagram from a new unconnected socket: `ok`, or the name of the error.
    pub fn udp(&mut self, to: SocketAddr) -> Result<String> {
        let data = "datagram".to_owned();
        let reply = self.call(Operation::UdpSendTo {
            socket: None,
            to,
            data,
        })?;
        if let Some(socket) = reply.socket {
            self.close(socket)?;
        }
        Ok(reply.outcome().to_owned())
    }

    /// Tries to connect a new UDP socket: `ok`, or the name of the error.
    pub fn udp_connected(&mut self, to: SocketAddr) -> Result<String> {
        let reply = self.call(Operation::UdpConnect { socket: None, to })?;
        if let Some(socket) = reply.socket {
            self.close(socket)?;
        }
        Ok(reply.outcome().to_owned())
    }

    /// A port at its IPv6 address.
    pub fn v6(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.host.ipv6.into(), port)
    }

    /// A port at its IPv4 address, in the form that IPv6 sockets know it by.
    pub fn mapped(&self, port: u16) -> SocketAddr {
        SocketAddr::new(IpAddr::V6(self.host.ipv4.to_ipv6_mapped()), port)
    }
}

impl Deref for Party {
    type Target = Probe;

    fn deref(&self) -> &Probe {
        &self.probe
    }
}

impl DerefMut for Party {
    fn deref_mut(&mut self) -> &mut Probe {
        &mut self.probe
    }
}
