// SPDX-License-Identifier: Apache-2.0
//! The workload that acts at this end of a decision.

use aya_ebpf::bindings::bpf_sock;
use zt_common::abi::{self, MODE_ENFORCE, MODE_OBSERVE, Socket};
use zt_common::control::{Control, HAS_ENFORCED, MAX_ROOTS, OBSERVE_ALL, UNKNOWN_DENY};
use zt_common::identity;

use crate::{context, maps};

/// How many levels below a managed root a workload may lie. A deeper cgroup still inherits: what is searched is its
/// ancestors at these levels.
const DEPTH: u32 = 8;

/// The workload at this end of a decision. Laid out without gaps, as it is handed from function to function of the object.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Own {
    /// Key in `zt_workloads`; the plain cgroup id where there is no entry.
    pub workload: u64,
    /// Its identity.
    pub identity: u64,
    /// At which revisions, as [`abi::enforcing`] says. Not a `bool`: the compiler would compute a program's answer from the byte
    /// in memory, and the verifier, which does not know that it is 0 or 1, would refuse that.
    enforcing: u32,
    alien: u32,
}

impl Own {
    /// Before it is known.
    pub const NOBODY: Self = Self {
        workload: 0,
        identity: identity::UNKNOWN,
        enforcing: 0,
        alien: 0,
    };

    /// Whether the verdict of the policy of `revision` happens.
    #[inline(always)]
    pub fn enforced(&self, revision: u64) -> bool {
        abi::enforces(self.enforcing, revision)
    }

    /// Whether the task is outside every managed root.
    #[inline(always)]
    pub fn is_alien(&self) -> bool {
        self.alien != 0
    }

    /// A workload known by a stored entry, in this mode of [`zt_common::abi::Workload`].
    #[inline(always)]
    pub fn stored(control: &Control, workload: u64, identity: u64, mode: u8) -> Self {
        let enforcing = if control.flags & OBSERVE_ALL == 0 {
            abi::enforcing(mode)
        } else {
            0
        };
        Self {
            workload,
            identity,
            enforcing,
            alien: 0,
        }
    }

    #[inline(always)]
    fn unknown(control: &Control, workload: u64, alien: bool) -> Self {
        let flag = if alien { HAS_ENFORCED } else { UNKNOWN_DENY };
        Self {
            alien: u32::from(alien),
            ..Self::stored(
                control,
                workload,
                identity::UNKNOWN,
                mode_if(control.flags & flag != 0),
            )
        }
    }

    #[inline(always)]
    fn named(control: &Control, workload: u64) -> Option<Self> {
        // SAFETY: read once, copied at once.
        let entry = unsafe { maps::zt_workloads.get(workload) }?;
        Some(Self::stored(control, workload, entry.identity, entry.mode))
    }

    /// The workload of the running task: by its cgroup, else by the nearest ancestor that is one.
    #[inline(always)]
    pub fn current(control: &Control) -> Self {
        let cgroup = context::current_cgroup();
        if let Some(own) = Self::named(control, cgroup) {
            return own;
        }
        let Some(level) = root_level(control, context::current_ancestor) else {
            return Self::unknown(control, cgroup, true);
        };
        let mut step = DEPTH;
        while step > 0 {
            let ancestor = context::current_ancestor(level + step);
            if ancestor != 0 && ancestor != cgroup {
                if let Some(own) = Self::named(control, ancestor) {
                    return own;
                }
            }
            step -= 1;
        }
        Self::unknown(control, cgroup, false)
    }

    /// The workload that bound a socket, where there is no task to ask.
    #[inline(always)]
    pub fn of_socket(control: &Control, socket: &Socket) -> Self {
        if let Some(own) = Self::named(control, socket.cgroup) {
            return own;
        }
        if let Some(own) = Self::named(control, socket.workload) {
            return own;
        }
        Self::unknown(control, socket.workload, false)
    }

    /// Nothing is known of who owns the socket: refused what nobody may do as soon as anybody is enforced upon.
    #[inline(always)]
    pub fn missing(control: &Control) -> Self {
        Self::stored(
            control,
            0,
            identity::UNKNOWN,
            mode_if(control.flags & (UNKNOWN_DENY | HAS_ENFORCED) != 0),
        )
    }

    /// The workload of a socket, by the cgroup it was born in. For contexts that may ask a socket for it.
    ///
    /// A function of its own in the object, so that its search does not share the caller's stack.
    #[inline(never)]
    pub fn of_birth(control: &Control, sock: *mut bpf_sock) -> Self {
        // Asked for again where it is needed again: eight bytes less of a stack that kernels before 6.8 count in units of 32.
        if let Some(own) = Self::named(control, context::cgroup_of(sock)) {
            return own;
        }
        let Some(level) = root_level(control, |level| context::ancestor_of(sock, level)) else {
            return Self::unknown(control, context::cgroup_of(sock), true);
        };
        let mut step = DEPTH;
        while step > 0 {
            let ancestor = context::ancestor_of(sock, level + step);
            if ancestor != 0
                && let Some(own) = Self::named(control, ancestor)
            {
                return own;
            }
            step -= 1;
        }
        Self::unknown(control, context::cgroup_of(sock), false)
    }
}

/// The mode of whoever has none of his own.
#[inline(always)]
pub fn mode_if(enforced: bool) -> u8 {
    if enforced { MODE_ENFORCE } else { MODE_OBSERVE }
}

/// Level of the managed root above a task or socket, given its ancestors.
#[inline(always)]
fn root_level(control: &Control, ancestor: impl Fn(u32) -> u64) -> Option<u32> {
    let mut slot = 0;
    while slot < MAX_ROOTS {
        let root = control.roots[slot];
        if root.id != 0 && ancestor(root.level) == root.id {
            return Some(root.level);
        }
        slot += 1;
    }
    None
}
