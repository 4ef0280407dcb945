// SPDX-License-Identifier: Apache-2.0
//! A process of the demo's world: it joins its cgroup and network namespace before it does anything else, and then
//! plays a service, or becomes another program.

mod play;
mod tcp;
mod udp;

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

use clap::Args;
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{User, setgid, setgroups, setuid};

use super::cast::Who;
use super::error::DemoError;

/// Where a process belongs.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct Place {
    /// The directory of its cgroup.
    #[arg(long)]
    pub(super) cgroup: PathBuf,
    /// The file of its network namespace, unless it is the machine's.
    #[arg(long)]
    pub(super) netns: Option<PathBuf>,
}

/// Plays a service.
#[derive(Debug, Args)]
pub struct PlayArgs {
    #[command(flatten)]
    place: Place,
    /// Which.
    #[arg(long, value_enum)]
    who: Who,
    /// Serve, too, with the built-in server.
    #[arg(long)]
    serve: bool,
    /// Answer datagrams at the same places.
    #[arg(long)]
    datagrams: bool,
    /// At places of IPv4 alone.
    #[arg(long)]
    ipv4_only: bool,
}

/// Becomes another program.
#[derive(Debug, Args)]
pub struct BecomeArgs {
    #[command(flatten)]
    place: Place,
    /// Run it as the first of these users that exists.
    #[arg(long, value_delimiter = ',')]
    users: Vec<String>,
    /// The program and its arguments.
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// Joins the cgroup, then the namespace: from here on everything this process does is the workload's doing.
fn join(place: &Place) -> Result<(), DemoError> {
    let procs = place.cgroup.join("cgroup.procs");
    fs::write(&procs, std::process::id().to_string()).map_err(DemoError::at("join", &procs))?;
    if let Some(path) = &place.netns {
        let namespace = File::open(path).map_err(DemoError::at("open", path))?;
        setns(namespace, CloneFlags::CLONE_NEWNET)
            .map_err(|errno| DemoError::at("enter", path)(errno.into()))?;
    }
    Ok(())
}

pub(super) fn play(arguments: &PlayArgs) -> Result<(), DemoError> {
    join(&arguments.place)?;
    if arguments.serve {
        let places = arguments.who.places().into_iter();
        for (at, speak) in places.filter(|(at, _)| at.is_ipv4() || !arguments.ipv4_only) {
            play::serve(at, speak, arguments.who)?;
            if arguments.datagrams {
                udp::answer(at)?;
            }
        }
    }
    play::obey()
}

/// Does not return unless it fails.
pub(super) fn become_program(arguments: &BecomeArgs) -> Result<(), DemoError> {
    join(&arguments.place)?;
    if !arguments.users.is_empty() {
        private_memory()?;
        drop_to(&arguments.users)?;
    }
    let (program, rest) = arguments
        .command
        .split_first()
        .ok_or_else(|| DemoError::io("run nothing")(io::ErrorKind::InvalidInput.into()))?;
    let error = Command::new(program).args(rest).exec();
    Err(DemoError::io(format!("run {}", program.display()))(error))
}

/// A database server that is killed leaves shared memory behind, of both kinds that there are: here, they go with it.
fn private_memory() -> Result<(), DemoError> {
    let failed = failed("have shared memory of its own");
    let private = || {
        unshare(CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWNS)?;
        mount(
            None::<&str>,
            "/",
            None::<&str>,
            MsFlags::MS_REC | MsFlags::MS_PRIVATE,
            None::<&str>,
        )?;
        match mount(
            Some("tmpfs"),
            "/dev/shm",
            Some("tmpfs"),
            MsFlags::empty(),
            None::<&str>,
        ) {
            // Then nobody can leave anything there.
            Err(Errno::ENOENT) => Ok(()),
            result => result,
        }
    };
    private().map_err(failed)
}

fn drop_to(users: &[String]) -> Result<(), DemoError> {
    let user = user(users)?;
    setgroups(&[user.gid]).map_err(failed("leave root's groups"))?;
    setgid(user.gid).map_err(failed("change the group"))?;
    setuid(user.uid).map_err(failed("change the user"))
}

/// The first of `users` that exists.
pub(super) fn user(users: &[impl AsRef<str>]) -> Result<User, DemoError> {
    let known = users
        .iter()
        .find_map(|name| User::from_name(name.as_ref()).ok().flatten());
    known.ok_or_else(|| DemoError::io("find a user without privileges")(io::ErrorKind::NotFound.into()))
}

fn failed(what: &'static str) -> impl FnOnce(nix::Error) -> DemoError {
    move |errno| DemoError::io(what)(errno.into())
}
