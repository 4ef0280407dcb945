// SPDX-License-Identifier: Apache-2.0
//! Programs that `cargo xtask setup` has built for the tests.

use std::fs;
use std::path::{Path, PathBuf};

/// The directory of the newest version of which `program` is there.
pub(crate) fn newest(program: &str) -> Option<PathBuf> {
    let home = || Some(Path::new(&std::env::var_os("HOME")?).join(".cache"));
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(home)?;
    let versions = fs::read_dir(cache.join("zt")).ok()?.flatten();
    versions
        .map(|version| version.path())
        .filter(|path| path.join(program).is_file())
        .max()
}
