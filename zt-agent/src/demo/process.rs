// SPDX-License-Identifier: Apache-2.0
//! Starts processes in the world: this very program, told to join its place first.

use std::fs::{File, OpenOptions};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::cast::Who;
use super::error::DemoError;
use super::names::Names;

/// The subcommand that is not for people.
pub(super) const HIDDEN: &str = "demo-process";

/// This program. It may have been replaced on disk since it was started, by an upgrade or a build.
pub(super) fn program() -> Result<PathBuf, DemoError> {
    let path = std::env::current_exe().map_err(DemoError::io("find this program"))?;
    Ok(if path.exists() {
        path
    } else {
        PathBuf::from("/proc/self/exe")
    })
}

/// Has this process die with the one that cleans up after it, which must not have to wait for it. `false` where that one has died
/// already.
pub(super) fn die_with(owner: u32) -> Result<bool, DemoError> {
    let tied = nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL);
    tied.map_err(|errno| DemoError::io("be tied to the process that started this")(errno.into()))?;
    Ok(nix::unistd::getppid().as_raw().cast_unsigned() == owner)
}

/// This program with `demo-process <part>`, in a group of its own so that Ctrl-C reaches only the demo itself, and
/// without settings of an agent of this machine.
pub(super) fn hidden(part: &str) -> Result<Command, DemoError> {
    let mut command = Command::new(program()?);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("ZT_")) {
        command.env_remove(name);
    }
    command.args([HIDDEN, part]).stdin(Stdio::null()).process_group(0);
    Ok(command)
}

/// A command that becomes `argv` in a workload's place, without privileges.
pub(super) fn as_workload(names: &Names, who: Who, argv: &[String]) -> Result<Command, DemoError> {
    let users = format!("{},nobody", who.name());
    let mut command = hidden("become")?;
    command
        .args(place(names, who))
        .args(["--users", &users, "--"])
        .args(argv);
    // What a server would take from the environment is not the demo's business.
    command
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
        .env("LC_ALL", "C");
    command.current_dir("/");
    Ok(command)
}

/// The options that name a workload's place.
pub(super) fn place(names: &Names, who: Who) -> [String; 4] {
    [
        "--cgroup".to_owned(),
        names.cgroup_directory(who).display().to_string(),
        "--netns".to_owned(),
        names.namespace_file(who).display().to_string(),
    ]
}

/// Opens a log for a process's output, at its end.
pub(super) fn log(path: &Path) -> Result<File, DemoError> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .map_err(DemoError::at("open", path))
}
