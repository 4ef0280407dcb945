// SPDX-License-Identifier: Apache-2.0
//! The world of the demo, built and populated.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use super::actor::Actor;
use super::cast::Who;
use super::error::DemoError;
use super::names::Names;
use super::order::Outcome;
use super::servers::{self, Server};
use super::{cleanup, ground, network};

/// How long a server may take to serve.
const DEADLINE: Duration = Duration::from_mins(1);

/// What differs from one world to another.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extent {
    /// The built-in servers alone, which answer datagrams too.
    pub(super) datagrams: bool,
    /// Both families of addresses, and not IPv4 alone.
    pub(super) ipv6: bool,
    /// Who is there beside the five services.
    pub(super) others: &'static [Who],
}

impl Default for Extent {
    fn default() -> Self {
        Self {
            datagrams: false,
            ipv6: true,
            others: &[],
        }
    }
}

/// Everything that exists before there is an agent.
#[derive(Debug)]
pub(super) struct World {
    pub(super) names: Names,
    actors: Vec<Actor>,
    servers: Vec<(Who, Server)>,
    ipv6: bool,
}

impl World {
    /// Builds it, and waits until everyone serves.
    pub(super) fn build(names: Names, extent: Extent) -> Result<Self, DemoError> {
        cleanup::prepare(&names)?;
        let root = names.root();
        ground::change_in(root.parent().unwrap_or(&root), || fs::create_dir(&root))
            .map_err(DemoError::at("make the cgroup", &root))?;
        for who in Who::ALL.iter().chain(extent.others) {
            let directory = names.cgroup_directory(*who);
            fs::create_dir_all(&directory).map_err(DemoError::at("make the cgroup", &directory))?;
        }
        let agent = names.agent_cgroup();
        fs::create_dir(&agent).map_err(DemoError::at("make the cgroup", &agent))?;
        network::create(&names, extent.ipv6)?;
        let mut world = Self {
            names,
            actors: Vec::new(),
            servers: Vec::new(),
            ipv6: extent.ipv6,
        };
        for who in Who::ALL {
            let server = if extent.datagrams {
                Server::BuiltIn
            } else {
                servers::start(&world.names, who)?
            };
            let mut serve = match server {
                Server::BuiltIn if extent.datagrams => vec!["--serve", "--datagrams"],
                Server::BuiltIn => vec!["--serve"],
                Server::Real(_) => Vec::new(),
            };
            if !extent.ipv6 {
                serve.push("--ipv4-only");
            }
            world.actors.push(Actor::start(&world.names, who, &serve)?);
            world.servers.push((who, server));
        }
        for who in extent.others {
            world.actors.push(Actor::start(&world.names, *who, &[])?);
        }
        for who in Who::SERVERS {
            world.wait_serving(who)?;
        }
        Ok(world)
    }

    /// The process that acts for `who`.
    pub(super) fn actor(&mut self, who: Who) -> Result<&mut Actor, DemoError> {
        let found = self.actors.iter_mut().find(|actor| actor.who == who);
        found
            .ok_or_else(|| DemoError::io(format!("find {}", who.name()))(std::io::ErrorKind::NotFound.into()))
    }

    /// Which server serves for `who`.
    pub(super) fn server(&self, who: Who) -> Server {
        let found = self.servers.iter().find(|(of, _)| *of == who);
        found.map_or(Server::BuiltIn, |(_, server)| server.clone())
    }

    /// A server is asked by its own workload, which may always reach itself.
    fn wait_serving(&mut self, who: Who) -> Result<(), DemoError> {
        let begin = Instant::now();
        for ipv6 in [false, true] {
            if ipv6 && !self.ipv6 {
                continue;
            }
            loop {
                let report = self.actor(who)?.reach(who, ipv6, 1)?;
                if matches!(report.outcome, Outcome::Reached { .. }) {
                    break;
                }
                if begin.elapsed() > DEADLINE {
                    return Err(DemoError::Workload {
                        who: who.name(),
                        message: format!("does not serve within {DEADLINE:?} ({:?})", report.outcome),
                        log: self
                            .names
                            .directory()
                            .join(format!("{}-server.log", who.name()))
                            .display()
                            .to_string(),
                    });
                }
                thread::sleep(Duration::from_millis(10));
            }
        }
        Ok(())
    }
}
