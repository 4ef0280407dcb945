// SPDX-License-Identifier: Apache-2.0
//! The project's own tasks: `cargo xtask --help`. One file a task.

mod bench;
mod build_ebpf;
mod chart;
mod containerd;
mod controller_manager;
mod demo;
mod ebpf_build;
mod fuzz;
mod golang;
mod image;
mod instructions;
mod kubernetes;
mod package;
mod privilege;
mod setup;
mod spelling;
mod spire;
mod supply_chain;
mod test;
mod test_report;
mod tidy;
mod upgrade;
mod vm;
mod wheels;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The project's own tasks.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what building, testing and the demo need
    Setup {
        /// Only report what is missing
        #[arg(long)]
        check: bool,
    },
    /// Compile the kernel programs to target/bpf/zt-ebpf.o
    BuildEbpf,
    /// Build the agent and start its tour of this machine
    Demo {
        /// Build with optimizations
        #[arg(long)]
        release: bool,
        /// Arguments for `zt-agent demo`, such as --keep
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Check and test, after setting the machine up, or only some of it
    Test {
        /// What to run; `all` if nothing is named
        tiers: Vec<test::Tier>,
        /// Take down how many instructions the verifier walks, for later runs to compare with (tiers `kernel` and `vm`)
        #[arg(long)]
        record_instructions: bool,
        /// The commit whose agent is exchanged for this one (tier `upgrade`)
        #[arg(long, value_name = "REVISION")]
        from: Option<String>,
        /// Arguments for the test binaries, such as the name of a test
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// Measure what zt costs, as a table and in target/bench.json; with --peers what others cost beside it, as
    /// target/bench-peers.json and target/bench-peers.svg
    Bench {
        /// What to measure (nothing named: everything), --peers, --quick, -o json, --json FILE; `-- --help` lists them
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Give parsers arbitrary bytes, with libFuzzer and a nightly compiler
    Fuzz {
        /// One of the targets of `fuzz/fuzz_targets`; all of them, one after the other, if none is named
        target: Option<String>,
        /// How long each runs
        #[arg(long, default_value_t = 60)]
        seconds: u32,
    },
    /// Check what the compiler does not: import rules, headers, sizes, names, documentation
    Tidy,
    /// List every unsafe place, of the kernel programs too, and why it is sound
    UnsafeCode,
}

fn main() -> ExitCode {
    let done = match Arguments::parse().task {
        Task::Setup { check } => setup::run(check),
        Task::BuildEbpf => build_ebpf::run(),
        Task::Demo { release, arguments } => demo::run(release, &arguments),
        Task::Test {
            tiers,
            record_instructions,
            from,
            arguments,
        } => {
            // Its last line says what came of it.
            let passed = test::run(&tiers, record_instructions, from.as_deref(), &arguments);
            return if passed {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            };
        }
        Task::Bench { arguments } => bench::run(&arguments),
        Task::Fuzz { target, seconds } => fuzz::run(target.as_deref(), seconds),
        Task::Tidy => tidy::run(),
        Task::UnsafeCode => tidy::unsafe_code(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
