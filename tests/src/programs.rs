// SPDX-License-Identifier: Apache-2.0
//! What the kernel says of programs and maps: how often they ran, how long, how large they are.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::{Context as _, Result};
use aya::maps::MapInfo;
use aya::programs::loaded_programs;
use aya::sys::{Stats, enable_stats};

/// What a program did and is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Program {
    /// Time spent in it, with what measuring it costs (two readings of the clock a run).
    pub time: Duration,
    /// How often it ran.
    pub runs: u64,
    /// Size in bytes after verification; an instruction has eight.
    pub translated: u32,
    /// Instructions that the verifier walked.
    pub verified: u32,
}

impl Program {
    /// What it did since `before`.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        Self {
            time: self.time.saturating_sub(before.time),
            runs: self.runs - before.runs,
            ..self
        }
    }

    /// Nanoseconds a run; 0 where it did not run.
    pub fn nanoseconds(&self) -> f64 {
        self.time.as_nanos() as f64 / self.runs.max(1) as f64
    }
}

/// Has the kernel measure programs until this is dropped. Whoever else has it measure is not in the way: each has a descriptor
/// that keeps it on, which the switch of the whole machine (`kernel.bpf_stats_enabled`) is not.
#[derive(Debug)]
pub struct Measuring {
    _stats: OwnedFd,
    numbers: BTreeMap<String, u32>,
}

impl Measuring {
    /// Begins. `numbers` are the programs to tell of, by name.
    pub fn begin(numbers: BTreeMap<String, u32>) -> Result<Self> {
        let stats = enable_stats(Stats::RunTime)
            .context("cannot have the kernel measure programs (BPF_ENABLE_STATS)")?;
        Ok(Self {
            _stats: stats,
            numbers,
        })
    }

    /// What they did so far.
    pub fn read(&self) -> BTreeMap<String, Program> {
        let mut found = BTreeMap::new();
        for info in loaded_programs() {
            // Others' programs come and go meanwhile.
            let Ok(info) = info else { continue };
            if let Some((name, _)) = self.numbers.iter().find(|(_, number)| **number == info.id()) {
                let program = Program {
                    time: info.run_time(),
                    runs: info.run_count(),
                    translated: info.size_translated().unwrap_or(0),
                    verified: info.verified_instruction_count().unwrap_or(0),
                };
                found.insert(name.clone(), program);
            }
        }
        found
    }

    /// What they did while `work` ran.
    pub fn during(&self, work: impl FnOnce() -> Result<()>) -> Result<BTreeMap<String, Program>> {
        let before = self.read();
        work()?;
        let mut after = self.read();
        for (name, program) in &mut after {
            *program = program.since(before.get(name).copied().unwrap_or_default());
        }
        Ok(after)
    }
}

/// The programs that a process has open, by themselves or in links, by name.
pub fn held_by(pid: u32) -> Result<BTreeMap<String, u32>> {
    let mut held = BTreeSet::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        // Descriptors come and go meanwhile.
        let text = fs::read_to_string(entry?.path()).unwrap_or_default();
        let id = text.lines().find_map(|line| line.strip_prefix("prog_id:"));
        held.extend(id.and_then(|id| id.trim().parse::<u32>().ok()));
    }
    let infos = loaded_programs().filter_map(|info| info.ok().filter(|info| held.contains(&info.id())));
    Ok(infos
        .map(|info| (info.name_as_str().unwrap_or("?").to_owned(), info.id()))
        .collect())
}

/// Memory of every map that a process has open, in bytes, by name: the pinned ones and the tables inside of them.
pub fn map_memory(pid: u32) -> Result<BTreeMap<String, u64>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        // Descriptors come and go meanwhile.
        let Ok(text) = fs::read_to_string(entry?.path()) else {
            continue;
        };
        let field = |name: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok())
        };
        if let (Some(id), Some(bytes)) = (field("map_id:"), field("memlock:")) {
            found.insert(id, bytes);
        }
    }
    let mut memory = BTreeMap::new();
    for (id, bytes) in found {
        let info = MapInfo::from_id(id as u32)?;
        *memory
            .entry(info.name_as_str().unwrap_or("?").to_owned())
            .or_default() += bytes;
    }
    Ok(memory)
}
