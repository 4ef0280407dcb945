// SPDX-License-Identifier: Apache-2.0
//! The pins of all ABI versions below one directory. A version that replaces another has its own hooks in place before
//! those of the other go; whoever detaches means all of them.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use zt_common::names;

use super::capabilities::check_privileges;
use super::error::KernelError;
use super::hooks::{PACKET_GUARD, SOCK_OPS};
use super::host::Pins;
use super::lock::{Claim, Lock};
use super::sys;

/// What a directory of pins is called while it is being removed.
const GOING: &str = "removing-";

/// What came of removing pins.
#[derive(Debug, Default)]
pub struct Removal {
    /// Pins removed.
    pub removed: usize,
    /// What could not be removed, each with its reason.
    pub problems: Vec<KernelError>,
    /// The agent that runs on the pins that were removed.
    pub running: Option<String>,
}

/// Removes the pins of every version below `bpffs`, whether an agent runs or not; what the pins held is freed by the
/// kernel. What cannot be removed holds up nothing else.
pub fn detach(bpffs: &Path) -> Result<Removal, KernelError> {
    check_privileges()?;
    let mut removal = Removal::default();
    let claim = Lock::claim_there(bpffs)?;
    for directory in versions(bpffs)? {
        remove(&directory, &mut removal);
    }
    match claim {
        Some(Claim::Taken(holder)) => removal.running = Some(holder.to_string()),
        // Not while somebody has it locked: the next agent would lock another directory.
        Some(Claim::Held(_lock)) if removal.problems.is_empty() => {
            // It may hold what is not ours.
            let _ = fs::remove_dir(bpffs);
        }
        _ => {}
    }
    Ok(removal)
}

/// The directories of other versions than that of `pins`, and what a removal that broke off has left.
pub(super) fn others(pins: &Pins) -> Result<Vec<PathBuf>, KernelError> {
    let mut found = versions(pins.root().parent().unwrap_or(pins.root()))?;
    found.retain(|directory| directory != pins.root());
    Ok(found)
}

/// Removes what is pinned in the directory of one version: links first, for hooks go before the maps that they read. Where a link
/// was not detached, the directory stays, empty: by it an agent that still holds the link sees that it was not lost.
pub(super) fn remove(directory: &Path, removal: &mut Removal) {
    let directory = match going(directory) {
        Ok(going) => going,
        // Somebody else is at it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return,
        Err(source) => {
            let directory = directory.to_owned();
            removal.problems.push(KernelError::Unmarked {
                directory: directory.clone(),
                source,
            });
            directory
        }
    };
    let pins = Pins::at(directory.clone());
    let mut all_are_off = true;
    for (part, are_links) in [(pins.links(), true), (pins.maps(), false)] {
        // Absent where making it broke off.
        let mut pins: Vec<PathBuf> = fs::read_dir(&part)
            .into_iter()
            .flatten()
            .flatten()
            .map(|pin| pin.path())
            .collect();
        pins.sort_by_key(|path| turn(path));
        for path in pins {
            if are_links {
                // An agent that still runs holds the link open: removing the pin alone would leave the hook.
                let detached = sys::open_pin(&path).and_then(|link| sys::link_detach(link.as_fd()));
                all_are_off &= detached.is_ok();
                let pin = path.clone();
                note(
                    removal,
                    detached.map_err(|source| KernelError::Detach { pin, source }),
                );
            }
            let gone = fs::remove_file(&path).map_err(KernelError::io("remove the pin", &path));
            removal.removed += usize::from(gone.is_ok());
            note(removal, gone);
        }
        if part.exists() {
            note(
                removal,
                fs::remove_dir(&part).map_err(KernelError::io("remove", &part)),
            );
        }
    }
    if all_are_off {
        note(
            removal,
            fs::remove_dir(&directory).map_err(KernelError::io("remove", &directory)),
        );
    }
}

/// Renames the directory of a version that is to go. An agent that runs sees by this that it was not a single pin that was lost, and
/// puts nothing back.
fn going(directory: &Path) -> io::Result<PathBuf> {
    let name = directory.file_name().unwrap_or_default().to_string_lossy();
    if name.starts_with(GOING) {
        return Ok(directory.to_owned());
    }
    let going = directory.with_file_name(format!("{GOING}{}-{name}", std::process::id()));
    fs::rename(directory, &going)?;
    Ok(going)
}

/// Takes away the packet guard and the program of handshakes of a version that is to go, in this order, and nothing else. What fails is
/// [`remove`]'s to tell.
pub(super) fn end_handshakes(directory: &Path) {
    let directory = going(directory).unwrap_or_else(|_| directory.to_owned());
    let links = fs::read_dir(Pins::at(directory).links());
    let links = links.into_iter().flatten().flatten().map(|pin| pin.path());
    let mut links: Vec<PathBuf> = links.filter(|pin| turn(pin) != Turn::Rest).collect();
    links.sort_by_key(|pin| turn(pin));
    for pin in links {
        let detached = sys::open_pin(&pin).and_then(|link| sys::link_detach(link.as_fd()));
        if detached.is_ok() {
            let _ = fs::remove_file(&pin);
        }
    }
}

/// In which order the links of a version go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Turn {
    /// The packet guard: it would take for strange what begins when nobody notes handshakes for it any more.
    Guard,
    /// Who judges handshakes: it would miss what a hook that is gone already has no note of.
    Handshakes,
    /// All else.
    Rest,
}

fn turn(pin: &Path) -> Turn {
    if PACKET_GUARD.iter().any(|hook| is_of(pin, hook.program)) {
        Turn::Guard
    } else if is_of(pin, SOCK_OPS.program) {
        Turn::Handshakes
    } else {
        Turn::Rest
    }
}

/// Whether a pin is one of a program's links.
fn is_of(pin: &Path, program: &str) -> bool {
    pin.file_name()
        .is_some_and(|name| name.to_string_lossy().starts_with(program))
}

/// Whether the program of handshakes that a version has pinned is attached to a cgroup.
pub(super) fn judges_handshakes(directory: &Path) -> bool {
    let links = fs::read_dir(Pins::at(directory.to_owned()).links());
    let mut links = links.into_iter().flatten().flatten().map(|pin| pin.path());
    links.any(|pin| {
        let link = is_of(&pin, SOCK_OPS.program)
            .then(|| sys::open_pin(&pin).ok())
            .flatten();
        link.and_then(|link| sys::link_info(link.as_fd()).ok())
            .is_some_and(|info| info.cgroup != 0)
    })
}

/// The socket storage of other versions: it says what they have asked of listeners.
pub(super) fn sockets_of_others(pins: &Pins) -> Vec<OwnedFd> {
    let others = others(pins).unwrap_or_default().into_iter();
    others
        .filter_map(|directory| sys::open_pin(&Pins::at(directory).map(names::SOCKETS)).ok())
        .collect()
}

fn note(removal: &mut Removal, outcome: Result<(), KernelError>) {
    removal.problems.extend(outcome.err());
}

/// The flags of `zt_control` that a version left: the first eight bytes, in every version.
pub(super) fn flags(directory: &Path) -> Option<u64> {
    let control = Pins::at(directory.to_owned()).map(names::CONTROL);
    let control = sys::open_pin(&control).ok()?;
    sys::first_word(control.as_fd()).ok()
}

/// Directories that are ours: of versions, and of removals that broke off.
pub(super) fn versions(bpffs: &Path) -> Result<Vec<PathBuf>, KernelError> {
    let entries = match fs::read_dir(bpffs) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(KernelError::io("list", bpffs)(error)),
    };
    let mut found: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            path.file_name()
                .and_then(|name| name.to_str())
                .is_some_and(is_ours)
        })
        .collect();
    found.sort();
    Ok(found)
}

/// Whether a removal of these pins is under way, or broke off.
pub(super) fn is_going(pins: &Pins) -> bool {
    let name = pins.root().file_name().unwrap_or_default().to_string_lossy();
    let beside = versions(pins.root().parent().unwrap_or(pins.root())).unwrap_or_default();
    beside.iter().any(|directory| {
        let of = directory.file_name().unwrap_or_default().to_string_lossy();
        of.strip_prefix(GOING)
            .and_then(|of| of.split_once('-'))
            .is_some_and(|(_, of)| of == name)
    })
}

/// Whether a removal that broke off has left this directory.
pub(super) fn is_leftover(directory: &Path) -> bool {
    let name = directory.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with(GOING)
}

fn is_ours(name: &str) -> bool {
    let version = name
        .strip_prefix('v')
        .is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()));
    version || name.starts_with(GOING)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_directories_of_versions_are_ours() {
        for ours in ["v0", "v1", "v12", "removing-77-v1"] {
            assert!(is_ours(ours), "{ours}");
        }
        for other in ["v", "v1x", "version", "tc", "1", "cilium"] {
            assert!(!is_ours(other), "{other}");
        }
    }

    #[test]
    fn a_removal_is_of_one_version() {
        let directory = tempfile::tempdir().expect("tempdir");
        let pins = |version: &str| Pins::at(directory.path().join(version));
        fs::create_dir(directory.path().join("removing-77-v1")).expect("made");
        assert!(is_going(&pins("v1")));
        for other in ["v0", "v11", "v7"] {
            assert!(!is_going(&pins(other)), "{other}");
        }
        assert!(!is_going(&Pins::at(directory.path().join("absent/v1"))));
    }

    /// Fails where the guard of a version outlives its notes of handshakes.
    #[test]
    fn the_packet_guard_goes_before_what_notes_handshakes_and_that_before_all_else() {
        let mut pins = [
            "zt_connect4-7",
            "zt_sock_ops-7",
            "zt_packet_ingress-7",
            "zt_packet_egress-7",
        ]
        .map(Path::new);
        pins.sort_by_key(|pin| turn(pin));
        assert_eq!(
            pins.map(turn),
            [Turn::Guard, Turn::Guard, Turn::Handshakes, Turn::Rest]
        );
        assert_eq!(pins[3], Path::new("zt_connect4-7"));
    }

    #[test]
    fn nothing_there_is_nothing_to_remove() {
        let directory = tempfile::tempdir().expect("tempdir");
        assert!(
            versions(&directory.path().join("absent"))
                .expect("none")
                .is_empty()
        );
    }
}
