// SPDX-License-Identifier: Apache-2.0
//! What is in the kernel: maps and programs by what they are, never by what a map holds.

use std::io::{self, Write};

use serde_json::json;

use super::archive::Archive;
use crate::cgroup;
use crate::config::Config;
use crate::kernel::{self, LINKER};

/// Cgroups that are listed.
const MOST_CGROUPS: usize = 10_000;

pub(super) fn gather<W: Write>(archive: &mut Archive<W>, config: &Config) -> io::Result<()> {
    let versions = json!({
        "zt_agent": env!("CARGO_PKG_VERSION"),
        "abi": zt_common::ABI_VERSION,
        "bpf_linker": LINKER,
    });
    archive.json("version.json", &versions)?;
    archive.json_or_why("kernel/pins.json", kernel::pinned(&config.bpffs))?;
    archive.json("kernel/programs.json", &kernel::programs())?;
    match cgroup::mount_point() {
        Ok(mount) => archive.json_or_why("kernel/cgroups.json", kernel::tree(&mount, MOST_CGROUPS)),
        Err(error) => {
            archive.missing("kernel/cgroups.json", &error.to_string());
            Ok(())
        }
    }
}
