// SPDX-License-Identifier: Apache-2.0
//! The project's own tasks: `cargo xtask --help`. One file a task.

mod build_ebpf;
mod ebpf_build;
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
    /// Compile the kernel programs to target/bpf/zt-ebpf.o
    BuildEbpf,
}

fn main() -> ExitCode {
    let done = match Arguments::parse().task {
        Task::BuildEbpf => build_ebpf::run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
