// SPDX-License-Identifier: Apache-2.0
//! `zt-peers plot`: what `zt-bench --peers` measured, as a picture.

mod axis;
mod palette;
mod picture;

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

/// What `zt-bench --peers` has written.
#[derive(Deserialize)]
struct Run {
    machine: Machine,
    quick: bool,
    rules: Vec<u32>,
    measures: Vec<Title>,
    contenders: Vec<About>,
    figures: Vec<Figure>,
}

#[derive(Deserialize)]
struct Machine {
    kernel: String,
    processor: String,
    cpus: usize,
    load: String,
    version: String,
}

#[derive(Deserialize)]
struct Title {
    measure: String,
    title: String,
    unit: String,
}

#[derive(Deserialize)]
struct About {
    name: String,
    version: Option<String>,
    lacks: Option<String>,
}

#[derive(Deserialize)]
struct Figure {
    measure: String,
    rules: u32,
    contender: String,
    summary: Summary,
}

#[derive(Deserialize)]
struct Summary {
    median: f64,
    min: f64,
    max: f64,
}

/// Reads the figures and writes the picture.
pub(crate) fn write(figures: &Path, picture: &Path) -> Result<()> {
    let text = fs::read_to_string(figures).with_context(|| format!("cannot read {}", figures.display()))?;
    let run: Run =
        serde_json::from_str(&text).with_context(|| format!("{} is no such run", figures.display()))?;
    ensure!(!run.figures.is_empty(), "nothing was measured");
    fs::write(picture, picture::draw(&run)?).with_context(|| format!("cannot write {}", picture.display()))
}
