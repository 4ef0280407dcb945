// SPDX-License-Identifier: Apache-2.0
//! The hook that only kernels with BPF LSM have: it decides on packet sockets and the like when they are made. Whether it is there is
//! tried, and not concluded: a kernel may take such a program, and attach it, and never run it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;

use aya::programs::{Program, ProgramError};
use aya::{Btf, Ebpf};
use zt_common::names::PROBE_PROTOCOL;

use super::attach::Attached;
use super::hooks::{LSM_PROBE, SOCKET_CREATE};
use super::load::chain;
use super::{Kernel, ManagedRoot, sys};

/// The hook of both programs, as the kernel calls it.
const SOCKET: &str = "socket_create";

/// Has the kernel verify the programs, or says why it does not.
pub(super) fn load(ebpf: &mut Ebpf) -> Result<(), String> {
    let types = Btf::from_sys_fs().map_err(|error| chain(&error))?;
    for hook in [SOCKET_CREATE, LSM_PROBE] {
        let Some(Program::LsmCgroup(program)) = ebpf.program_mut(hook.program) else {
            return Err(format!("{} is not in the object", hook.program));
        };
        let loaded = program.load(SOCKET, &types);
        loaded.map_err(|error| why_not(hook.program, &error))?;
    }
    Ok(())
}

/// Why a program does not load, in a few words where the verifier has not even looked at it.
fn why_not(program: &str, error: &ProgramError) -> String {
    match error {
        ProgramError::LoadError {
            io_error,
            verifier_log,
        } if verifier_log.to_string().is_empty() => {
            format!("the kernel takes no program of BPF LSM: {io_error}")
        }
        ProgramError::Btf(error) => format!("the kernel has no BPF LSM: {error}"),
        other => format!("{program} does not load: {}", chain(other)),
    }
}

/// Has the kernel run a program that refuses what nobody asks for, on everything below `mount`, where this process is. `probe` is
/// that program; it is gone again when this returns.
pub(super) fn try_out(probe: BorrowedFd<'_>, mount: &Path) -> Result<(), String> {
    let attempt = || -> io::Result<io::Result<()>> {
        let directory = File::open(mount)?;
        let _link = sys::link_create(probe, directory.as_fd(), LSM_PROBE.attach_type)?;
        Ok(sys::unix_socket(PROBE_PROTOCOL))
    };
    let made = attempt().map_err(|error| format!("{} cannot be attached: {error}", LSM_PROBE.program))?;
    tell(made)
}

/// What it says of BPF LSM that a socket was made which [`LSM_PROBE`] refuses, and which without it no kernel knows.
fn tell(made: io::Result<()>) -> Result<(), String> {
    match made.map_err(|error| (error.raw_os_error(), error)) {
        Err((Some(libc::EPERM), _)) => Ok(()),
        Ok(()) | Err((Some(libc::EPROTONOSUPPORT), _)) => Err(
            "the kernel takes programs of BPF LSM and runs none: `bpf` is not among the security modules that it was booted with (`lsm=`)".to_owned(),
        ),
        Err((_, error)) => Err(format!("whether the kernel runs programs of BPF LSM cannot be tried: {error}")),
    }
}

impl Kernel {
    /// Whether packet sockets and the like are decided on when they are made, on every managed root; why not, otherwise. Where no
    /// managed root is there, whether the kernel has taken the program.
    pub fn packet_sockets(&self) -> Result<(), &str> {
        let loaded = self.loaded.packet_sockets.as_ref();
        let outcome = loaded.and(self.socket_create.as_ref());
        outcome.copied().map_err(String::as_str)
    }

    /// Attaches the program to the managed roots, where the kernel runs it. All others are enough without it. What fails is tried
    /// again when hooks are attached next, and what a predecessor has attached there goes on until then.
    pub(super) fn attach_socket_create(&mut self, roots: &[ManagedRoot]) -> Vec<Attached> {
        if let Err(cause) = &self.loaded.packet_sockets {
            tracing::info!(%cause, "packet sockets of workloads with CAP_NET_RAW are not decided on");
            return Vec::new();
        }
        let (attached, outcome) = self.attach_if_it_runs(roots);
        if let Err(cause) = &outcome {
            tracing::warn!(%cause, "packet sockets of workloads with CAP_NET_RAW are not decided on");
        }
        self.socket_create = outcome;
        attached
    }

    /// What could be attached, and why the rest could not.
    fn attach_if_it_runs(&self, roots: &[ManagedRoot]) -> (Vec<Attached>, Result<(), String>) {
        if let Err(cause) = self.runs(roots) {
            return (Vec::new(), Err(cause));
        }
        let (mut attached, mut failed) = (Vec::new(), Vec::new());
        for root in roots {
            match self.attach_to(SOCKET_CREATE, root) {
                Ok(one) => attached.push(one),
                Err(error) => failed.push(error.to_string()),
            }
        }
        let outcome = if failed.is_empty() {
            Ok(())
        } else {
            Err(failed.join("; "))
        };
        (attached, outcome)
    }

    /// Whether the kernel runs programs of BPF LSM. A link that is there was made when that had been tried.
    fn runs(&self, roots: &[ManagedRoot]) -> Result<(), String> {
        let Some(first) = roots.first() else {
            return Ok(());
        };
        if roots.iter().any(|root| self.has_socket_create(root)) {
            return Ok(());
        }
        let probe = self.loaded.program(LSM_PROBE.program);
        let probe = probe.map_err(|error| error.to_string())?;
        let mount = first.path.ancestors().nth(first.level as usize);
        try_out(probe.as_fd(), mount.unwrap_or(&first.path))
    }

    /// Whether a link of the program is pinned that is on a managed root.
    fn has_socket_create(&self, root: &ManagedRoot) -> bool {
        let pinned = sys::open_pin(&self.pin_of(SOCKET_CREATE, root));
        let info = pinned.and_then(|link| sys::link_info(link.as_fd()));
        info.is_ok_and(|info| info.cgroup == root.id && info.attach_type == SOCKET_CREATE.attach_type)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_refusal_of_the_program_shows_that_it_runs() {
        let told = |error| tell(Err(io::Error::from_raw_os_error(error)));
        assert_eq!(told(libc::EPERM), Ok(()));
        for ran_none in [told(libc::EPROTONOSUPPORT), tell(Ok(()))] {
            assert!(ran_none.is_err_and(|cause| cause.contains("runs none")));
        }
        for error in [libc::EMFILE, libc::ENOMEM, libc::EACCES] {
            let untried = told(error).expect_err("nobody knows");
            assert!(untried.contains("cannot be tried"), "{untried}");
        }
    }
}
