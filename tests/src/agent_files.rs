// SPDX-License-Identifier: Apache-2.0
//! The files that an agent reads: its configuration, policies and workloads.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::{Map, Value, json};

use crate::cgroup::Cgroup;

/// One entry of `workloads.yaml`.
#[derive(Clone, Debug)]
pub struct Workload {
    entry: Map<String, Value>,
}

impl Workload {
    /// A workload of this identity in this cgroup, without addresses, in the agent's default mode.
    pub fn new(spiffe: &str, cgroup: &Cgroup) -> Self {
        let mut entry = Map::new();
        entry.insert("spiffe".into(), json!(spiffe));
        entry.insert("cgroup".into(), json!(cgroup.relative()));
        Self { entry }
    }

    /// Where its peers reach it.
    #[must_use]
    pub fn at(mut self, addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        let addresses: Vec<IpAddr> = addresses.into_iter().collect();
        self.entry.insert("addresses".into(), json!(addresses));
        self
    }

    /// `observe` or `enforce`.
    #[must_use]
    pub fn mode(mut self, mode: &str) -> Self {
        self.entry.insert("mode".into(), json!(mode));
        self
    }
}

/// The directory that holds them. Every change is atomic: written aside, then renamed.
#[derive(Clone, Debug)]
pub struct AgentFiles {
    directory: PathBuf,
}

impl AgentFiles {
    /// Makes the directory with an empty policy directory and no workloads.
    pub(crate) fn create(directory: PathBuf) -> Result<Self> {
        let files = Self { directory };
        fs::create_dir_all(files.policies())?;
        files.write_workloads(&[])?;
        Ok(files)
    }

    /// The directory of the policies.
    pub fn policies(&self) -> PathBuf {
        self.directory.join("policies")
    }

    /// The file of the workloads.
    pub fn workloads(&self) -> PathBuf {
        self.directory.join("workloads.yaml")
    }

    /// The agent's configuration file.
    pub fn config(&self) -> PathBuf {
        self.directory.join("agent.yaml")
    }

    /// Where the agent's own output goes, of all its runs.
    pub fn log(&self) -> PathBuf {
        self.directory.join("agent.log")
    }

    /// The socket of the API.
    pub fn socket(&self) -> PathBuf {
        self.directory.join("agent.sock")
    }

    /// The audit database.
    pub fn audit(&self) -> PathBuf {
        self.directory.join("audit.db")
    }

    /// Writes or replaces one policy file, such as `core.yaml`.
    pub fn write_policy(&self, file: &str, text: &str) -> Result<()> {
        replace(&self.policies().join(file), text)
    }

    /// Removes one policy file.
    pub fn remove_policy(&self, file: &str) -> Result<()> {
        let path = self.policies().join(file);
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))
    }

    /// Replaces the workloads by these.
    pub fn write_workloads(&self, workloads: &[Workload]) -> Result<()> {
        let entries: Vec<&Map<String, Value>> = workloads.iter().map(|workload| &workload.entry).collect();
        replace(&self.workloads(), &pretty(&json!({ "workloads": entries }))?)
    }

    /// Replaces the configuration.
    pub(crate) fn write_config(&self, config: &Map<String, Value>) -> Result<()> {
        replace(&self.config(), &pretty(&Value::Object(config.clone()))?)
    }
}

/// JSON is YAML; errors of the agent then name lines that a person can find.
fn pretty(value: &Value) -> Result<String> {
    Ok(serde_json::to_string_pretty(value)?)
}

fn replace(path: &Path, text: &str) -> Result<()> {
    // A hidden name: the agent must not take it for one more policy.
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let aside = path.with_file_name(format!(".{name}.new"));
    fs::write(&aside, text).with_context(|| format!("cannot write {}", aside.display()))?;
    fs::rename(&aside, path).with_context(|| format!("cannot replace {}", path.display()))
}
