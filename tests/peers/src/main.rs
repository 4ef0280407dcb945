// SPDX-License-Identifier: Apache-2.0
//! `zt-peers`: decisions in user space by a call, zt's own and those of other engines on the same rules. Started by
//! `zt-bench evaluate`, which makes a table of what it prints.

mod cedar;
mod measure;
mod questions;
mod rego;
mod zt;

use anyhow::Result;
use clap::Parser;

/// Measure decisions of several engines; prints JSON
#[derive(Parser)]
#[command(name = "zt-peers")]
struct Arguments {
    /// How often each engine has its turn
    #[arg(long, default_value_t = 15)]
    rounds: usize,
}

fn main() -> Result<()> {
    let measured = measure::all(Arguments::parse().rounds)?;
    println!("{}", serde_json::to_string(&measured)?);
    Ok(())
}
