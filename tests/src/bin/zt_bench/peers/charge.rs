// SPDX-License-Identifier: Apache-2.0
//! Memory of the kernel that is taken on behalf of the processes of a cgroup, such as the tables of a firewall that they
//! load.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use zt_tests::cgroup::older_mount;
use zt_tests::{Cgroup, Sandbox};

const MIB: f64 = 1024.0 * 1024.0;
/// What is given back late is, within this time.
const SETTLE: Duration = Duration::from_millis(500);

/// A cgroup whose kernel memory is counted.
#[derive(Debug)]
pub(super) struct Charge {
    directory: PathBuf,
    /// Where the count is read, and the name before it if it is one of many.
    file: PathBuf,
    field: Option<&'static str>,
}

impl Charge {
    /// Makes one that goes with the sandbox. None where the kernel does not count, or the machine has it switched off.
    pub(super) fn create(sandbox: &Sandbox, name: &str) -> Result<Option<Self>> {
        let name = format!("{}-{name}", sandbox.name());
        let cgroup = Cgroup::create(&name)?;
        let counts =
            |file: &Path| fs::read_to_string(file).is_ok_and(|text| field(&text, "kernel").is_some());
        let file = cgroup.path().join("memory.stat");
        if counts(&file) {
            let directory = cgroup.path().to_owned();
            let field = Some("kernel");
            return Ok(Some(Self {
                directory,
                file,
                field,
            }));
        }
        let Some(directory) = older_mount("memory").map(|mount| mount.join(&name)) else {
            return Ok(None);
        };
        fs::create_dir_all(&directory)
            .with_context(|| format!("cannot make the cgroup {}", directory.display()))?;
        let file = directory.join("memory.kmem.usage_in_bytes");
        let charge = Self {
            directory,
            file,
            field: None,
        };
        Ok(charge.file.exists().then_some(charge))
    }

    /// The command, run by a process of this cgroup.
    pub(super) fn around(&self, command: &Command) -> Command {
        let mut around = Command::new("sh");
        around
            .args(["-c", "echo 0 > \"$1/cgroup.procs\" && shift && exec \"$@\"", "sh"])
            .arg(&self.directory)
            .arg(command.get_program())
            .args(command.get_args());
        around
    }

    /// Mebibytes, when those who loaded the tables have ended.
    pub(super) fn mebibytes(&self) -> Result<f64> {
        std::thread::sleep(SETTLE);
        let text = fs::read_to_string(&self.file).with_context(|| self.file.display().to_string())?;
        let bytes = match self.field {
            Some(name) => field(&text, name),
            None => text.trim().parse().ok(),
        };
        let bytes: u64 = bytes.with_context(|| format!("no count in {}", self.file.display()))?;
        Ok(bytes as f64 / MIB)
    }
}

/// A count of a file with many.
fn field(text: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.split_once(' '));
    lines.find(|(found, _)| *found == name)?.1.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_is_found_by_its_whole_name() {
        let text = "anon 1\nkernel_stack 2\nkernel 3\n";
        assert_eq!(field(text, "kernel"), Some(3));
        assert_eq!(field(text, "slab"), None);
    }
}
