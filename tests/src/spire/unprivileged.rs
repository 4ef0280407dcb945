// SPDX-License-Identifier: Apache-2.0
//! A SPIRE agent that is not root.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};

use anyhow::{Context as _, Result};

use super::{Node, Spire};

/// The number of the user that it is, and of that user's group. No file of this machine is theirs.
pub const USER: u32 = 61_997;

impl Spire {
    /// One more node, whose agent is [`USER`], with `CAP_SYS_PTRACE`, which it takes to attest by path. Its admin socket, and the directory
    /// that this is in, are open to that user and its group alone.
    pub fn join_unprivileged(&self, name: &str) -> Result<Node> {
        for (part, mode) in [("", 0o700), ("-public", 0o755), ("-admin", 0o750)] {
            let directory = self.directory.join(format!("agent-{name}{part}"));
            fs::create_dir(&directory).with_context(|| directory.display().to_string())?;
            fs::set_permissions(&directory, fs::Permissions::from_mode(mode))?;
            chown(&directory, Some(USER), Some(USER))?;
        }
        // Where setup puts it, others than root may have no way.
        let (from, program) = (self.program("spire-agent"), self.directory.join("spire-agent"));
        fs::hard_link(&from, &program).or_else(|_| fs::copy(&from, &program).map(drop))?;
        let (user, group) = (format!("--reuid={USER}"), format!("--regid={USER}"));
        let through = [
            "setpriv",
            &user,
            &group,
            "--clear-groups",
            "--inh-caps=+sys_ptrace",
            "--ambient-caps=+sys_ptrace",
        ];
        self.join_with(name, &through, &program)
    }
}
