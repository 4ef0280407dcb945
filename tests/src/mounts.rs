// SPDX-License-Identifier: Apache-2.0
//! A mount namespace of a test's own, with a BPF file system that can be taken away while the machine keeps its own.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::sandbox::Sandbox;
use crate::sweep::BPFFS;

/// What the namespace's first process does: it mounts a BPF file system of its own, says so, and keeps the namespace.
const KEEP: &str = "umount --lazy \"$0\"; mount -t bpf bpf \"$0\" && echo mounted && exec sleep infinity";

/// Lasts as long as this does, and no process in it outlives it.
#[derive(Debug)]
pub struct Mounts {
    keeper: Child,
    /// The process in the namespace.
    pid: u32,
    has_processes: bool,
}

impl Mounts {
    /// As a container has them: its processes are the machine's, and what is mounted there is nobody else's.
    pub fn of_container(sandbox: &Sandbox) -> Result<Self> {
        Self::start(sandbox, false)
    }

    /// As a machine has them: with a first process, which has the same mounts. Its processes see none but each other.
    pub fn of_machine(sandbox: &Sandbox) -> Result<Self> {
        Self::start(sandbox, true)
    }

    fn start(sandbox: &Sandbox, has_processes: bool) -> Result<Self> {
        // The mount of the machine is what is mounted over.
        sandbox.pins()?;
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private"]);
        if has_processes {
            command.args(["--pid", "--fork", "--kill-child", "--mount-proc"]);
        }
        let mut keeper = command
            .args(["sh", "-c", KEEP, BPFFS])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot run `unshare`: run `apt-get install util-linux`")?;
        let mut said = String::new();
        let stdout = keeper.stdout.take().context("unshare has no standard output")?;
        BufReader::new(stdout).read_line(&mut said)?;
        let mut mounts = Self {
            pid: keeper.id(),
            keeper,
            has_processes,
        };
        ensure!(said.trim() == "mounted", "no BPF file system was mounted");
        if has_processes {
            mounts.pid = child_of(mounts.pid)?;
        }
        // So that it is swept up when this process is killed.
        sandbox.outside().add(mounts.pid)?;
        Ok(mounts)
    }

    /// The words that start a program in there.
    pub fn enter(&self) -> Vec<String> {
        let mut words = vec![
            "nsenter".to_owned(),
            format!("--target={}", self.pid),
            "--mount".into(),
        ];
        if self.has_processes {
            words.push("--pid".into());
        }
        words
    }

    /// Where a path in there is for everybody else.
    pub fn seen(&self, path: &Path) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.pid));
        root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// The process that was started in there by the words of [`Self::enter`] as this one.
    pub fn process(&self, started: u32) -> Result<u32> {
        if self.has_processes {
            child_of(started)
        } else {
            Ok(started)
        }
    }

    /// Takes the BPF file system away, in there alone. Whoever has something of it open keeps that.
    pub fn unmount(&self) -> Result<()> {
        self.run(&["umount", "--lazy", BPFFS])
    }

    /// Mounts a new one.
    pub fn mount(&self) -> Result<()> {
        self.run(&["mount", "-t", "bpf", "bpf", BPFFS])
    }

    /// Runs a command in there.
    pub fn run(&self, words: &[&str]) -> Result<()> {
        let enter = self.enter();
        let output = Command::new(&enter[0]).args(&enter[1..]).args(words).output()?;
        ensure!(
            output.status.success(),
            "{words:?}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(())
    }
}

impl Drop for Mounts {
    fn drop(&mut self) {
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}

/// The only child of a process.
fn child_of(pid: u32) -> Result<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    let child = children.trim().parse();
    child.with_context(|| format!("process {pid} has not one child: {children:?}"))
}
