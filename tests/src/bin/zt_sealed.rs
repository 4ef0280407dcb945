// SPDX-License-Identifier: Apache-2.0
//! `zt-sealed PROGRAM [ARGUMENT…]`: becomes the program, under what the default seccomp profiles of container runtimes
//! refuse a container that has the capabilities of the `DaemonSet`.
//!
//! The profiles list what they allow. Here is the rest, as of containerd 2.4 and for `BPF`, `NET_ADMIN`, `NET_RAW`,
//! `SYS_ADMIN`, `SYS_PTRACE`, `DAC_READ_SEARCH` and `SYS_NICE`: calls that need another capability, and calls that no container
//! gets. It holds for whatever number the processor's calls have, since names stand for them.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;

/// Refused with `EPERM`, whatever the arguments.
const REFUSED: [libc::c_long; 29] = [
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_chroot,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_finit_module,
    libc::SYS_init_module,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_kexec_file_load,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_migrate_pages,
    libc::SYS_move_pages,
    libc::SYS_nfsservctl,
    libc::SYS_personality,
    libc::SYS_pivot_root,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_userfaultfd,
    libc::SYS_vhangup,
    // Newer than the lists of many runtimes, which refuse what they do not know.
    libc::SYS_landlock_create_ruleset,
    libc::SYS_landlock_add_rule,
    libc::SYS_landlock_restrict_self,
    libc::SYS_memfd_secret,
];

/// Socket families that are refused.
const FAMILIES: [libc::c_int; 2] = [libc::AF_ALG, libc::AF_VSOCK];

/// Where the number of the call, and the lower half of its first argument, are in what a filter sees
/// (`struct seccomp_data`, little-endian).
const NUMBER: u32 = 0;
const FIRST: u32 = 16;

const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const IF_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;

fn step(code: u32, value: u32, if_not: u8) -> Result<libc::sock_filter> {
    Ok(libc::sock_filter {
        code: code.try_into()?,
        jt: 0,
        jf: if_not,
        k: value,
    })
}

/// The program of the filter: for each call a comparison, and a refusal that is jumped over.
fn filter() -> Result<Vec<libc::sock_filter>> {
    let refuse = libc::SECCOMP_RET_ERRNO | u32::try_from(libc::EPERM)?;
    let mut steps = vec![step(LOAD, NUMBER, 0)?];
    for call in REFUSED {
        steps.push(step(IF_EQUAL, call.try_into()?, 1)?);
        steps.push(step(RETURN, refuse, 0)?);
    }
    let families = u8::try_from(FAMILIES.len())?;
    steps.push(step(IF_EQUAL, libc::SYS_socket.try_into()?, 1 + 2 * families)?);
    steps.push(step(LOAD, FIRST, 0)?);
    for family in FAMILIES {
        steps.push(step(IF_EQUAL, family.try_into()?, 1)?);
        steps.push(step(RETURN, refuse, 0)?);
    }
    steps.push(step(RETURN, libc::SECCOMP_RET_ALLOW, 0)?);
    Ok(steps)
}

fn main() -> Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let program = arguments.next().context("usage: zt-sealed PROGRAM [ARGUMENT…]")?;
    let mut steps = filter()?;
    let filter = libc::sock_fprog {
        len: steps.len().try_into()?,
        filter: steps.as_mut_ptr(),
    };
    #[expect(unsafe_code, reason = "no safe wrapper installs a filter")]
    // SAFETY: the kernel copies `len` steps from `filter`, which outlives the call.
    let installed = unsafe {
        libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::c_ulong::from(libc::SECCOMP_MODE_FILTER),
            std::ptr::from_ref(&filter),
        )
    };
    Errno::result(installed).context("cannot install the filter: no_new_privs or CAP_SYS_ADMIN is needed")?;
    // It holds from here on.
    let socket = nix::sys::socket::socket(
        nix::sys::socket::AddressFamily::Vsock,
        nix::sys::socket::SockType::Stream,
        nix::sys::socket::SockFlag::empty(),
        None,
    );
    ensure!(
        socket.err() == Some(Errno::EPERM),
        "the filter does not refuse a socket of AF_VSOCK"
    );
    Err(Command::new(&program).args(arguments).exec())
        .with_context(|| format!("cannot start {}", program.display()))
}
