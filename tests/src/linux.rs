// SPDX-License-Identifier: Apache-2.0
//! Which kernel the tests run on, for what older ones cannot do.

use anyhow::{Context as _, Result};
use nix::sys::utsname::uname;

/// Kernels before this one cannot ask a listener that is older than the agent for its answers.
pub const ASKS_OLDER_LISTENERS: (u32, u32) = (6, 12);

/// Whether the kernel is one that has BPF LSM, by who started the tests: `ZT_REQUIRE_LSM`, which guests get. What it is for is then
/// not passed over as absent.
pub fn has_lsm_for_certain() -> bool {
    std::env::var_os("ZT_REQUIRE_LSM").is_some()
}

/// The first two numbers of the kernel's version.
pub fn version() -> Result<(u32, u32)> {
    let name = uname()?;
    let release = name.release().to_string_lossy();
    parse(&release).with_context(|| format!("{release} is no version of Linux"))
}

fn parse(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(['.', '-', '+']);
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn reads_versions_of_distributions() {
        assert_eq!(parse("6.1.0-50-cloud-amd64"), Some((6, 1)));
        assert_eq!(parse("6.12.117+deb13-cloud-amd64"), Some((6, 12)));
        assert_eq!(parse("6.18"), Some((6, 18)));
        assert_eq!(parse("next"), None);
    }
}
