// SPDX-License-Identifier: Apache-2.0
//! Break-glass where no agent answers: the switch is written into the pinned maps of every version that may enforce.

use std::os::fd::AsFd as _;
use std::path::Path;

use zt_common::control::{OBSERVE_ALL, UNRECORDED_OBSERVE, UNRECORDED_RESTORE};
use zt_common::names;

use super::capabilities::check_privileges;
use super::error::KernelError;
use super::host::Pins;
use super::{sys, versions};

/// Has nothing refused on this node (`true`), or has the workloads' own modes hold again. Every decision after this
/// follows it. It is noted beside the switch, so that the agent makes it its own and records it.
///
/// Returns whether that was not so before.
pub fn set_observe_all(bpffs: &Path, on: bool) -> Result<bool, KernelError> {
    check_privileges()?;
    let mut controls: Vec<_> = versions::versions(bpffs)?
        .into_iter()
        .map(|directory| Pins::at(directory).map(names::CONTROL))
        .filter(|pin| pin.exists())
        .collect();
    if controls.is_empty() {
        // Fails with the name of what should be there.
        controls.push(Pins::below(bpffs).map(names::CONTROL));
    }
    let mut changed = false;
    for pin in controls {
        let control = sys::open_pin(&pin).map_err(KernelError::io("open the pinned switches", &pin))?;
        changed |= sys::change_first_word(control.as_fd(), |flags| switched(flags, on))
            .map_err(KernelError::io("write the pinned switches", &pin))?;
    }
    Ok(changed)
}

fn switched(flags: u64, on: bool) -> u64 {
    match (flags & OBSERVE_ALL != 0, on) {
        (false, true) => flags | OBSERVE_ALL | UNRECORDED_OBSERVE,
        (true, false) => flags & !OBSERVE_ALL | UNRECORDED_RESTORE,
        _ => flags,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_changes_are_noted() {
        let other = 8;
        assert_eq!(switched(other, true), other | OBSERVE_ALL | UNRECORDED_OBSERVE);
        assert_eq!(switched(other | OBSERVE_ALL, true), other | OBSERVE_ALL);
        assert_eq!(switched(other, false), other);
        assert_eq!(switched(other | OBSERVE_ALL, false), other | UNRECORDED_RESTORE);
    }
}
