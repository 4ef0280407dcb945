// SPDX-License-Identifier: Apache-2.0
//! The time before Kubernetes has told of this node's pods for the first time: nobody has a name, and the API may be behind
//! a Service whose proxy is one of those pods. With `unknownWorkload: deny` it would be refused, and nobody would ever be told of.
//!
//! A pod on the host's network is left alone until then, as proxies and networks of clusters are, and other pods are not. An
//! agent that has known the pods of its node before remembers them, and has no such time.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use super::{AppError, Node};
use crate::kernel::netns;

impl Node {
    /// Looks for pods on the host's network that nobody has told of.
    pub(super) fn look_for_proxies(&mut self) -> Result<(), AppError> {
        let found: Vec<(PathBuf, u64)> = self
            .unnamed
            .candidates(&self.cgroups, self.parts.kernel.workloads())
            .into_iter()
            .filter(|(path, _)| is_on_host(&netns::processes(&self.parts.mount.join(path))))
            .map(|(path, id)| (path.to_path_buf(), id))
            .collect();
        for (path, id) in found {
            tracing::warn!(
                cgroup = %path.display(),
                "Kubernetes has not told of this node's pods yet: a pod on the host's network is left alone until it has"
            );
            let workload = self.unnamed.is_on_host(&path);
            self.parts.kernel.add_workload(id, workload)?;
        }
        Ok(())
    }
}

/// Whether there are any, and all of them have the network namespace of this process, which is the host's.
fn is_on_host(pids: &[u32]) -> bool {
    let namespace = |pid: &str| -> io::Result<u64> { Ok(fs::metadata(format!("/proc/{pid}/ns/net"))?.ino()) };
    let Ok(own) = namespace("self") else { return false };
    let mut found = pids
        .iter()
        .filter_map(|pid| namespace(&pid.to_string()).ok())
        .peekable();
    found.peek().is_some() && found.all(|theirs| theirs == own)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_not_on_the_hosts_network() {
        assert!(is_on_host(&[std::process::id()]));
        assert!(is_on_host(&[u32::MAX, std::process::id()]), "one has ended");
        assert!(!is_on_host(&[]) && !is_on_host(&[u32::MAX]));
    }
}
