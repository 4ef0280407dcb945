// SPDX-License-Identifier: Apache-2.0
//! Ways round a decision, each tried by a program of its own (`zt-attack`) that is a workload like any other.

use std::io;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use crate::cgroup::Cgroup;
use crate::network::Host;
use crate::probe::built_binary;

/// Nobody in particular: a user without capabilities.
pub const NOBODY: u32 = 65_534;

/// How far an attempt came.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// The step at which it ended; nothing if it came through.
    pub step: Option<String>,
    /// The name of the error that it ended with.
    pub errno: Option<String>,
    /// What came back, where something did.
    pub said: String,
}

impl Attempt {
    /// One that came through.
    pub fn through(said: String) -> Self {
        Self {
            step: None,
            errno: None,
            said,
        }
    }

    /// One that ended at a step.
    pub fn ended(step: &str, error: &io::Error) -> Self {
        let errno = Errno::from_raw(error.raw_os_error().unwrap_or(0));
        Self {
            step: Some(step.to_owned()),
            errno: Some(format!("{errno:?}")),
            said: String::new(),
        }
    }

    /// `through`, or the step and the error.
    pub fn outcome(&self) -> String {
        match (&self.step, &self.errno) {
            (Some(step), Some(errno)) => format!("{step}: {errno}"),
            _ => "through".to_owned(),
        }
    }

    /// Whether it ended because this kernel does not have what it takes.
    pub fn is_not_here(&self) -> bool {
        const ABSENT: [&str; 5] = [
            "EAFNOSUPPORT",
            "EPROTONOSUPPORT",
            "ESOCKTNOSUPPORT",
            "ENOSYS",
            "ENOPROTOOPT",
        ];
        self.errno.as_deref().is_some_and(|errno| ABSENT.contains(&errno))
    }
}

/// Tries one way from a cgroup and a namespace, as root of the container or as a user without capabilities.
pub fn attempt(cgroup: &Cgroup, host: &Host, user: Option<u32>, way: &[String]) -> Result<Attempt> {
    let program = built_binary("zt-attack", "cargo build -p zt-tests")?;
    let mut command = Command::new(program);
    command.arg("--cgroup").arg(cgroup.path());
    command.arg("--netns").arg(host.namespace_file());
    if let Some(user) = user {
        command.arg("--user").arg(user.to_string());
    }
    let output = command.args(way).output().context("cannot start zt-attack")?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "zt-attack {way:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_str(&said).with_context(|| format!("zt-attack {way:?} said: {said}"))
}
