// SPDX-License-Identifier: Apache-2.0
//! What a world is made on. A host has all of it; a container, such as the agent's own, sees a part of the cgroups and may write
//! nowhere: there, the world has mounts of its own.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statvfs::{FsFlags, statvfs};

use super::error::DemoError;
use super::names::{NAMESPACES, temporary};
use crate::cgroup;

/// Whose owner may make something in it.
const OWNER_WRITES: u32 = 0o200;
/// How often a change that is refused is tried, and how long is waited in between.
const TRIES: usize = 20;
const BETWEEN: Duration = Duration::from_millis(5);

/// Sees to it that this process and those that it starts can make cgroups, network namespaces and files, and says where cgroup2 is
/// mounted. What is read-only is made writable in a mount namespace that is theirs alone, and goes with the last of them.
///
/// To be called by the first thread, before there are others: they would stay where they are.
pub(super) fn prepare() -> Result<PathBuf, DemoError> {
    see_all_cgroups()?;
    let cgroups = cgroup::mount_point()?;
    let scratch = [PathBuf::from(NAMESPACES), temporary()];
    if !is_read_only(&cgroups) && !scratch.iter().any(|path| is_read_only(nearest(path))) {
        return Ok(cgroups);
    }
    own_mounts().map_err(DemoError::ground(
        "have mounts of its own, which it needs as file systems are read-only here",
    ))?;
    if is_read_only(&cgroups) {
        // This mount alone: what the cgroups are mounted with stays as it is.
        let flags = MsFlags::MS_REMOUNT
            | MsFlags::MS_BIND
            | MsFlags::MS_NOSUID
            | MsFlags::MS_NODEV
            | MsFlags::MS_NOEXEC
            | MsFlags::MS_RELATIME;
        let remounted = mount(None::<&str>, &cgroups, None::<&str>, flags, None::<&str>);
        remounted.map_err(DemoError::ground(format!("make {} writable", cgroups.display())))?;
    }
    for path in scratch {
        let place = nearest(&path);
        if !is_read_only(place) {
            continue;
        }
        if place == Path::new("/") {
            return Err(DemoError::NoPlace { path });
        }
        let mounted = mount(
            Some("tmpfs"),
            place,
            Some("tmpfs"),
            MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
            Some("mode=0755"),
        );
        mounted.map_err(DemoError::ground(format!("mount a tmpfs at {}", place.display())))?;
    }
    Ok(cgroups)
}

/// Enters the cgroup namespace of the machine's first process: out of another one no process can be moved to a cgroup that is not in
/// it. Where that process cannot be looked at, what is seen has to do.
fn see_all_cgroups() -> Result<(), DemoError> {
    let own = fs::metadata("/proc/self/ns/cgroup");
    let (Ok(own), Ok(machine)) = (own, File::open("/proc/1/ns/cgroup")) else {
        return Ok(());
    };
    if machine.metadata().is_ok_and(|machine| machine.ino() == own.ino()) {
        return Ok(());
    }
    setns(machine, CloneFlags::CLONE_NEWCGROUP).map_err(DemoError::ground("see all cgroups of this machine"))
}

/// Nothing that is mounted from here on is seen by others.
fn own_mounts() -> nix::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        None::<&str>,
    )
}

/// The part of a path that is there.
fn nearest(path: &Path) -> &Path {
    path.ancestors().find(|path| path.is_dir()).unwrap_or(path)
}

fn is_read_only(path: &Path) -> bool {
    statvfs(path).is_ok_and(|found| found.flags().contains(FsFlags::ST_RDONLY))
}

/// Changes what is in a directory that belongs to this process, though its mode keeps it from that: the root of the cgroups has 0555, and
/// the agent's container may not overrule that (`CAP_DAC_OVERRIDE`). It has its mode again afterwards.
///
/// Somebody else who does the same at the same time may give it its mode again too early for this one: that is tried again.
pub(super) fn change_in(directory: &Path, change: impl Fn() -> io::Result<()>) -> io::Result<()> {
    for _ in 1..TRIES {
        match change_once(directory, &change) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => std::thread::sleep(BETWEEN),
            result => return result,
        }
    }
    change_once(directory, &change)
}

fn change_once(directory: &Path, change: &impl Fn() -> io::Result<()>) -> io::Result<()> {
    let refused = match change() {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => error,
        result => return result,
    };
    let mode = fs::metadata(directory)?.permissions().mode() & 0o7777;
    if mode & OWNER_WRITES != 0 {
        return Err(refused);
    }
    // Whoever may not change that either is told why he would have had to.
    fs::set_permissions(directory, Permissions::from_mode(mode | OWNER_WRITES)).map_err(|_| refused)?;
    let changed = change();
    changed.and(fs::set_permissions(directory, Permissions::from_mode(mode)))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn the_part_that_is_there_is_found() {
        let directory = tempfile::tempdir().expect("directory");
        let there = directory.path();
        assert_eq!(nearest(&there.join("not/there")), there);
        assert_eq!(nearest(Path::new("/")), Path::new("/"));
        assert!(!is_read_only(there) && !is_read_only(&there.join("not/there")));
    }

    #[test]
    fn a_directory_has_its_mode_again_whatever_came_of_the_change() {
        let directory = tempfile::tempdir().expect("directory");
        let there = directory.path().join("root");
        fs::create_dir(&there).expect("made");
        let mode = || fs::metadata(&there).expect("there").permissions().mode() & 0o7777;
        // As the kernel refuses who may not overrule modes; root may, where tests run.
        let refusing = |last: io::ErrorKind| {
            change_in(&there, || {
                let kind = if mode() & OWNER_WRITES != 0 {
                    last
                } else {
                    io::ErrorKind::PermissionDenied
                };
                Err(kind.into())
            })
        };
        fs::set_permissions(&there, Permissions::from_mode(0o555)).expect("its mode");
        let error = refusing(io::ErrorKind::AlreadyExists).expect_err("refused");
        assert_eq!((error.kind(), mode()), (io::ErrorKind::AlreadyExists, 0o555));
        change_in(&there, || Ok(())).expect("nobody refuses");
        assert_eq!(mode(), 0o555);
        fs::set_permissions(&there, Permissions::from_mode(0o755)).expect("its mode");
        let error = refusing(io::ErrorKind::PermissionDenied).expect_err("refused");
        assert_eq!((error.kind(), mode()), (io::ErrorKind::PermissionDenied, 0o755));
    }

    /// Fails where a change that another process undoes half-way is given up.
    #[test]
    fn who_takes_the_mode_back_too_early_is_waited_for() {
        let directory = tempfile::tempdir().expect("directory");
        let there = directory.path();
        fs::set_permissions(there, Permissions::from_mode(0o555)).expect("its mode");
        let tried = Cell::new(0);
        let changed = change_in(there, || {
            tried.set(tried.get() + 1);
            if tried.get() < 4 {
                return Err(io::ErrorKind::PermissionDenied.into());
            }
            Ok(())
        });
        changed.expect("the second try");
        let mode = fs::metadata(there).expect("there").permissions().mode() & 0o7777;
        assert_eq!((tried.get(), mode), (4, 0o555));
    }
}
