// SPDX-License-Identifier: Apache-2.0
//! How many files may be open.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Raises the limit of descriptors to `wanted`, or as far as it may be. What it is then.
pub(super) fn raise(wanted: u64) -> u64 {
    let limits = || getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
    let (soft, hard) = limits();
    if soft < wanted && setrlimit(Resource::RLIMIT_NOFILE, wanted.min(hard), hard).is_err() {
        tracing::debug!("the limit of open files cannot be raised");
    }
    limits().0
}
