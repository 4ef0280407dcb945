// SPDX-License-Identifier: Apache-2.0
//! `zt-peers`: decisions in user space by a call, zt's own and those of other engines on the same rules. Started by
//! `zt-bench evaluate`, which makes a table of what it prints. And `zt-peers plot`: the picture of what `zt-bench --peers` measured,
//! so that what draws it is no part of zt.

mod cedar;
mod measure;
mod plot;
mod questions;
mod rego;
mod zt;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Measure decisions of several engines; prints JSON
#[derive(Parser)]
#[command(name = "zt-peers", args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    task: Option<Task>,
    /// How often each engine has its turn
    #[arg(long, default_value_t = 15)]
    rounds: usize,
}

#[derive(Subcommand)]
enum Task {
    /// Draw what `zt-bench --peers` measured
    Plot {
        /// Its figures, as JSON
        figures: PathBuf,
        /// Where the picture goes, as SVG
        picture: PathBuf,
    },
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if let Some(Task::Plot { figures, picture }) = &arguments.task {
        return plot::write(figures, picture);
    }
    let measured = measure::all(arguments.rounds)?;
    println!("{}", serde_json::to_string(&measured)?);
    Ok(())
}
