// SPDX-License-Identifier: Apache-2.0
//! The files that the demo's agent reads: configuration, workloads, policies.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::cast::Who;
use super::error::DemoError;
use super::names::Names;

/// The policy of the demo: one of those that come with the product.
pub(super) const POLICY: &str = include_str!("../../../policies/hanzo-core-policy.yaml");

/// The rule that the story adds and takes away.
pub(super) const EXTRA_POLICY: &str = "\
apiVersion: zt.hanzo.ai/v1
kind: ServiceAccessPolicy
metadata:
  name: chat-cache
spec:
  rules:
    - from:
        spiffe: \"spiffe://hanzo.ai/hanzo-k8s/hanzo/chat\"
      to:
        - spiffe: \"spiffe://hanzo.ai/hanzo-k8s/hanzo/redis\"
          ports: [6379]
";

/// What differs from one world's agent to another's.
#[derive(Clone, Debug)]
pub(super) struct Setup {
    /// Lines of the configuration beside those that say where everything is.
    pub(super) settings: String,
    /// Policies beside [`POLICY`]: file names and their texts.
    pub(super) policies: &'static [(&'static str, &'static str)],
    /// Whether the agent is in the bridge's network namespace, as on a node, so that the bridge's addresses are its host's. Its API
    /// can be asked from there alone. Otherwise it is in the machine's.
    pub(super) at_the_bridge: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            settings: "handshake: auto\n".to_owned(),
            policies: &[],
            at_the_bridge: false,
        }
    }
}

/// Where they are.
#[derive(Clone, Debug)]
pub(super) struct Files {
    directory: PathBuf,
}

impl Files {
    pub(super) fn new(names: &Names) -> Self {
        Self {
            directory: names.directory(),
        }
    }

    /// The directory of the policies.
    pub(super) fn policies(&self) -> PathBuf {
        self.directory.join("policies")
    }

    /// The workloads.
    pub(super) fn workloads(&self) -> PathBuf {
        self.directory.join("workloads.yaml")
    }

    /// The configuration.
    pub(super) fn config(&self) -> PathBuf {
        self.directory.join("agent.yaml")
    }

    /// What the agent says, of all its runs.
    pub(super) fn agent_log(&self) -> PathBuf {
        self.directory.join("agent.log")
    }

    /// Where the rule that comes and goes is while it is there.
    pub(super) fn extra_policy(&self) -> PathBuf {
        self.policies().join("chat-cache.yaml")
    }

    /// Writes all that the agent needs to begin, in observe mode.
    pub(super) fn write(
        &self,
        names: &Names,
        setup: &Setup,
        api: SocketAddr,
        health: SocketAddr,
    ) -> Result<(), DemoError> {
        let policies = self.policies();
        fs::create_dir(&policies).map_err(DemoError::at("make", &policies))?;
        replace(&policies.join("hanzo-core-policy.yaml"), POLICY)?;
        for (name, text) in setup.policies {
            replace(&policies.join(name), text)?;
        }
        self.write_workloads(names, "observe")?;
        replace(&self.config(), &self.configuration(names, setup, api, health))
    }

    /// Declares the workloads, all in `mode`.
    pub(super) fn write_workloads(&self, names: &Names, mode: &str) -> Result<(), DemoError> {
        self.write_modes(names, |_| mode)
    }

    /// Declares the workloads, each in its mode.
    pub(super) fn write_modes<'m>(
        &self,
        names: &Names,
        mode: impl Fn(Who) -> &'m str,
    ) -> Result<(), DemoError> {
        let mut text = String::from("workloads:\n");
        for who in Who::ALL {
            // Writing to a String cannot fail.
            let _ = write!(
                text,
                "  - spiffe: {}\n    cgroup: {}\n    addresses: [{}, \"{}\"]\n    mode: {}\n",
                who.spiffe(),
                names.cgroup_of(who).display(),
                who.ipv4(),
                who.ipv6(),
                mode(who),
            );
        }
        replace(&self.workloads(), &text)
    }

    /// Adds the rule of [`EXTRA_POLICY`].
    pub(super) fn add_rule(&self) -> Result<(), DemoError> {
        self.add_policy(EXTRA_POLICY)
    }

    /// Adds a policy in the place of that rule.
    pub(super) fn add_policy(&self, text: &str) -> Result<(), DemoError> {
        replace(&self.extra_policy(), text)
    }

    /// Takes it away.
    pub(super) fn remove_rule(&self) -> Result<(), DemoError> {
        let path = self.extra_policy();
        fs::remove_file(&path).map_err(DemoError::at("remove", &path))
    }

    fn configuration(&self, names: &Names, setup: &Setup, api: SocketAddr, health: SocketAddr) -> String {
        format!(
            "# The agent of this world. Every key is optional; see the documentation of the configuration.\n\
             node: demo\n\
             policyPath: {}\n\
             mode: observe\n\
             {}\
             managedCgroup: {}\n\
             bpffs: {}\n\
             identity:\n  source: file\n  file: {}\n\
             audit:\n  dsn: sqlite://{}\n\
             api:\n  listen: {api}\n  health: {health}\n  socket: none\n",
            self.policies().display(),
            setup.settings,
            names.managed().display(),
            names.pins().display(),
            self.workloads().display(),
            self.directory.join("audit.db").display(),
        )
    }
}

/// Written aside under a hidden name, then renamed: nobody ever reads half of it.
fn replace(path: &Path, text: &str) -> Result<(), DemoError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let aside = path.with_file_name(format!(".{name}.new"));
    fs::write(&aside, text).map_err(DemoError::at("write", &aside))?;
    fs::rename(&aside, path).map_err(DemoError::at("replace", path))
}
