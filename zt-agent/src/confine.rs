// SPDX-License-Identifier: Apache-2.0
//! What a service keeps for itself of what it was started with: the capabilities that it works with, and no system call that it
//! never makes. For whoever takes it over that is a hurdle: what its capabilities let him do to files and processes it does not end.
//!
//! The filter refuses what is listed, and lets pass what is not: a C library that takes to another call goes on to work. It
//! stands beside the one of a container's runtime or of systemd, not in its place.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr as _;

use caps::{CapSet, Capability, CapsHashSet};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};

use crate::kernel::CAPABILITIES;

/// Why a service keeps more than it should.
#[derive(Debug, thiserror::Error)]
enum ConfineError {
    /// Capabilities cannot be given up.
    #[error("capabilities cannot be given up: {0}")]
    Capabilities(#[from] caps::errors::CapsError),
    /// The kernel takes no filter: it is built without `CONFIG_SECCOMP_FILTER`.
    #[error("no filter of system calls can be installed: {0}")]
    Filter(#[from] seccompiler::Error),
    /// No filter can be made for this processor.
    #[error("no filter of system calls is known for this processor: {0}")]
    Processor(#[from] seccompiler::BackendError),
}

/// Calls that are refused with `EPERM`. None of these is made by a service.
const REFUSED: &[i64] = &[
    // Programs.
    libc::SYS_execve,
    libc::SYS_execveat,
    // Other processes' memory. (What `pidfd_getfd` does for the agent is none of these.)
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    // The kernel itself.
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_reboot,
    // Mounts, but for `mount`, by which bpffs comes to be on a host.
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_open_by_handle_at,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_quotactl,
    // Namespaces of its own. (`setns` enters those of workloads.)
    libc::SYS_unshare,
    // Keys that the kernel keeps for others.
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    // Ways past filters, and much-used ways into the kernel.
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_userfaultfd,
    // What time it is, and what the machine is called.
    libc::SYS_clock_settime,
    libc::SYS_settimeofday,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_acct,
    libc::SYS_personality,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_fork,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_vfork,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_modify_ldt,
];

/// The bit of a call's number by which x86-64 has each call a second time (its x32 ABI), and the numbers that it has calls at there
/// which take something else than the first: `execve`, `ptrace` and others. No program here makes any.
#[cfg(target_arch = "x86_64")]
const TWICE: Option<i64> = Some(0x4000_0000);
#[cfg(target_arch = "x86_64")]
const OTHERWISE: std::ops::Range<i64> = 512..548;
#[cfg(not(target_arch = "x86_64"))]
const TWICE: Option<i64> = None;
#[cfg(not(target_arch = "x86_64"))]
const OTHERWISE: std::ops::Range<i64> = 0..0;

/// The node agent gives up all capabilities but those that it works with, for good, and the system calls that no service makes. To
/// be called before there are other threads, which would keep what they have. Where that fails it goes on, and says so.
pub fn node() {
    told(confine(&CAPABILITIES.map(|capability| capability.name)));
}

/// A policy engine gives up every capability: see [`node`].
pub fn engine() {
    told(confine(&[]));
}

fn told(confined: Result<(), ConfineError>) {
    if let Err(error) = confined {
        tracing::warn!(
            %error,
            "this process keeps more rights than it needs: let the container's runtime or systemd take them (the manifests do)"
        );
    }
}

/// On an error what could be given up is given up.
fn confine(capabilities: &[&str]) -> Result<(), ConfineError> {
    let given_up = give_up_all_but(capabilities);
    refuse_calls()?;
    Ok(given_up?)
}

/// Every step is taken, whatever came of the ones before; the first that failed is told of.
fn give_up_all_but(names: &[&str]) -> Result<(), caps::errors::CapsError> {
    let wanted: CapsHashSet = names
        .iter()
        .filter_map(|name| Capability::from_str(name).ok())
        .collect();
    // What programs that are started could get back: none is, and nobody but who may set it needs to take it from them.
    let bounded = || {
        if caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP)? {
            for capability in caps::read(None, CapSet::Bounding)?.difference(&wanted) {
                caps::drop(None, CapSet::Bounding, *capability)?;
            }
        }
        Ok(())
    };
    let kept = |set| -> Result<CapsHashSet, caps::errors::CapsError> {
        let has = caps::read(None, set)?;
        Ok(has.intersection(&wanted).copied().collect())
    };
    let steps: [Result<(), caps::errors::CapsError>; 5] = [
        bounded(),
        caps::clear(None, CapSet::Ambient),
        // In this order: nothing is effective that is not permitted.
        kept(CapSet::Effective).and_then(|kept| caps::set(None, CapSet::Effective, &kept)),
        kept(CapSet::Permitted).and_then(|kept| caps::set(None, CapSet::Permitted, &kept)),
        caps::clear(None, CapSet::Inheritable),
    ];
    steps.into_iter().collect()
}

/// Refuses the calls to this thread and those that it starts.
fn refuse_calls() -> Result<(), ConfineError> {
    for filter in filters()? {
        seccompiler::apply_filter(&filter)?;
    }
    Ok(())
}

/// One filter for each answer.
fn filters() -> Result<[BpfProgram; 2], ConfineError> {
    let architecture = TargetArch::try_from(std::env::consts::ARCH)?;
    let mut refused: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    let otherwise = OTHERWISE.filter_map(|number| TWICE.map(|bit| number | bit));
    for number in each_way(REFUSED).chain(otherwise) {
        refused.insert(number, Vec::new());
    }
    // A thread is made by the same call as a process.
    let no_thread = SeccompCondition::new(
        0,
        SeccompCmpArgLen::Dword,
        SeccompCmpOp::MaskedEq(libc::CLONE_THREAD.cast_unsigned().into()),
        0,
    )?;
    for number in each_way(&[libc::SYS_clone]) {
        refused.insert(number, vec![SeccompRule::new(vec![no_thread.clone()])?]);
    }
    // What this one is asked for lies in memory, where a filter does not look. C libraries then ask `clone`.
    let absent = each_way(&[libc::SYS_clone3]).map(|number| (number, Vec::new()));
    let program = |rules, errno: i32| -> Result<BpfProgram, seccompiler::BackendError> {
        let refuse = SeccompAction::Errno(errno.cast_unsigned());
        SeccompFilter::new(rules, SeccompAction::Allow, refuse, architecture)?.try_into()
    };
    Ok([
        program(refused, libc::EPERM)?,
        program(absent.collect(), libc::ENOSYS)?,
    ])
}

/// All numbers that these calls have.
fn each_way(calls: &[i64]) -> impl Iterator<Item = i64> {
    let all: BTreeSet<i64> = calls
        .iter()
        .flat_map(|call| [Some(*call), TWICE.map(|bit| call | bit)])
        .flatten()
        .collect();
    all.into_iter()
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::process::Command;
    use std::thread;

    use super::*;

    /// In a thread of its own, which takes what it gave up with it.
    fn confined<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
        let thread = thread::spawn(move || {
            refuse_calls().expect("a filter");
            work()
        });
        thread.join().expect("no panic")
    }

    #[test]
    fn no_program_is_started_and_threads_are() {
        let error = confined(|| Command::new("true").spawn().map(|mut child| child.wait()));
        assert_eq!(error.expect_err("refused").kind(), ErrorKind::PermissionDenied);
        assert_eq!(confined(|| thread::spawn(|| 7).join().expect("no panic")), 7);
        // Nobody else's.
        assert!(Command::new("true").status().expect("started").success());
    }

    #[test]
    fn what_is_listed_is_refused_whichever_way_it_is_called() {
        #[expect(unsafe_code, reason = "calls are made by their numbers")]
        let call = |number: i64| {
            // SAFETY: without arguments none of these has an effect, whether or not it is refused: each asks for
            // memory, a name, a number or a right that is not there.
            let answer = unsafe { libc::syscall(number, 0, 0, 0, 0, 0, 0) };
            (answer, nix::errno::Errno::last_raw())
        };
        // Some that do nothing without arguments even where they are allowed.
        for number in [
            libc::SYS_execve,
            libc::SYS_process_vm_readv,
            libc::SYS_finit_module,
            libc::SYS_open_by_handle_at,
            libc::SYS_add_key,
            libc::SYS_io_uring_enter,
            libc::SYS_mount_setattr,
        ] {
            for number in each_way(&[number]) {
                assert_eq!(confined(move || call(number)), (-1, libc::EPERM), "{number:#x}");
            }
        }
        // `execve` of x32, which others answer with `ENOSYS` where there is none.
        if let Some(bit) = TWICE {
            assert_eq!(confined(move || call(bit + 520)), (-1, libc::EPERM));
        }
        assert_eq!(confined(move || call(libc::SYS_clone3)), (-1, libc::ENOSYS));
        assert!(confined(move || call(libc::SYS_getppid)).0 > 0);
    }

    #[test]
    fn capabilities_that_are_named_are_known() {
        for capability in CAPABILITIES {
            Capability::from_str(capability.name).expect(capability.name);
        }
    }
}
