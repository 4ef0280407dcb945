// SPDX-License-Identifier: Apache-2.0
//! Words that are spelt wrongly, by `.typos.toml`.

use std::process::Command;

use anyhow::{Result, ensure};

use crate::wheels::TYPOS;
use crate::workspace;

/// Looks at every file that git does not ignore.
pub(crate) fn check() -> Result<()> {
    let status = Command::new(TYPOS.obtain()?)
        // Also what begins with a dot.
        .args(["--hidden", "--exclude", ".git"])
        .current_dir(workspace::root())
        .status()?;
    ensure!(
        status.success(),
        "words are spelt wrongly: mend them, or say in .typos.toml why they are right"
    );
    Ok(())
}
