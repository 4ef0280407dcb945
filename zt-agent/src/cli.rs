// SPDX-License-Identifier: Apache-2.0
//! The command line. Most commands ask a running agent over its API; `policy check` and `evaluate --policy` work on
//! files alone, with the very code that the agent runs.

mod audit;
mod behind;
pub mod client;
mod completions;
mod decision;
pub mod detach;
mod doctor;
mod engine;
mod evaluate;
mod exit;
mod graph;
mod identity;
mod mode;
mod monitor;
mod offline;
mod output;
mod policy;
mod problems;
mod rollout;
pub mod run;
mod status;
mod sysdump;
mod table;
mod traffic;
mod trail;
mod when;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::demo::{self, ConnectivityArgs, DemoArgs, DemoProcess};

pub use exit::{Exit, Failure, report};
pub use output::{Format, Output};
pub(crate) use rollout::why_stopped;

/// Identity policy, enforced by the Linux kernel.
#[derive(Debug, Parser)]
#[command(
    name = "zt-agent",
    version,
    about,
    long_about = "Identity policy, enforced by the Linux kernel.\n\n\
        A workload is its SPIFFE ID, known by its cgroup. Policy says who may reach whom; the kernel refuses the rest \
        at connect(), and every decision is recorded.",
    after_help = "Exit codes: 0 done, 1 failed, 2 usage, 64 bad configuration or policy, 77 the kernel or a privilege is missing.",
    propagate_version = true,
    max_term_width = 100
)]
pub struct Cli {
    /// How much to log: error, warn, info, debug, trace, or directives
    #[arg(
        long,
        env = "ZT_LOG",
        value_name = "LEVEL",
        global = true,
        default_value = "info"
    )]
    pub log_level: String,

    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
#[non_exhaustive]
pub enum Command {
    /// Run the node agent
    Run(run::StartArgs),
    /// Run a policy engine: the API over a policy directory, without the kernel
    #[command(
        long_about = "Run a policy engine: the API over a policy directory, without the kernel.\n\n\
            It answers and records evaluations, takes changes of policy, and is what agents with `policySource: engine` \
            follow. It needs no privilege. Several engines may share one policy directory and one PostgreSQL; each \
            has a spool of its own. It takes the settings of `run`; those about the kernel, cgroups and modes of workloads \
            do nothing here but say what the answers shall say."
    )]
    Engine(run::RunArgs),
    /// See it work: a self-contained tour on this machine, which removes everything it made
    Demo(DemoArgs),
    /// What the demo starts.
    #[command(subcommand, hide = true)]
    DemoProcess(DemoProcess),
    /// Show the agent's hooks, policy revision, identities and losses
    Status(status::StatusArgs),
    /// Print decisions as they fall
    Monitor(monitor::MonitorArgs),
    /// Ask for one decision and the rule that makes it
    Evaluate(evaluate::EvaluateArgs),
    /// Check, list, compare, apply and delete policies
    #[command(subcommand)]
    Policy(policy::PolicyCommand),
    /// Go from observing to enforcing, stage by stage, and back
    #[command(subcommand)]
    Rollout(rollout::RolloutCommand),
    /// Show which SPIFFE ID is which number, cgroup and address
    #[command(subcommand)]
    Identity(identity::IdentityCommand),
    /// Search, export and check the recorded decisions
    #[command(subcommand)]
    Audit(audit::AuditCommand),
    /// Draw who talks to whom
    Graph(graph::GraphArgs),
    /// Break-glass: stop refusing on this node, or go back
    #[command(subcommand)]
    Mode(mode::ModeCommand),
    /// Look at this machine, and say what is wrong and what to do about it
    Doctor(doctor::DoctorArgs),
    /// Prove on this machine that its kernel does what policy says
    ConnectivityTest(ConnectivityArgs),
    /// Gather in one archive what support would ask for, without secrets
    Sysdump(sysdump::SysdumpArgs),
    /// Remove every hook, map and pin: enforcement ends on this node
    Detach(detach::DetachArgs),
    /// Print a completion script for a shell
    Completions(completions::CompletionsArgs),
}

/// Parses `arguments` (the program's name first) and does what they say.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        // Help and version are no errors, and go to standard output.
        Err(error) => error.exit(),
    };
    report(execute(cli)).into()
}

fn execute(cli: Cli) -> Result<Exit, Failure> {
    match cli.command {
        Command::Run(arguments) => run::run(&arguments, &cli.log_level),
        Command::Engine(arguments) => engine::engine(&arguments, &cli.log_level),
        Command::Demo(arguments) => Ok(demo::demo(arguments)),
        Command::DemoProcess(process) => Ok(demo::process(&process)),
        Command::Detach(arguments) => detach::detach(&arguments),
        Command::Doctor(arguments) => block_on(doctor::doctor(&arguments)),
        Command::ConnectivityTest(arguments) => Ok(demo::connectivity(&arguments)),
        Command::Sysdump(arguments) => block_on(sysdump::sysdump(&arguments)),
        Command::Status(arguments) => block_on(status::status(&arguments)),
        Command::Monitor(arguments) => block_on(monitor::monitor(&arguments)),
        Command::Evaluate(arguments) => evaluate::evaluate(&arguments),
        Command::Policy(command) => policy::policy(&command),
        Command::Rollout(command) => block_on(rollout::rollout(&command)),
        Command::Identity(command) => block_on(identity::identity(&command)),
        Command::Audit(command) => block_on(audit::audit(&command)),
        Command::Graph(arguments) => block_on(graph::graph(&arguments)),
        Command::Mode(command) => block_on(mode::mode(&command)),
        Command::Completions(arguments) => completions::completions(&arguments),
    }
}

/// Runs a command that talks to the agent. One thread is enough for that.
fn block_on<T>(command: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(Failure::Io)?.block_on(command)
}

#[cfg(test)]
mod tests;
