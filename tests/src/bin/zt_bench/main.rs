// SPDX-License-Identifier: Apache-2.0
//! `zt-bench`: measures what zt costs and how fast it is, against the project's own targets, which the README names. Started by
//! `cargo xtask bench`.
//!
//! Every ratio is of things measured in turn in one run, round after round, on one CPU; what is told are medians with
//! the least and the greatest. Nothing here fails for being slow.

mod birth;
mod calls;
mod change;
mod crew;
mod decision;
mod evaluate;
mod fleet;
mod fronts;
mod handshake;
mod http;
mod load;
mod machine;
mod memory;
mod monitor;
mod nodes;
mod order;
mod outage;
mod peers;
mod pods;
mod processor;
mod query;
mod replay;
mod report;
mod revocation;
mod samples;
mod spire;
mod traffic;
mod trail;
mod worker;
mod world;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::{Parser, Subcommand, ValueEnum};

use crate::machine::Machine;
use crate::report::{Metric, Part, Report};

/// Nothing is begun any more after this time. The longest part takes about six minutes.
const LIMIT: Duration = Duration::from_secs(20 * 60);

/// Measure what zt costs and how fast it is; as root
#[derive(Parser)]
#[command(name = "zt-bench", args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    role: Option<Role>,
    /// What to measure; everything if nothing is named
    #[arg(value_enum)]
    names: Vec<Bench>,
    /// What others cost beside zt: nftables, iptables and Envoy, with 10 to 10,000 rules
    #[arg(long, conflicts_with = "names")]
    peers: bool,
    /// A few minutes in all, at the price of more noise
    #[arg(long)]
    quick: bool,
    /// How to print the result
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// Where to write the result as JSON, too
    #[arg(long)]
    json: Option<PathBuf>,
    /// Records in each store for `query`; 10,000,000, or 200,000 with --quick
    #[arg(long, value_parser = clap::value_parser!(u64).range(1000..))]
    rows: Option<u64>,
    /// Workloads in these records, each of which talks to few of the others
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(10..))]
    parties: u64,
    /// Seconds that the database is away in `outage`; an hour is 3600, and takes some 25 GB of the disk twice
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    outage: Option<u32>,
    /// Thousands of decisions a second in `outage`; 50, or 20 with --quick
    #[arg(long, value_name = "THOUSANDS", value_parser = clap::value_parser!(u32).range(2..))]
    outage_rate: Option<u32>,
    /// Where `query` writes how PostgreSQL found its answers
    #[arg(long, default_value = "bench-plans.json")]
    plans: PathBuf,
}

#[derive(Subcommand)]
enum Role {
    /// Carry out orders from standard input (what the benchmark starts itself)
    #[command(hide = true)]
    Worker(worker::Start),
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

/// What can be measured, in the order in which it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Bench {
    /// Opening connections, source or both ends managed
    Connect,
    /// Round trips and bulk on established connections
    Established,
    /// Connections whose handshake proves both ends, and the size of each program
    Handshake,
    /// Refused connects
    Denied,
    /// The kernel's time for one decision, with ever larger tables
    Decision,
    /// The programs that a connection runs
    Profile,
    /// Change of policy to first changed verdict
    Change,
    /// Removal of a rule to the last connection dead
    Revocation,
    /// Decisions into the store without loss
    Trail,
    /// The database away at full load, and back: by default for 20 seconds
    Outage,
    /// New cgroup to identity in the map
    Birth,
    /// Memory of the agent and of its maps
    Memory,
    /// A cluster of 5,500 pods and 1,000 Services: listed, churned, and what that takes
    Kubernetes,
    /// A node with 500 others whose agents tell it of 50,000 addresses, and a new workload until another node knows it
    Nodes,
    /// Process in a new cgroup to the identity that a real SPIRE gives it
    Spire,
    /// Decisions in user space by a call, beside other engines on the same rules
    Evaluate,
    /// Decisions over HTTP, asked for by wrk
    Http,
    /// Millions of records in both stores: inserts, pages, graph
    Query,
    /// `zt-agent policy replay` of a million connections of which no two are the same
    Replay,
    /// `zt-agent monitor`, on a terminal and as lines, of 50,000 decisions a second: ready-made ones, and those of an agent beside it
    Monitor,
}

impl Bench {
    fn run(self, plan: &Plan, metrics: &mut Vec<Metric>) -> Result<()> {
        match self {
            Self::Connect => traffic::connect(plan, metrics),
            Self::Established => traffic::established(plan, metrics),
            Self::Handshake => handshake::proof(plan, metrics),
            Self::Denied => traffic::denied(plan, metrics),
            Self::Decision => decision::cost(plan, metrics),
            Self::Profile => traffic::profile(plan, metrics),
            Self::Change => change::effect(plan, metrics),
            Self::Revocation => revocation::kill_all(plan, metrics),
            Self::Trail => trail::rates(plan, metrics),
            Self::Outage => outage::of_database(plan, metrics),
            Self::Birth => birth::identity(plan, metrics),
            Self::Memory => memory::of_agent(plan, metrics),
            Self::Kubernetes => pods::cluster(plan, metrics),
            Self::Nodes => nodes::all(plan, metrics),
            Self::Spire => spire::attested(plan, metrics),
            Self::Evaluate => evaluate::in_process(plan, metrics),
            Self::Http => http::evaluate(plan, metrics),
            Self::Query => query::trails(plan, metrics),
            Self::Replay => replay::command(plan, metrics),
            Self::Monitor => monitor::keeps_up(plan, metrics),
        }
    }
}

/// How much to measure, and where.
#[derive(Debug)]
pub(crate) struct Plan {
    /// A short run.
    pub(crate) quick: bool,
    /// Records in a full store.
    pub(crate) rows: u64,
    /// Workloads in them.
    pub(crate) parties: u64,
    /// Seconds that the database is away, where that is said.
    pub(crate) outage: Option<u32>,
    /// Thousands of decisions a second meanwhile, where that is said.
    pub(crate) outage_rate: Option<u32>,
    /// Where the plans of the database go.
    pub(crate) plans: PathBuf,
    cpus: (usize, usize),
}

impl Plan {
    /// Rounds of a short run, or of a full one.
    pub(crate) fn rounds(&self, quick: usize, full: usize) -> usize {
        if self.quick { quick } else { full }
    }

    /// The CPU for the agent, and the one for what is measured.
    pub(crate) fn cpus(&self) -> (usize, usize) {
        self.cpus
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match &arguments.role {
        Some(Role::Worker(start)) => worker::run(start),
        None => measure(&arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(arguments: &Arguments) -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "it makes cgroups and network namespaces and loads programs into the kernel, which needs root: run `cargo xtask bench`"
    );
    let machine = Machine::here();
    let plan = Plan {
        quick: arguments.quick,
        rows: arguments
            .rows
            .unwrap_or(if arguments.quick { 200_000 } else { 10_000_000 }),
        parties: arguments.parties,
        outage: arguments.outage,
        outage_rate: arguments.outage_rate,
        plans: arguments.plans.clone(),
        cpus: machine.places(),
    };
    if arguments.peers {
        return beside(&plan, machine, arguments);
    }
    let mut report = Report {
        machine,
        quick: plan.quick,
        parts: Vec::new(),
        metrics: Vec::new(),
        failures: Vec::new(),
    };
    let begun = Instant::now();
    for bench in Bench::value_variants() {
        if !arguments.names.is_empty() && !arguments.names.contains(bench) {
            continue;
        }
        if begun.elapsed() > LIMIT {
            report.failures.push(format!(
                "{bench:?}: not begun, {} minutes were over",
                LIMIT.as_secs() / 60
            ));
            continue;
        }
        let load = machine::load();
        eprintln!("measuring {bench:?}, load {load}");
        let start = Instant::now();
        if let Err(error) = bench.run(&plan, &mut report.metrics) {
            report.failures.push(format!("{bench:?}: {error:#}"));
        }
        let seconds = start.elapsed().as_secs_f64();
        eprintln!("measured {bench:?} in {seconds:.1} s");
        report.parts.push(Part {
            name: format!("{bench:?}").to_lowercase(),
            load,
            seconds,
        });
        // What is measured by now is kept, whatever becomes of the rest.
        report::write(&report, arguments.json.as_deref())?;
    }
    report::write(&report, arguments.json.as_deref())?;
    match arguments.output {
        Output::Table => print!("{}", report.table()),
        Output::Json => println!("{}", report::json(&report)?),
    }
    ensure!(
        report.failures.is_empty(),
        "{} of the benchmarks could not be measured",
        report.failures.len()
    );
    Ok(())
}

/// What others cost beside zt, instead of all parts.
fn beside(plan: &Plan, machine: Machine, arguments: &Arguments) -> Result<()> {
    let figures = peers::compare(plan, machine, arguments.json.as_deref())?;
    report::write(&figures, arguments.json.as_deref())?;
    match arguments.output {
        Output::Table => print!("{}", figures.table()),
        Output::Json => println!("{}", report::json(&figures)?),
    }
    let failures = figures.failures();
    ensure!(
        failures.is_empty(),
        "not all could be measured: {}",
        failures.join("; ")
    );
    Ok(())
}
