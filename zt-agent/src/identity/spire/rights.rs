// SPDX-License-Identifier: Apache-2.0
//! Who may open a socket of the SPIRE agent, by owners and modes, and what to do where the agent may not.
//!
//! SPIRE gives its admin socket the mode 0770. A SPIRE agent that is not root has one that is its own user's and group's, and an
//! agent without `CAP_DAC_OVERRIDE` opens it as a member of that group.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Numbers of `include/uapi/linux/capability.h`.
const DAC_OVERRIDE: u32 = 1;
const DAC_READ_SEARCH: u32 = 2;
/// Bits of a mode: to connect to a socket is to write it, and to go through a directory is to search it.
const WRITE: u32 = 2;
const SEARCH: u32 = 1;

/// Why a socket cannot be opened.
#[derive(Debug, thiserror::Error)]
pub(super) enum SocketError {
    /// Nobody's rights are the reason.
    #[error("{0}")]
    System(io::Error),
    /// Its mode, or that of a directory on the way, is the reason.
    #[error("{error}: {refused}")]
    Closed { error: io::Error, refused: Box<Refused> },
    /// Rights are the reason, and not those that modes give.
    #[error("{0}, and not by its mode: see what SELinux or AppArmor has logged")]
    Forbidden(io::Error),
}

impl SocketError {
    /// What the system said when this process tried to connect to `socket`.
    pub(super) fn of(socket: &Path, error: io::Error) -> Self {
        if error.kind() != io::ErrorKind::PermissionDenied {
            return Self::System(error);
        }
        match Rights::of_this_process() {
            Ok(rights) => match rights.refused(socket) {
                Some(refused) => {
                    let refused = Box::new(refused);
                    Self::Closed { error, refused }
                }
                None => Self::Forbidden(error),
            },
            Err(_) => Self::System(error),
        }
    }
}

/// As whom a process opens files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rights {
    user: u32,
    groups: BTreeSet<u32>,
    overrides: bool,
    searches: bool,
}

impl Rights {
    /// Those of this process.
    pub fn of_this_process() -> io::Result<Self> {
        Self::read(Path::new("/proc/self/status"))
    }

    /// Those of another one.
    pub fn of_process(pid: u32) -> io::Result<Self> {
        Self::read(Path::new(&format!("/proc/{pid}/status")))
    }

    fn read(path: &Path) -> io::Result<Self> {
        let status = fs::read_to_string(path)?;
        Self::of(&status)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, path.display().to_string()))
    }

    /// Those that `/proc/<pid>/status` tells of.
    fn of(status: &str) -> Option<Self> {
        let field = |name: &str| {
            let mut lines = status.lines();
            lines.find_map(|line| line.strip_prefix(name))
        };
        // Real, effective, saved, and the one that files are opened with.
        let last = |name: &str| field(name)?.split_whitespace().nth(3)?.parse::<u32>().ok();
        let capabilities = u64::from_str_radix(field("CapEff:")?.trim(), 16).ok()?;
        let has = |number: u32| capabilities & (1 << number) != 0;
        let others = field("Groups:")?.split_whitespace();
        let mut groups: BTreeSet<u32> = others.map(str::parse).collect::<Result<_, _>>().ok()?;
        groups.insert(last("Gid:")?);
        Some(Self {
            user: last("Uid:")?,
            groups,
            overrides: has(DAC_OVERRIDE),
            searches: has(DAC_READ_SEARCH),
        })
    }

    /// Those of an agent of this user and these groups that has the capabilities of its manifests.
    #[must_use]
    pub fn as_granted(self) -> Self {
        Self {
            overrides: false,
            searches: true,
            ..self
        }
    }

    /// What keeps such a process from a socket, by owners and modes.
    pub fn refused(&self, socket: &Path) -> Option<Refused> {
        let mut directories: Vec<&Path> = socket.ancestors().skip(1).collect();
        directories.reverse();
        let on_the_way = directories.into_iter().map(|path| (path, SEARCH));
        on_the_way
            .chain([(socket, WRITE)])
            .find_map(|(path, wanted)| self.refused_at(path, wanted))
    }

    fn refused_at(&self, path: &Path, wanted: u32) -> Option<Refused> {
        // What cannot be looked at is told of by what keeps one from it.
        let found = fs::metadata(path).ok()?;
        (!self.may(wanted, &found)).then(|| Refused {
            path: path.to_owned(),
            wanted,
            owner: found.uid(),
            group: found.gid(),
            mode: found.mode() & 0o7777,
            rights: self.clone(),
        })
    }

    fn may(&self, wanted: u32, file: &Metadata) -> bool {
        self.may_by(wanted, (file.uid(), file.gid(), file.mode()))
    }

    /// The first class that a process is in counts, as in the kernel.
    fn may_by(&self, wanted: u32, (owner, group, mode): (u32, u32, u32)) -> bool {
        let class = if self.user == owner {
            6
        } else if self.groups.contains(&group) {
            3
        } else {
            0
        };
        let by_capability = self.overrides || (wanted == SEARCH && self.searches);
        by_capability || (mode >> class) & wanted != 0
    }
}

/// What is closed to whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    path: PathBuf,
    wanted: u32,
    owner: u32,
    group: u32,
    mode: u32,
    rights: Rights,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let groups: Vec<String> = self.rights.groups.iter().map(u32::to_string).collect();
        write!(
            f,
            "{} (user {}, group {}, mode {:04o}) is closed to user {} with the groups {} and without CAP_DAC_OVERRIDE: ",
            self.path.display(),
            self.owner,
            self.group,
            self.mode,
            self.rights.user,
            groups.join(", ")
        )?;
        let group = self.group;
        let is_let_in = (self.mode >> 3) & self.wanted != 0;
        if is_let_in && !self.rights.groups.contains(&group) {
            write!(
                f,
                "the agent has to be in group {group} (`spire.adminGroup: {group}` in the values of the chart, `SupplementaryGroups={group}` in the unit)"
            )
        } else {
            f.write_str("let its group in (SPIRE gives its admin socket the mode 0770), and the agent be in that group (`spire.adminGroup` in the values of the chart, `SupplementaryGroups=` in the unit)")
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::os::unix::net::UnixListener;

    use super::*;

    fn rights(user: u32, groups: &[u32]) -> Rights {
        Rights {
            user,
            groups: groups.iter().copied().collect(),
            overrides: false,
            searches: false,
        }
    }

    #[test]
    fn rights_are_read_from_the_status() {
        let status = "Name:\tzt-agent\nUid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t7\nGroups:\t4 997 \nCapEff:\t0000000000000004\n";
        let expected = Rights {
            searches: true,
            ..rights(0, &[4, 7, 997])
        };
        assert_eq!(Rights::of(status), Some(expected));
        let all = Rights::of(&status.replace("0000000000000004", "000001ffffffffff"));
        assert!(all.is_some_and(|all| all.overrides));
        assert_eq!(Rights::of("Name:\tzt-agent\n"), None);
        assert!(Rights::of_this_process().is_ok());
    }

    #[test]
    fn the_first_class_that_a_process_is_in_counts() {
        let socket = |mode| (995, 997, mode);
        for (user, groups, mode, may) in [
            (0, &[0][..], 0o770, false),
            (0, &[0, 997], 0o770, true),
            (0, &[0, 997], 0o750, false),
            (0, &[0], 0o777, true),
            // The owner is looked at as the owner alone, and so is the group.
            (995, &[997], 0o077, false),
            (0, &[997], 0o707, false),
        ] {
            assert_eq!(
                rights(user, groups).may_by(WRITE, socket(mode)),
                may,
                "{user} {groups:?} {mode:o}"
            );
        }
        let searches = rights(0, &[0]).as_granted();
        assert!(searches.may_by(SEARCH, socket(0o700)));
        assert!(!searches.may_by(WRITE, socket(0o700)));
    }

    #[test]
    fn what_is_in_the_way_is_named_with_what_to_do() {
        let directory = tempfile::tempdir().expect("tempdir");
        let (inside, socket) = (
            directory.path().join("admin"),
            directory.path().join("admin/admin.sock"),
        );
        fs::create_dir(&inside).expect("a directory");
        let _listener = UnixListener::bind(&socket).expect("a socket");
        let close = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("a mode");
        };
        close(directory.path(), 0o755);
        close(&inside, 0o750);
        close(&socket, 0o770);
        let owner = fs::metadata(&socket).expect("a socket");
        let (user, group) = (owner.uid(), owner.gid());
        let stranger = rights(user + 1, &[group + 1]);
        let refused = stranger.refused_at(&inside, SEARCH);
        assert_eq!(refused.map(|refused| refused.path), Some(inside));
        let refused = stranger.as_granted().refused(&socket);
        let said = refused.expect("the socket is closed").to_string();
        for words in [
            format!("{} (user {user}, group {group}, mode 0770)", socket.display()),
            format!("closed to user {} with the groups {} ", user + 1, group + 1),
            format!("`spire.adminGroup: {group}`"),
            format!("`SupplementaryGroups={group}`"),
        ] {
            assert!(said.contains(&words), "{said}");
        }
        let member = rights(user + 1, &[group]).as_granted();
        assert_eq!(member.refused(&socket), None);
        // Nobody is helped by a group that is not let in.
        close(&socket, 0o700);
        let said = member.refused(&socket).expect("the socket is closed").to_string();
        assert!(
            said.contains("let its group in") && !said.contains("adminGroup: "),
            "{said}"
        );
    }
}
