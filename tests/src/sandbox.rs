// SPDX-License-Identifier: Apache-2.0
//! One test's own corner of the machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, bail, ensure};
use zt_common::ABI_VERSION;

use crate::agent::AgentBuilder;
use crate::cgroup::Cgroup;
use crate::network::{Host, Network};
use crate::probe::Probe;
use crate::sweep::{self, BPFFS, PREFIX};

/// Owns the cgroups, network namespaces, pins, files and processes of a test, and removes them when it is dropped.
///
/// Everything bears its name, `zt-test-<pid>-<number>-<label>`. A sandbox whose process was killed is removed by the
/// next one that starts on the machine.
#[derive(Debug)]
pub struct Sandbox {
    name: String,
    root: Cgroup,
    managed: Cgroup,
    outside: Cgroup,
    directory: PathBuf,
    network: OnceLock<Network>,
}

impl Sandbox {
    /// Makes the cgroups and the directory. Fails where it is not root, saying how to run the tests.
    pub fn new(label: &str) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        static SWEPT: OnceLock<()> = OnceLock::new();
        ensure!(
            nix::unistd::geteuid().is_root(),
            "this test makes cgroups and network namespaces, which needs root: run `cargo xtask test kernel`"
        );
        // What a dead process left may be stuck; that is no reason to fail this test, but it should be seen.
        SWEPT.get_or_init(|| {
            if let Err(error) = sweep::sweep() {
                eprintln!("sweeping up after dead tests: {error:#}");
            }
        });
        let name = format!(
            "{PREFIX}{}-{}-{label}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let root = Cgroup::create(&name)?;
        let directory = std::env::temp_dir().join(&name);
        fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        Ok(Self {
            managed: root.child("managed")?,
            outside: root.child("outside")?,
            root,
            directory,
            network: OnceLock::new(),
            name,
        })
    }

    /// What the names of all its parts start with.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The tree to give an agent as `managedCgroup`.
    pub fn managed(&self) -> &Cgroup {
        &self.managed
    }

    /// A cgroup that no agent manages, next to the managed tree: what runs here is `host`, and so are the agents.
    pub fn outside(&self) -> &Cgroup {
        &self.outside
    }

    /// A cgroup in the managed tree, such as `iam` or `pod1/container`.
    pub fn cgroup(&self, name: &str) -> Result<Cgroup> {
        self.managed.child(name)
    }

    /// A directory for files of the test.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A network namespace on the sandbox's bridge. `name` is unique in the sandbox.
    pub fn host(&self, name: &str) -> Result<Host> {
        if self.network.get().is_none() {
            // A second thread may have been faster; its bridge is the same one by name, so creation is not repeated.
            let network = Network::create(&self.name)?;
            ensure!(
                self.network.set(network).is_ok(),
                "make the first host before starting threads"
            );
        }
        self.network.get().context("the bridge was just made")?.host(name)
    }

    /// Where an agent of this sandbox pins. Mounts bpffs if it is not mounted; the agent makes the directory.
    pub fn pins(&self) -> Result<PathBuf> {
        mount_bpffs()?;
        Ok(Path::new(BPFFS).join(&self.name))
    }

    /// Where the pinned maps of an agent of this build are.
    pub fn maps(&self) -> Result<PathBuf> {
        Ok(self.pins()?.join(format!("v{ABI_VERSION}")).join("maps"))
    }

    /// Starts a workload in a cgroup, in a host's network namespace or, without one, in the machine's.
    pub fn probe(&self, cgroup: &Cgroup, host: Option<&Host>) -> Result<Probe> {
        Probe::start(cgroup, host)
    }

    /// An agent that manages [`Self::managed`], not started yet.
    pub fn agent(&self) -> Result<AgentBuilder> {
        AgentBuilder::new(self, self.directory.clone())
    }

    /// One more agent on the same pins, with files and ports of its own.
    pub fn agent_beside(&self, name: &str) -> Result<AgentBuilder> {
        AgentBuilder::new(self, self.directory.join(name))
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // Before anything else: no process of ours survives, wherever in the tree it is.
        let removed = self.root.remove().and_then(|()| sweep::remove_all_of(&self.name));
        if let Err(error) = removed {
            eprintln!("{}: {error:#}", self.name);
            // A leak must fail the test, but a second panic would hide the first.
            assert!(
                std::thread::panicking(),
                "{} left something behind: {error:#}",
                self.name
            );
        }
    }
}

/// Mounts bpffs at its usual place, unless it is there.
fn mount_bpffs() -> Result<()> {
    let mounted = || -> Result<bool> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        Ok(mounts
            .lines()
            .any(|line| line.contains(&format!(" {BPFFS} ")) && line.contains(" - bpf ")))
    };
    if mounted()? {
        return Ok(());
    }
    let status = Command::new("mount").args(["-t", "bpf", "bpf", BPFFS]).status()?;
    // Another test may have mounted it meanwhile.
    if !status.success() && !mounted()? {
        bail!("cannot mount bpffs: run `mount -t bpf bpf {BPFFS}`");
    }
    Ok(())
}
