// SPDX-License-Identifier: Apache-2.0
//! `zt-sealed PROGRAM [ARGUMENT…]`: becomes the program, under the seccomp profile that containerd gives a container which has the
//! capabilities of the `DaemonSet` and asks for `RuntimeDefault`.
//!
//! `tests/seccomp/containerd.json` is what containerd 2.2.1 makes of them (`contrib/seccomp`, `DefaultProfile`): the names of what is
//! allowed. The numbers are those of this machine's C headers; a name that these do not have is of no number that a program here
//! could use.

use std::collections::HashMap;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use nix::errno::Errno;
use serde::Deserialize;

const PROFILE: &str = include_str!("../../seccomp/containerd.json");
/// Where the C headers have the numbers of system calls.
const HEADERS: [&str; 3] = [
    "/usr/include/x86_64-linux-gnu/asm/unistd_64.h",
    "/usr/include/asm/unistd_64.h",
    "/usr/include/asm-generic/unistd.h",
];

/// `LinuxSeccomp` of the runtime specification, as much as that profile has of it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Profile {
    default_action: String,
    #[serde(rename = "architectures")]
    _architectures: Vec<String>,
    syscalls: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    names: Vec<String>,
    action: String,
    #[serde(default)]
    args: Vec<Argument>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Argument {
    index: u32,
    value: u64,
    op: String,
}

/// Where the number of the call, and the lower half of its first argument, are in what a filter sees
/// (`struct seccomp_data`, little-endian).
const NUMBER: u32 = 0;
const FIRST: u32 = 16;

const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const IF_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;

/// A step; a comparison goes on with the next one where it holds or not, and jumps over so many otherwise.
fn step(code: u32, value: u32, if_so: u8, if_not: u8) -> Result<libc::sock_filter> {
    Ok(libc::sock_filter {
        code: code.try_into()?,
        jt: if_so,
        jf: if_not,
        k: value,
    })
}

/// The numbers of the system calls here, by name.
fn numbers() -> Result<HashMap<String, u32>> {
    let text = HEADERS.iter().find_map(|path| fs::read_to_string(path).ok());
    let text = text.context("no numbers of system calls: run `apt-get install linux-libc-dev`")?;
    let lines = text.lines().filter_map(|line| line.strip_prefix("#define __NR_"));
    let pairs = lines.filter_map(|line| {
        let (name, number) = line.split_once(char::is_whitespace)?;
        Some((name.to_owned(), number.trim().parse().ok()?))
    });
    Ok(pairs.collect())
}

/// The program of the filter: for each call that is allowed a comparison, and the permission, which is jumped over.
fn filter() -> Result<Vec<libc::sock_filter>> {
    let profile: Profile = serde_json::from_str(PROFILE)?;
    ensure!(
        profile.default_action == "SCMP_ACT_ERRNO",
        "what is not named is refused"
    );
    let numbers = numbers()?;
    let mut steps = vec![step(LOAD, NUMBER, 0, 0)?];
    for rule in &profile.syscalls {
        ensure!(rule.action == "SCMP_ACT_ALLOW", "{}", rule.action);
        for number in rule.names.iter().filter_map(|name| numbers.get(name)) {
            match &rule.args[..] {
                [] => {
                    steps.push(step(IF_EQUAL, *number, 0, 1)?);
                    steps.push(step(RETURN, libc::SECCOMP_RET_ALLOW, 0, 0)?);
                }
                // The lower half says it all of what these rules are about.
                [argument] if argument.index == 0 => {
                    let value = u32::try_from(argument.value)?;
                    let (if_so, if_not) = match argument.op.as_str() {
                        "SCMP_CMP_EQ" => (0, 1),
                        "SCMP_CMP_NE" => (1, 0),
                        other => bail!("{other} is no comparison of this profile"),
                    };
                    steps.push(step(IF_EQUAL, *number, 0, 4)?);
                    steps.push(step(LOAD, FIRST, 0, 0)?);
                    steps.push(step(IF_EQUAL, value, if_so, if_not)?);
                    steps.push(step(RETURN, libc::SECCOMP_RET_ALLOW, 0, 0)?);
                    steps.push(step(LOAD, NUMBER, 0, 0)?);
                }
                _ => bail!("a rule with other arguments than this profile has"),
            }
        }
    }
    let refuse = libc::SECCOMP_RET_ERRNO | u32::try_from(libc::EPERM)?;
    steps.push(step(RETURN, refuse, 0, 0)?);
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
    ensure!(
        nix::unistd::chroot("/").err() == Some(Errno::EPERM),
        "the filter does not refuse what needs another capability"
    );
    Err(Command::new(&program).args(arguments).exec())
        .with_context(|| format!("cannot start {}", program.display()))
}
