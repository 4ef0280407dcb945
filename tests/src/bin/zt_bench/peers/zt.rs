// SPDX-License-Identifier: Apache-2.0
//! zt, with handshakes that prove who is at either end, or without.

use anyhow::{Context as _, Result};
use serde_json::json;
use zt_tests::programs::map_memory;

use crate::Plan;
use crate::change::replace;
use crate::memory::resident;
use crate::world::{World, filled, id, policy, rule};

use super::contender::Contender;
use super::place::{OPEN, Place, SWITCH};

const MIB: f64 = 1024.0 * 1024.0;
/// Rules in files of their own: the one that stays and the one that is switched.
const OWN: usize = 2;

/// An agent that enforces.
pub(super) struct Zt {
    world: World,
    place: Place,
    /// Of the policy before a change.
    revision: u64,
}

impl Zt {
    pub(super) fn start(plan: &Plan, handshake: &str, rules: usize) -> Result<(Self, String)> {
        let (agent_cpu, cpu) = plan.cpus();
        let mut place = None;
        let world = World::start(&format!("peers-{handshake}"), |sandbox, builder| {
            let (client, caller) = World::member(sandbox, "client")?;
            let (server, called) = World::member(sandbox, "server")?;
            let (other, stranger) = World::member(sandbox, "other")?;
            place = Some(Place {
                host: sandbox.host("host")?,
                client,
                server,
                other,
                cpu,
                behind: None,
                stranger: None,
            });
            let builder = builder
                .config("handshake", json!(handshake))
                .workload(caller)
                .workload(called)
                .workload(stranger)
                .policy("open.yaml", &own("open", OPEN))?
                .policy("switch.yaml", &switch(true))?;
            filled(builder, rules - OWN)
        })?;
        world.confine_agent(agent_cpu)?;
        let zt = Self {
            world,
            place: place.context("the world was prepared")?,
            revision: 0,
        };
        Ok((
            zt,
            format!("zt {}, handshake: {handshake}", env!("CARGO_PKG_VERSION")),
        ))
    }

    fn pid(&self) -> Result<u32> {
        self.world.agent.pid().context("the agent is running")
    }
}

/// A policy with one rule: the client may reach the server at a port.
fn own(name: &str, port: u16) -> String {
    let [client, server] = ["client", "server"].map(|name| format!("spiffe: '{}'", id(name)));
    policy(name, &rule(&client, &server, port))
}

/// The policy that is changed: about the port, or about another one in its place.
fn switch(open: bool) -> String {
    own("switch", if open { SWITCH } else { SWITCH + 1 })
}

impl Contender for Zt {
    fn place(&self) -> &Place {
        &self.place
    }

    fn rules(&mut self, count: usize) -> Result<()> {
        self.world.fill(count - OWN)?;
        self.world.settle()
    }

    fn switch(&mut self, open: bool) -> Result<u64> {
        self.revision = self.world.agent.revision()?;
        replace(&self.world, "switch.yaml", &switch(open))
    }

    fn settle(&mut self) -> Result<()> {
        self.world.agent.wait_revision_after(self.revision).map(drop)
    }

    fn helpers(&self) -> Vec<u32> {
        self.world.agent.pid().into_iter().collect()
    }

    fn memory(&self) -> Result<Option<f64>> {
        let pid = self.pid()?;
        let maps: u64 = map_memory(pid)?.values().sum();
        Ok(Some(resident(pid)? + maps as f64 / MIB))
    }
}
