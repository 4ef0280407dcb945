// SPDX-License-Identifier: Apache-2.0
//! The trial, in the order in which it is made: a world, an agent that observes, enforces, is told another policy, and is killed.

mod configured;
mod destination;
mod flows;
mod revocation;

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use serde_json::Value;

use super::super::agent::Agent;
use super::super::cast::Who;
use super::super::error::DemoError;
use super::super::files::Setup;
use super::super::names::{Kind, Names};
use super::super::process;
use super::super::screen::Screen;
use super::super::world::{Extent, World};
use super::ipv6;
use super::report::{Report, Row, Verdict};
use crate::cli::Format;
use crate::config::{Config, Handshake};

/// What datagrams may do beside what the policy of the demo allows.
const DATAGRAMS: &str = "\
apiVersion: zt.hanzo.ai/v1
kind: ServiceAccessPolicy
metadata:
  name: datagrams
spec:
  rules:
    - from:
        spiffe: \"spiffe://hanzo.ai/hanzo-k8s/hanzo/iam\"
      to:
        - spiffe: \"spiffe://hanzo.ai/hanzo-k8s/hanzo/postgres\"
          protocol: UDP
          ports: [5432]
";

/// The trial, as its own process.
#[derive(Debug, Args)]
pub struct TrialArgs {
    /// The process that cleans up.
    #[arg(long)]
    owner: u32,
    /// Where cgroup2 is mounted.
    #[arg(long)]
    mount: PathBuf,
    /// Lines of the agent's configuration.
    #[arg(long)]
    settings: String,
    /// How to print.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// Everything that is tried with.
struct Trial {
    world: World,
    agent: Agent,
    /// Of the configuration what it is tried with.
    config: Config,
    /// Why nothing is tried over IPv6.
    no_ipv6: Option<&'static str>,
    rows: Vec<Row>,
}

/// Tries everything. Whether it came out as it must.
pub(crate) fn try_all(arguments: &TrialArgs) -> Result<bool, DemoError> {
    if !process::die_with(arguments.owner)? {
        return Ok(false);
    }
    let begin = Instant::now();
    let config = Config::parse("the configuration that is tried", &arguments.settings)?;
    let no_ipv6 = ipv6::missing(Path::new("/proc"));
    let names = Names::of(Kind::Connectivity, arguments.owner, &arguments.mount);
    progress("building cgroups, network namespaces, a bridge and servers");
    let extent = Extent {
        datagrams: true,
        ipv6: no_ipv6.is_none(),
        others: &[Who::Nobody, Who::Host],
    };
    let world = World::build(names, extent)?;
    let setup = Setup {
        settings: arguments.settings.clone(),
        policies: &[("datagrams.yaml", DATAGRAMS)],
        at_the_bridge: true,
    };
    let mut agent = Agent::new(&world.names, &setup)?;
    progress("starting an agent: the kernel verifies its programs");
    agent.start()?;
    let mut trial = Trial {
        world,
        agent,
        config,
        no_ipv6,
        rows: Vec::new(),
    };
    // What has been found by then is worth knowing, too.
    if let Err(error) = trial.run() {
        let row = Row::new("completion", "everything is tried", false, error.to_string());
        trial.rows.push(row);
    }
    let report = Report {
        passed: trial.rows.iter().all(|row| row.result != Verdict::Failed),
        version: env!("CARGO_PKG_VERSION"),
        kernel: release(),
        handshake: trial.config.handshake.name(),
        seconds: begin.elapsed().as_secs_f64(),
        checks: &trial.rows,
    };
    let screen = Screen::new(true);
    match arguments.format {
        Format::Table => report.print(&screen)?,
        Format::Json => {
            let text = serde_json::to_string_pretty(&report)
                .map_err(|error| DemoError::io("write a report")(error.into()))?;
            screen.raw(&text)?;
        }
    }
    Ok(report.passed)
}

/// Says what is being done: each takes a second or more.
fn progress(what: &str) {
    eprintln!("{what} ...");
}

fn release() -> String {
    nix::sys::utsname::uname().map_or_else(
        |_| "unknown".to_owned(),
        |name| name.release().to_string_lossy().into_owned(),
    )
}

impl Trial {
    fn run(&mut self) -> Result<(), DemoError> {
        progress("observing: what policy does not allow is let through");
        self.observe()?;
        self.unnamed()?;
        progress("enforcing: what it allows, and what it does not");
        self.enforce()?;
        self.allow()?;
        self.deny()?;
        self.evaluate()?;
        self.itself()?;
        self.the_host()?;
        progress("the receiving end, and who borrows an address");
        self.at_the_destination()?;
        progress("taking rules away under live connections");
        self.revoke()?;
        progress("killing the agent");
        self.without_the_agent()
    }

    /// Whether handshakes bear identities.
    fn proves(&self) -> bool {
        self.config.handshake != Handshake::Off
    }

    fn note(&mut self, row: Row) {
        self.rows.push(row);
    }

    /// Waits until as many workloads observe.
    fn wait_observing(&self, observing: usize) -> Result<bool, DemoError> {
        let status = self.agent.get_until("/v1/status", &[], |status| {
            status["modes"]["observe"] == observing
        })?;
        Ok(status.is_some())
    }

    /// A record of a decision about `source` and `destination` for which `is_it` holds; `None` where there never is one.
    fn record(
        &self,
        source: Option<Who>,
        destination: Who,
        is_it: impl Fn(&Value) -> bool,
    ) -> Result<Option<Value>, DemoError> {
        let mut query = vec![("destination", destination.spiffe()), ("limit", "200".to_owned())];
        query.extend(source.map(|source| ("source", source.spiffe())));
        let find = |answer: &Value| {
            let records = answer["records"].as_array()?;
            records.iter().find(|record| is_it(record)).cloned()
        };
        let found = self
            .agent
            .get_until("/v1/audit", &query, |answer| find(answer).is_some())?;
        Ok(found.as_ref().and_then(find))
    }
}
