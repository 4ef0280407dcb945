// SPDX-License-Identifier: Apache-2.0
//! The container of the `DaemonSet`, as far as the kernel has a part in it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use crate::agent::AgentBuilder;
use crate::cgroup;
use crate::probe::built_binary;

/// Namespaces of mounts and cgroups of its own, everything read-only but what it is given, the node's cgroups and bpffs mounted into
/// it, the capabilities in `$1` and no way to gain others, and the filter of system calls that `$3` installs. Tests have their
/// files, the node's directories for state and sockets, below `/tmp`.
const CONTAINER: &str = r#"
set -e
capabilities=$1 cgroups=$2 sealed=$3; shift 3
for directory in /*; do
    case $directory in
        /proc|/sys|/dev|/tmp) ;;
        *) if [ -d "$directory" ] && [ ! -L "$directory" ]; then
            mount --rbind "$directory" "$directory"
            mount -o remount,bind,ro "$directory"
        fi ;;
    esac
done
if touch /usr/zt-test 2>/dev/null; then
    echo "the container can be written to" >&2
    exit 1
fi
mount --bind "$cgroups" "$cgroups"
mount -o remount,bind,ro "$cgroups"
exec setpriv --bounding-set "-all,$capabilities" --inh-caps=-all --ambient-caps=-all --no-new-privs "$sealed" "$@"
"#;

/// The capabilities that the `DaemonSet` adds, in the words of the kernel: `CAP_…`.
pub fn granted() -> Result<BTreeSet<String>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/manifests/agent.yaml");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let container = text
        .split("name: agent\n")
        .last()
        .context("the agent's container")?;
    let list = container
        .split("add:\n")
        .nth(1)
        .context("capabilities that are added")?;
    let names = list
        .lines()
        .map(str::trim)
        .take_while(|line| line.starts_with('#') || line.starts_with("- "));
    let names: BTreeSet<String> = names
        .filter_map(|line| line.strip_prefix("- "))
        .map(|name| format!("CAP_{name}"))
        .collect();
    ensure!(!names.is_empty(), "no capabilities in {list}");
    Ok(names)
}

/// For `setpriv`: those and no others.
fn only(capabilities: &BTreeSet<String>) -> String {
    let added = capabilities.iter().map(|name| {
        let name = name.trim_start_matches("CAP_").to_lowercase();
        format!("+{name}")
    });
    added.collect::<Vec<_>>().join(",")
}

/// The words before a program that make it run in such a container.
pub fn through(capabilities: &BTreeSet<String>) -> Result<Vec<String>> {
    let cgroups = cgroup::mount_point()?;
    let cgroups = cgroups.to_str().context("plain letters")?.to_owned();
    let words = ["unshare", "--mount", "--cgroup", "sh", "-c", CONTAINER, "sh"];
    let mut through: Vec<String> = words.map(str::to_owned).into();
    let sealed = built_binary("zt-sealed", "cargo build -p zt-tests")?;
    let sealed = sealed.to_str().context("plain letters")?.to_owned();
    through.extend([only(capabilities), cgroups, sealed]);
    Ok(through)
}

impl AgentBuilder {
    /// Has it run as the chart has it run.
    pub fn contained(self) -> Result<Self> {
        let through = through(&granted()?)?;
        Ok(self.through(through))
    }
}
