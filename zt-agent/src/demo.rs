// SPDX-License-Identifier: Apache-2.0
//! `zt-agent demo`: a safe, self-contained tour on this machine, with real workloads and real denials.
//!
//! Two processes. The demo itself makes nothing but the other one, which builds the world and tells the story, and
//! waits; however that one ends, the demo removes everything that bears its name. A demo that was itself killed is
//! removed by the next one.
//!
//! `zt-agent connectivity-test` is made of the same parts: it tells no story, but tries what policy is for, and cleans up even when
//! it is killed.

mod actor;
mod agent;
mod cast;
mod cleanup;
mod connectivity;
mod error;
mod files;
mod ground;
mod names;
mod network;
mod order;
mod process;
mod screen;
mod servers;
mod story;
mod wire;
mod workload;
mod world;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitStatus;

use clap::{Args, Subcommand};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::cli::Exit;
use crate::kernel;
use names::{Kind, Names};

pub use connectivity::{ConnectivityArgs, connectivity};
pub use error::DemoError;

/// Arguments of `demo`.
#[derive(Clone, Copy, Debug, Args)]
pub struct DemoArgs {
    /// Leave everything running at the end, to play with, until Ctrl-C
    #[arg(long)]
    keep: bool,
    /// Without the pauses that make it easy to read along
    #[arg(long)]
    fast: bool,
}

/// What processes of the demo do.
#[derive(Debug, Subcommand)]
pub enum DemoProcess {
    /// Builds the world and tells the story.
    Story(story::StoryArgs),
    /// Tries what policy is for.
    Trial(connectivity::TrialArgs),
    /// Cleans up after a process that was killed.
    Janitor(connectivity::JanitorArgs),
    /// Plays a service.
    Play(workload::PlayArgs),
    /// Becomes another program in a place of the demo.
    Become(workload::BecomeArgs),
}

/// Runs a process of the demo.
pub fn process(process: &DemoProcess) -> Exit {
    let done = match process {
        DemoProcess::Story(arguments) => story::tell(arguments),
        DemoProcess::Trial(arguments) => connectivity::try_all(arguments),
        DemoProcess::Janitor(arguments) => connectivity::keep_clean(arguments).map(|()| true),
        DemoProcess::Play(arguments) => workload::play(arguments).map(|()| true),
        DemoProcess::Become(arguments) => workload::become_program(arguments).map(|()| true),
    };
    match done {
        Ok(true) => Exit::Done,
        Ok(false) => Exit::Failed,
        // A reader who has seen enough (`| head`) is no failure.
        Err(DemoError::Print(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => Exit::Done,
        Err(error) => failed(&error),
    }
}

/// Runs the demo.
pub fn demo(arguments: DemoArgs) -> Exit {
    let told = || {
        let mut part = vec![OsString::from("story")];
        part.extend(arguments.fast.then(|| "--fast".into()));
        part.extend(arguments.keep.then(|| "--keep".into()));
        perform(Kind::Demo, part, arguments.keep)
    };
    told().unwrap_or_else(|error| failed(&error))
}

/// Runs a part of the demo in a process of its own, and removes what it made.
fn perform(kind: Kind, part: Vec<OsString>, keep: bool) -> Result<Exit, DemoError> {
    let mount = prerequisites()?;
    let names = Names::of(kind, std::process::id(), &mount);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(DemoError::io("have a runtime"))?;
    // Signals are caught before there is anything to remove, and stay caught while it is removed.
    runtime.block_on(supervise(kind, part, keep, names, mount))
}

fn failed(error: &DemoError) -> Exit {
    eprintln!("error: {error}");
    error.exit()
}

/// Where cgroup2 is mounted, if the demo can run here at all. From here on it can.
fn prerequisites() -> Result<PathBuf, DemoError> {
    if !nix::unistd::geteuid().is_root() {
        return Err(DemoError::NotRoot);
    }
    kernel::check_privileges()?;
    ground::prepare()
}

/// Removes everything when it goes out of scope: also after a panic.
struct Remains(Option<Names>);

impl Remains {
    fn remove(&mut self) -> Result<(), DemoError> {
        self.0.take().map_or(Ok(()), |names| cleanup::remove(&names))
    }
}

impl Drop for Remains {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            failed(&error);
        }
    }
}

async fn supervise(
    kind: Kind,
    part: Vec<OsString>,
    keep: bool,
    names: Names,
    mount: PathBuf,
) -> Result<Exit, DemoError> {
    let what = kind.words();
    let mut signals = Signals::catch()?;
    let (swept, removed) = cleanup::sweep(&mount);
    for name in swept {
        eprintln!("removed what {name} left behind when it was killed");
    }
    if let Err(error) = removed {
        eprintln!("one that was killed left something behind: {error}");
    }
    // Before orphans become children of this process: the janitor shall not.
    let _janitor = match kind {
        Kind::Connectivity => Some(connectivity::Janitor::start(&mount)?),
        Kind::Demo => None,
    };
    // Processes that outlive the story become children of this one, and not zombies of one that does not care.
    nix::sys::prctl::set_child_subreaper(true)
        .map_err(|errno| DemoError::io("adopt processes")(errno.into()))?;
    let mut remains = Remains(Some(names));
    let mut command = tokio::process::Command::new(process::program()?);
    command.arg(process::HIDDEN).args(part).arg("--owner");
    command.arg(std::process::id().to_string());
    command.arg("--mount").arg(&mount).kill_on_drop(true);
    let mut story = command
        .stdin(std::process::Stdio::null())
        .spawn()
        .map_err(DemoError::io("start the story"))?;
    let ended = tokio::select! {
        status = story.wait() => Some(status.map_err(DemoError::io("wait for the story"))?),
        () = signals.any() => None,
    };
    if ended.is_none() {
        story.kill().await.map_err(DemoError::io("end the story"))?;
    } else if keep && ended.is_some_and(told) {
        signals.any().await;
    }
    remains.remove()?;
    if keep && ended.is_some() {
        eprintln!("everything that {what} made is removed");
    }
    Ok(match ended {
        Some(status) if status.success() => Exit::Done,
        Some(status) => {
            if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
                eprintln!("{what} was interrupted by signal {signal}; everything that it made is removed");
            }
            exit_of(status)
        }
        None => {
            eprintln!("{what} was interrupted; everything that it made is removed");
            Exit::Failed
        }
    })
}

/// Whether the story came to its end, whatever it found.
fn told(status: ExitStatus) -> bool {
    matches!(status.code(), Some(0 | 1))
}

/// The story says by its own exit code why it ended.
fn exit_of(status: ExitStatus) -> Exit {
    if status.code() == Some(Exit::Unavailable as i32) {
        Exit::Unavailable
    } else {
        Exit::Failed
    }
}

/// The signals that end a demo.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    fn catch() -> Result<Self, DemoError> {
        let catch = |kind| signal(kind).map_err(DemoError::io("catch signals"));
        Ok(Self {
            interrupt: catch(SignalKind::interrupt())?,
            terminate: catch(SignalKind::terminate())?,
            hangup: catch(SignalKind::hangup())?,
        })
    }

    async fn any(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}
