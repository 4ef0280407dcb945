// SPDX-License-Identifier: Apache-2.0
//! Policy files without an agent: read, checked and compiled by the code that the agent runs.

use std::collections::BTreeSet;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use clap::Args;

use super::exit::Failure;
use crate::config::{Config, Sources};
use crate::policy::{self, AllowTable, PolicySet, Settings};
use crate::policy_dir;
use crate::spiffe_id::SpiffeId;

/// What the meaning of policy files depends on.
#[derive(Debug, Args)]
pub(super) struct SettingsArgs {
    /// Configuration file of the agent that the policy is for [default: /etc/zt/agent.yaml, if it exists]
    #[arg(long, env = "ZT_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// SPIFFE trust domain of the workloads, instead of the configuration's
    #[arg(long, value_name = "DOMAIN")]
    trust_domain: Option<String>,
}

impl SettingsArgs {
    /// The configuration file that is named, if any.
    pub(super) fn file(&self) -> Option<PathBuf> {
        self.config.clone()
    }

    /// The configuration that the policy is for.
    pub(super) fn config(&self) -> Result<Config, Failure> {
        let mut sources = Sources::of_process(self.config.clone());
        sources
            .flags
            .extend(self.trust_domain.clone().map(|domain| ("trustDomain", domain)));
        Ok(Config::load(&sources)?)
    }
}

/// Policy that was read from files.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) set: PolicySet,
    pub(super) table: AllowTable,
}

/// Reads, checks and compiles the policy at `path`, for the identities that it names and `others`.
pub(super) fn load(path: &Path, settings: &Settings, others: &BTreeSet<SpiffeId>) -> Result<Loaded, Failure> {
    let set = set(path, settings)?;
    let table = policy::compile(&set, others, settings, 1)?;
    Ok(Loaded { set, table })
}

/// Whether a file that is named is standard input.
pub(super) fn is_stdin(path: &Path) -> bool {
    path == Path::new("-")
}

/// The text of a file, `-` for standard input; an error if it has more bytes than `most`.
pub(super) fn text(path: &Path, most: u64) -> Result<String, Failure> {
    let failed = |error: io::Error| Failure::Usage(format!("{}: {error}", path.display()));
    let mut text = String::new();
    let read = if is_stdin(path) {
        io::stdin().take(most + 1).read_to_string(&mut text)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(most + 1).read_to_string(&mut text))
    };
    let bytes = read.map_err(failed)?;
    if bytes as u64 > most {
        let (shown, most) = (path.display(), most >> 20);
        return Err(Failure::Usage(format!("{shown}: larger than {most} MiB")));
    }
    Ok(text)
}

/// Reads and checks the policy at `path`.
pub(super) fn set(path: &Path, settings: &Settings) -> Result<PolicySet, Failure> {
    let documents = policy_dir::read(path).0.map_err(Failure::Policy)?;
    policy::parse(&documents, settings).map_err(Failure::Policy)
}
