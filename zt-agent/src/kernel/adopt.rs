// SPDX-License-Identifier: Apache-2.0
//! Listeners that no hook saw begin: given their owners and, where handshakes bear identities, made to prove who they are, through
//! descriptors borrowed from the processes that hold them.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use aya::maps::{Map, MapData, SkStorage};
use zt_common::abi::{SOCKET_KEEPS, SOCKET_LEFT, SOCKET_NOTED, SOCKET_WRITES, Socket};
use zt_common::names::{self, ADOPT_LEVEL, ADOPT_OPTION};

use super::descriptors;
use super::error::KernelError;
use super::hooks::ADOPT;
use super::host::Pins;
use super::load::{self, Loaded};
use super::sys;
use super::waiting::Given;

/// A listener that is to be adopted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Foundling {
    /// What is to be stored with it.
    pub entry: Socket,
    /// Its cookie.
    pub cookie: u64,
    /// Whether its place was noted already, by a hook of an agent which may not have asked for more: for this socket if that is
    /// stored with it.
    pub owned: bool,
}

/// What became of listeners that were older than the hooks, or than the handshakes that bear identities.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Adopted {
    /// They prove from now on who they are.
    pub proving: usize,
    /// They read what others prove, and have no proof to give: the kernel cannot be asked for it.
    pub reading: usize,
    /// They do neither.
    pub failed: usize,
}

impl Adopted {
    /// Counts those of another time.
    pub fn add(&mut self, other: Self) {
        self.proving += other.proving;
        self.reading += other.reading;
        self.failed += other.failed;
    }
}

/// The program that [`Foundling`]s set off, attached for as long as this lives.
pub(super) struct Adopter {
    links: Vec<OwnedFd>,
}

impl Adopter {
    /// Attaches the program to the managed roots; to none where the kernel would not load it.
    pub(super) fn attach<'p>(loaded: &Loaded, roots: impl Iterator<Item = &'p Path>) -> Self {
        let mut links = Vec::new();
        if let Ok(program) = loaded.program(ADOPT.program) {
            for root in roots {
                match attach(program.as_fd(), root) {
                    Ok(link) => links.push(link),
                    Err(error) => {
                        tracing::warn!(root = %root.display(), %error, "older listeners cannot be asked to prove who they are");
                    }
                }
            }
        }
        Self { links }
    }

    /// Has the program run for a socket.
    fn set_off(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        if self.links.is_empty() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        sys::set_option(socket, ADOPT_LEVEL, ADOPT_OPTION, 1)
    }
}

fn attach(program: BorrowedFd<'_>, root: &Path) -> io::Result<OwnedFd> {
    let directory = File::open(root)?;
    sys::link_create(program, directory.as_fd(), ADOPT.attach_type)
}

/// Adopts listeners, by their inodes. `elders` is the socket storage of other versions; `adopter` attaches the program where they are to prove who they are.
pub(super) fn adopt(
    pins: &Pins,
    mut foundlings: HashMap<u32, Foundling>,
    pids: &[u32],
    elders: &[OwnedFd],
    adopter: Option<&dyn Fn() -> Adopter>,
    places: &mut Given<'_>,
) -> Result<Adopted, KernelError> {
    let mut adopted = Adopted::default();
    if foundlings.is_empty() {
        return Ok(adopted);
    }
    let adopter = adopter.map(|attach| attach());
    let storage = Map::SkStorage(load::open(pins, names::SOCKETS)?);
    let mut storage: SkStorage<MapData, Socket> =
        storage.try_into().map_err(KernelError::map(names::SOCKETS))?;
    for &pid in pids {
        if foundlings.is_empty() {
            break;
        }
        for (number, inode) in descriptors::sockets_of(pid) {
            let Some(foundling) = foundlings.get(&inode) else {
                continue;
            };
            let outcome = descriptors::borrow(pid, number, inode).and_then(|socket| {
                take_in(
                    &mut storage,
                    elders,
                    socket.as_fd(),
                    *foundling,
                    adopter.as_ref(),
                    places,
                )
            });
            match outcome {
                Ok(one) => {
                    adopted.add(one);
                    foundlings.remove(&inode);
                }
                Err(error) => tracing::warn!(pid, %error, "cannot give a listening socket its owner"),
            }
        }
    }
    if !foundlings.is_empty() {
        adopted.failed += foundlings.len();
        for foundling in foundlings.values() {
            if foundling.entry.flags & SOCKET_LEFT != 0 {
                places.leave_out(foundling.entry.netns)?;
            }
        }
        tracing::warn!(
            sockets = foundlings.len(),
            "listening sockets whose holder was not found: what they accept is `unknown`, and they prove nothing"
        );
    }
    Ok(adopted)
}

/// What a listener is asked for that begins under handshakes that bear identities.
const ALL: u8 = SOCKET_KEEPS | SOCKET_WRITES;

/// Whether another version asked for the callbacks that write into a listener's answers.
fn wrote(elder: BorrowedFd<'_>, socket: BorrowedFd<'_>) -> bool {
    let stored = sys::of_socket(elder, socket).unwrap_or_default();
    let flags = stored.get(std::mem::offset_of!(Socket, flags));
    flags.is_some_and(|flags| flags & SOCKET_WRITES != 0)
}

fn take_in(
    storage: &mut SkStorage<MapData, Socket>,
    elders: &[OwnedFd],
    socket: BorrowedFd<'_>,
    foundling: Foundling,
    adopter: Option<&Adopter>,
    places: &mut Given<'_>,
) -> io::Result<Adopted> {
    let mut adopted = Adopted::default();
    let key = socket.as_raw_fd();
    let Foundling { entry, cookie, owned } = foundling;
    let there = storage.get(&key, 0).ok();
    let held = there.is_some_and(|there| there.is_held_by(cookie));
    let there = there.filter(|_| held || owned);
    let mut stored = there.unwrap_or(entry);
    if held {
        stored.flags |= entry.flags & SOCKET_NOTED;
    } else {
        stored = Socket {
            flags: stored.flags & !(SOCKET_NOTED | SOCKET_LEFT) | entry.flags,
            ..entry
        };
        if owned {
            places.join(&stored).map_err(io::Error::other)?;
            stored.flags |= SOCKET_NOTED;
        }
        if stored.flags & SOCKET_LEFT != 0 {
            places.leave_out(stored.netns).map_err(io::Error::other)?;
        }
    }
    if there.is_none() && elders.iter().any(|elder| wrote(elder.as_fd(), socket)) {
        // What another version asked for is ours to take back from what the listener accepts.
        stored.flags |= SOCKET_WRITES;
    }
    let prove = adopter.filter(|_| stored.flags & ALL != ALL);
    if prove.is_some() && sys::set_option(socket, libc::IPPROTO_TCP, libc::TCP_SAVE_SYN, 1).is_ok() {
        stored.flags |= SOCKET_KEEPS;
    }
    if there != Some(stored) {
        storage.insert(&key, stored, 0).map_err(io::Error::other)?;
    }
    if let Some(adopter) = prove {
        match adopter.set_off(socket) {
            Ok(()) if stored.flags & SOCKET_KEEPS != 0 => adopted.proving += 1,
            Err(_) if stored.flags & SOCKET_KEEPS != 0 => adopted.reading += 1,
            _ => adopted.failed += 1,
        }
    }
    Ok(adopted)
}
