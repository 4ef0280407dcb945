// SPDX-License-Identifier: Apache-2.0
//! Removes what a demo made: its processes, pins, cgroups, network namespaces and files, found by their names alone, so
//! that it does not matter who died before telling.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

use super::error::DemoError;
use super::names::{BPFFS, NAMESPACES, Names, lives, owner, temporary};
use super::{ground, network};

/// How long killed processes may take to be gone.
const DEADLINE: Duration = Duration::from_secs(15);
/// A file in a demo's directory: this demo mounted bpffs.
const MOUNTED: &str = ".mounted-bpffs";

/// Removes what demos and connectivity tests left behind whose process no longer lives; the names of those.
pub(super) fn sweep(mount: &Path) -> (Vec<String>, Result<(), DemoError>) {
    let mut dead = Vec::new();
    for directory in [mount, Path::new(NAMESPACES), Path::new(BPFFS), &temporary()] {
        for (path, name) in entries(directory) {
            // Anyone may make a directory in the temporary one and give it such a name.
            let ours = fs::symlink_metadata(&path).is_ok_and(|found| found.uid() == 0);
            if let Some((kind, pid)) = owner(&name)
                && ours
                && !lives(kind, pid)
                && !dead.contains(&(kind, pid))
            {
                dead.push((kind, pid));
            }
        }
    }
    let dead: Vec<Names> = dead
        .into_iter()
        .map(|(kind, pid)| Names::of(kind, pid, mount))
        .collect();
    let mut first = Ok(());
    for names in &dead {
        first = first.and(remove(names));
    }
    (dead.iter().map(|names| names.name().to_owned()).collect(), first)
}

/// Removes everything of one demo. Goes on after a failure, so that one stuck thing does not leave the others; returns
/// the first.
pub(super) fn remove(names: &Names) -> Result<(), DemoError> {
    let directory = names.directory();
    let mounted = directory.join(MOUNTED).exists();
    // Processes first: an agent would pin again. Its hooks last as long as the pins do, so these go before the cgroups.
    let mut done = kill(&names.root());
    done = done.and(remove_pins(&names.pins()));
    done = done.and(remove_cgroups(&names.root()));
    for (_, namespace) in entries(Path::new(NAMESPACES)) {
        if names.owns(&namespace) {
            done = done.and(network::remove_namespace(&namespace));
        }
    }
    if mounted && nobody_pins() {
        let unmounted =
            nix::mount::umount(BPFFS).map_err(|errno| DemoError::io("unmount bpffs")(errno.into()));
        done = done.and(unmounted);
    }
    done.and(absent(fs::remove_dir_all(&directory)).map_err(DemoError::at("remove", &directory)))
}

/// Whether anything of it is there.
pub(super) fn is_left(names: &Names) -> bool {
    let namespaces = entries(Path::new(NAMESPACES));
    names.root().exists()
        || names.pins().exists()
        || names.directory().exists()
        || namespaces.iter().any(|(_, namespace)| names.owns(namespace))
}

/// Makes the demo's directory, which nobody else can have prepared, and mounts bpffs if it is not mounted.
pub(super) fn prepare(names: &Names) -> Result<(), DemoError> {
    use std::os::unix::fs::DirBuilderExt as _;
    let directory = names.directory();
    // Servers that run without privileges find their files in it, but cannot list it.
    fs::DirBuilder::new()
        .mode(0o711)
        .create(&directory)
        .map_err(DemoError::at("make", &directory))?;
    let mounts =
        fs::read_to_string("/proc/self/mountinfo").map_err(DemoError::io("read /proc/self/mountinfo"))?;
    let is_bpffs = |line: &str| line.contains(&format!(" {BPFFS} ")) && line.contains(" - bpf ");
    if mounts.lines().any(is_bpffs) {
        return Ok(());
    }
    let marker = directory.join(MOUNTED);
    fs::write(&marker, "").map_err(DemoError::at("write", &marker))?;
    nix::mount::mount(
        Some("bpf"),
        BPFFS,
        Some("bpf"),
        nix::mount::MsFlags::empty(),
        Some("mode=0700"),
    )
    .map_err(|errno| DemoError::Bpffs { source: errno.into() })
}

/// Kills all processes of a cgroup and below, and waits until they are gone, as well as those that the story left: one
/// that is still at work would make what is then not removed.
fn kill(root: &Path) -> Result<(), DemoError> {
    let events = root.join("cgroup.events");
    wait(&format!("the processes in {} to end", root.display()), || {
        // Again each time: a process may have joined meanwhile.
        absent(fs::write(root.join("cgroup.kill"), "1"))?;
        let empty = match fs::read_to_string(&events) {
            Ok(text) => text.lines().any(|line| line == "populated 0"),
            Err(error) => absent(Err(error)).map(|()| true)?,
        };
        Ok(reap() && empty)
    })
}

fn remove_cgroups(root: &Path) -> Result<(), DemoError> {
    for (path, _) in entries(root) {
        if path.is_dir() {
            remove_cgroups(&path)?;
        }
    }
    wait(
        &format!("{} to be removable", root.display()),
        || match ground::change_in(root.parent().unwrap_or(root), || fs::remove_dir(root)) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Ok(false),
            result => absent(result).map(|()| true),
        },
    )
}

/// A pin on bpffs is a file that is neither regular nor a directory; symbolic links are followed nowhere.
fn remove_pins(path: &Path) -> Result<(), DemoError> {
    let is_directory = fs::symlink_metadata(path).is_ok_and(|found| found.is_dir());
    let removed = if is_directory {
        for (child, _) in entries(path) {
            remove_pins(&child)?;
        }
        fs::remove_dir(path)
    } else {
        fs::remove_file(path)
    };
    absent(removed).map_err(DemoError::at("remove", path))
}

/// Whether bpffs holds nothing but what the kernel puts there itself.
fn nobody_pins() -> bool {
    entries(Path::new(BPFFS))
        .iter()
        .all(|(_, name)| matches!(name.as_str(), "maps.debug" | "progs.debug"))
}

/// Takes note of the end of processes that outlived the story, which are children of this one since. Whether none is
/// left.
fn reap() -> bool {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => return false,
            Ok(_) => {}
            Err(_) => return true,
        }
    }
}

/// What is not there need not be removed. (A cgroup that goes while it is read answers ENODEV.)
fn absent(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error)
            if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV) =>
        {
            Ok(())
        }
        other => other,
    }
}

fn wait(what: &str, mut done: impl FnMut() -> io::Result<bool>) -> Result<(), DemoError> {
    let begin = Instant::now();
    while !done().map_err(DemoError::io(format!("wait for {what}")))? {
        if begin.elapsed() > DEADLINE {
            return Err(DemoError::Late {
                what: what.to_owned(),
                deadline: DEADLINE,
            });
        }
        thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// What is in a directory; a directory that is not there holds nothing.
fn entries(directory: &Path) -> Vec<(PathBuf, String)> {
    let listed = fs::read_dir(directory).into_iter().flatten().flatten();
    listed
        .map(|entry| (entry.path(), entry.file_name().to_string_lossy().into_owned()))
        .collect()
}
