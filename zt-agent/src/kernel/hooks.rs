// SPDX-License-Identifier: Apache-2.0
//! The hooks: which program goes where, how they are put in place, taken over and checked.
//!
//! Each hook is one pinned cgroup link. A new agent puts its programs into the links that its predecessor left
//! (`BPF_LINK_UPDATE`, atomic), so that there is no moment in which a hook is empty.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::error::KernelError;
use super::sys;

/// A program that is attached to every managed root.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hook {
    /// Name of the program in the object.
    pub program: &'static str,
    /// `enum bpf_attach_type`.
    pub attach_type: u32,
}

impl Hook {
    /// The hook's name as bpftool prints it.
    pub(super) const fn attach_name(self) -> &'static str {
        match self.attach_type {
            0 => "cgroup_inet_ingress",
            1 => "cgroup_inet_egress",
            2 => "cgroup_inet_sock_create",
            3 => "cgroup_sock_ops",
            5 => "sk_skb_stream_verdict",
            7 => "sk_msg_verdict",
            10 => "cgroup_inet4_connect",
            11 => "cgroup_inet6_connect",
            12 => "cgroup_inet4_post_bind",
            13 => "cgroup_inet6_post_bind",
            14 => "cgroup_udp4_sendmsg",
            15 => "cgroup_udp6_sendmsg",
            18 => "cgroup_sysctl",
            22 => "cgroup_setsockopt",
            34 => "cgroup_inet_sock_release",
            43 => "lsm_cgroup",
            _ => "unknown",
        }
    }
}

const fn hook(program: &'static str, attach_type: u32) -> Hook {
    Hook { program, attach_type }
}

/// The hooks on a managed root, in the order in which they are attached: what notes and remembers comes before what
/// decides, so that the first decision finds its ground.
pub(super) const HOOKS: [Hook; 10] = [
    hook("zt_sock_release", 34),
    hook("zt_sysctl", 18),
    hook("zt_post_bind4", 12),
    hook("zt_post_bind6", 13),
    SOCK_OPS,
    hook("zt_sock_create", 2),
    hook("zt_sendmsg4", 14),
    hook("zt_sendmsg6", 15),
    hook("zt_connect4", 10),
    hook("zt_connect6", 11),
];

/// What sees handshakes.
pub(super) const SOCK_OPS: Hook = hook("zt_sock_ops", 3);

/// The packet guard, on a managed root after all others where it is asked for.
pub(super) const PACKET_GUARD: [Hook; 2] = [hook("zt_packet_egress", 1), hook("zt_packet_ingress", 0)];

/// The hooks on a managed root: [`HOOKS`], with the packet guard or without.
pub(super) fn on_root(packet_guard: bool) -> impl Iterator<Item = Hook> + Clone {
    let guard = packet_guard.then_some(PACKET_GUARD);
    HOOKS.into_iter().chain(guard.into_iter().flatten())
}

/// What is asked about sockets that `zt_sock_create` is not asked about, such as packet sockets: on a managed root after all others,
/// where the kernel has BPF LSM.
pub(super) const SOCKET_CREATE: Hook = hook("zt_socket_create", 43);

/// Attached for a moment: whether the kernel runs programs of BPF LSM.
pub(super) const LSM_PROBE: Hook = hook("zt_lsm_probe", 43);

/// The receive guard, attached to single workloads.
pub(super) const UDP_GUARD: Hook = hook("zt_udp_guard", 0);

/// Attached for a moment, where older listeners are made to prove who they are. Kernels before 6.12 could not be asked to.
pub(super) const ADOPT: Hook = hook("zt_adopt", 22);

/// The programs of the sockhash of refused sockets.
pub(super) const REFUSE_IN: Hook = hook("zt_refuse_in", 5);
/// See [`REFUSE_IN`].
pub(super) const REFUSE_OUT: Hook = hook("zt_refuse_out", 7);

/// One hook as the kernel reports it.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
pub struct HookStatus {
    /// Name of the program.
    pub program: &'static str,
    /// The hook, as bpftool calls it.
    pub attach_type: &'static str,
    /// Id of the program in our link, as the kernel reports it.
    pub program_id: Option<u32>,
    /// Id of our link.
    pub link_id: Option<u32>,
    /// The managed root; for programs of the sockhash, its name.
    pub cgroup: PathBuf,
    /// Whether the kernel says that our program is effective there.
    pub attached: bool,
    /// Programs of others at the same hook.
    pub others: usize,
}

/// Attaches `program` to `cgroup`, or puts it into the link that is pinned at `pin`.
pub(super) fn attach(
    hook: Hook,
    program: BorrowedFd<'_>,
    cgroup: &Path,
    cgroup_id: u64,
    pin: &Path,
) -> Result<OwnedFd, KernelError> {
    let failed = |source| KernelError::Attach {
        program: hook.program,
        cgroup: cgroup.into(),
        source,
    };
    match sys::open_pin(pin) {
        Ok(link) => {
            let info = sys::link_info(link.as_fd()).map_err(failed)?;
            if info.cgroup == cgroup_id && info.attach_type == hook.attach_type {
                sys::link_update(link.as_fd(), program).map_err(failed)?;
                return Ok(link);
            }
            // The cgroup was removed and made anew, and its links died with it; or somebody has detached this one.
            fs::remove_file(pin).map_err(KernelError::io("remove the stale pin", pin))?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    let directory = File::open(cgroup).map_err(failed)?;
    let link = sys::link_create(program, directory.as_fd(), hook.attach_type).map_err(failed)?;
    sys::pin(link.as_fd(), pin).map_err(KernelError::io("pin the link at", pin))?;
    Ok(link)
}

/// Asks the kernel whether the program that this agent put into the link is still there, and runs at the hook.
pub(super) fn check(
    hook: Hook,
    link: BorrowedFd<'_>,
    cgroup: &Path,
    cgroup_id: u64,
    program: u32,
) -> HookStatus {
    let info = sys::link_info(link).ok();
    let effective = || -> io::Result<Vec<u32>> {
        let directory = File::open(cgroup)?;
        sys::programs_at(directory.as_fd(), hook.attach_type)
    };
    let programs = effective().unwrap_or_default();
    let attached = info.is_some_and(|info| {
        info.cgroup == cgroup_id && info.program == program && programs.contains(&program)
    });
    HookStatus {
        program: hook.program,
        attach_type: hook.attach_name(),
        program_id: info.map(|info| info.program),
        link_id: info.map(|info| info.id),
        cgroup: cgroup.into(),
        attached,
        others: programs.len() - usize::from(attached),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_packet_guard_comes_last_and_only_where_it_is_asked_for() {
        let names = |packet_guard| on_root(packet_guard).map(|hook| hook.program).collect::<Vec<_>>();
        let (without, with) = (names(false), names(true));
        assert_eq!(without, HOOKS.map(|hook| hook.program));
        assert_eq!(with[..without.len()], without);
        assert_eq!(with[without.len()..], ["zt_packet_egress", "zt_packet_ingress"]);
        assert!(on_root(true).all(|hook| hook.attach_name() != "unknown"));
    }
}
