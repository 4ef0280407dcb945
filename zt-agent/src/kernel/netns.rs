// SPDX-License-Identifier: Apache-2.0
//! The network namespaces in which managed workloads live: which cookie is which, what addresses each has, and how to
//! do something inside one.
//!
//! No namespace is held open: a descriptor would keep a deleted pod's network alive. A namespace is found again
//! through a process that is in it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::panic::{self, UnwindSafe};
use std::path::{Path, PathBuf};

use nix::ifaddrs::getifaddrs;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use zt_common::address::Address;
use zt_common::names;

/// Most addresses of one namespace that count as its own. Whoever may make namespaces may give them as many as he likes.
const LOCAL_SHARE: usize = 1024;
/// Ends a scan of processes: a node does not have more, and a loop must end.
const MOST_PROCESSES: usize = 200_000;

#[derive(Clone, Debug)]
struct Namespace {
    inode: u64,
    pid: u32,
    addresses: BTreeSet<Address>,
    /// Whether TCP Fast Open was switched off there.
    fast_open: FastOpen,
}

/// What became of TCP Fast Open in a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FastOpen {
    /// It is nobody's business: no workload lives there, or handshakes bear no identities.
    Untouched,
    /// It is off.
    Off,
    /// It is on, and could not be switched off.
    Left,
}

/// The namespaces known, by cookie.
#[derive(Debug, Default)]
pub struct Namespaces {
    known: BTreeMap<u64, Namespace>,
    by_inode: HashMap<u64, u64>,
    /// Whether TCP Fast Open is to be off where workloads live.
    fast_open_off: bool,
}

impl Namespaces {
    /// None is known yet. TCP Fast Open is switched off in those of workloads where that is wanted: it sends data before the
    /// handshake has shown who answers.
    pub fn new(fast_open_off: bool) -> Self {
        Self {
            fast_open_off,
            ..Self::default()
        }
    }

    /// How many namespaces of workloads have TCP Fast Open switched off, and in how many that failed.
    pub fn fast_open(&self) -> (usize, usize) {
        let count = |wanted| {
            self.known
                .values()
                .filter(|known| known.fast_open == wanted)
                .count()
        };
        (count(FastOpen::Off), count(FastOpen::Left))
    }

    /// Looks at the namespaces of `pids`; those that no process is in any more are forgotten when `complete`: none of these,
    /// and not the one that was known to be.
    ///
    /// Addresses of a namespace already known are read again where `refresh` says so. Returns whether anything changed.
    pub fn look(&mut self, pids: &[u32], refresh: bool, complete: bool) -> bool {
        let mut seen: HashMap<u64, u32> = HashMap::new();
        // The agent's own is the host's. There it is off only if somebody else who is managed lives there.
        let mut lived_in: HashSet<u64> = HashSet::new();
        for &pid in pids.iter().take(MOST_PROCESSES) {
            if let Some(inode) = inode_of(pid) {
                seen.entry(inode).or_insert(pid);
                if pid != std::process::id() {
                    lived_in.insert(inode);
                }
            }
        }
        let mut changed = false;
        if complete {
            let gone: Vec<u64> = self
                .known
                .iter()
                .filter(|(_, ns)| !seen.contains_key(&ns.inode) && inode_of(ns.pid) != Some(ns.inode))
                .map(|(cookie, _)| *cookie)
                .collect();
            for cookie in gone {
                if let Some(namespace) = self.known.remove(&cookie) {
                    self.by_inode.remove(&namespace.inode);
                    changed = true;
                }
            }
        }
        let mut due = Vec::new();
        for (inode, pid) in seen {
            let switch_off = self.fast_open_off && lived_in.contains(&inode);
            if let Some(namespace) = self
                .by_inode
                .get(&inode)
                .and_then(|cookie| self.known.get_mut(cookie))
            {
                namespace.pid = pid;
                let untouched = switch_off && namespace.fast_open == FastOpen::Untouched;
                if !refresh && !untouched {
                    continue;
                }
            }
            due.push(Due {
                inode,
                pid,
                switch_off,
            });
        }
        for (cookie, found) in look_inside(&due) {
            if let Some(stale) = self
                .by_inode
                .insert(found.inode, cookie)
                .filter(|stale| *stale != cookie)
            {
                // The kernel gave a new namespace the inode of one that is gone.
                self.known.remove(&stale);
                changed = true;
            }
            let addresses = found.addresses.clone();
            let before = self.known.insert(cookie, found);
            changed |= before.is_none_or(|before| before.addresses != addresses);
        }
        changed
    }

    /// Whether a namespace is known.
    pub fn knows(&self, cookie: u64) -> bool {
        self.known.contains_key(&cookie)
    }

    /// The content of `zt_local`: every (cookie, address) known, of one namespace at most [`LOCAL_SHARE`], and of all what there is
    /// room for, those of namespaces with few first.
    pub fn local(&self) -> impl Iterator<Item = (u64, Address)> + '_ {
        let mut namespaces: Vec<_> = self.known.iter().collect();
        namespaces.sort_by_key(|(cookie, namespace)| (namespace.addresses.len(), **cookie));
        let share = namespaces.into_iter().flat_map(|(cookie, namespace)| {
            let addresses = namespace.addresses.iter().take(LOCAL_SHARE);
            addresses.map(move |address| (*cookie, *address))
        });
        share.take(names::MAX_LOCAL as usize)
    }

    /// How many addresses [`Self::local`] leaves out.
    pub fn left_out(&self) -> usize {
        let all: usize = self
            .known
            .values()
            .map(|namespace| namespace.addresses.len())
            .sum();
        all - self.local().count()
    }

    /// All cookies known.
    pub fn cookies(&self) -> impl Iterator<Item = u64> + '_ {
        self.known.keys().copied()
    }

    /// Opens a namespace through a process that is in it.
    pub fn open(&self, wanted: u64) -> io::Result<File> {
        let namespace = self.known.get(&wanted).ok_or(io::ErrorKind::NotFound)?;
        let file = File::open(ns_path(namespace.pid))?;
        if file.metadata()?.ino() == namespace.inode {
            Ok(file)
        } else {
            Err(io::ErrorKind::NotFound.into())
        }
    }
}

/// A namespace that is to be looked at.
#[derive(Clone, Copy, Debug)]
struct Due {
    inode: u64,
    /// A process in it.
    pid: u32,
    /// Whether TCP Fast Open is to be off there.
    switch_off: bool,
}

impl Due {
    /// Moves the calling thread into it: its cookie, and what it is like.
    fn enter(self) -> io::Result<(u64, Namespace)> {
        let file = File::open(ns_path(self.pid))?;
        if file.metadata()?.ino() != self.inode {
            return Err(io::ErrorKind::NotFound.into());
        }
        enter(&file)?;
        let fast_open = if self.switch_off {
            switch_fast_open_off()
        } else {
            FastOpen::Untouched
        };
        let namespace = Namespace {
            inode: self.inode,
            pid: self.pid,
            addresses: addresses()?,
            fast_open,
        };
        Ok((cookie()?, namespace))
    }
}

/// Looks at namespaces, all of them on one thread, which never comes back out: to begin one for each would cost as much as the
/// looks. One that is gone is left out.
fn look_inside(due: &[Due]) -> Vec<(u64, Namespace)> {
    if due.is_empty() {
        return Vec::new();
    }
    std::thread::scope(|scope| {
        let looking = scope.spawn(|| each(due, |due| due.enter().ok()));
        // It catches what panics.
        looking.join().unwrap_or_default()
    })
}

/// What comes of a look at each of these. One that panics is left out, and the others are looked at all the same.
fn each<T: Copy + UnwindSafe, R>(due: &[T], look: fn(T) -> Option<R>) -> Vec<R> {
    let found = due.iter().filter_map(|&due| {
        panic::catch_unwind(move || look(due)).unwrap_or_else(|_| {
            tracing::error!("a look at a namespace panicked: it stays as it was known");
            None
        })
    });
    found.collect()
}

/// The inode of the namespace that a process is in, if there is one.
fn inode_of(pid: u32) -> Option<u64> {
    fs::metadata(ns_path(pid)).ok().map(|meta| meta.ino())
}

fn ns_path(pid: u32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/ns/net"))
}

/// Runs something inside a namespace, on a thread of its own, which never comes back out.
pub fn inside<R: Send>(namespace: &File, run: impl FnOnce() -> R + Send) -> io::Result<R> {
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                enter(namespace)?;
                Ok(run())
            })
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread inside the namespace panicked")))
    })
}

/// Moves the calling thread into a namespace.
pub fn enter(namespace: &File) -> io::Result<()> {
    setns(namespace, CloneFlags::CLONE_NEWNET).map_err(io::Error::from)
}

/// Cookie of the calling thread's namespace.
#[expect(unsafe_code, reason = "nix does not know SO_NETNS_COOKIE")]
pub fn cookie() -> io::Result<u64> {
    use std::os::fd::AsRawFd as _;
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let socket = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let mut cookie = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the buffer has the length given.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            std::ptr::from_mut(&mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 {
        Ok(cookie)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Switches TCP Fast Open off in the calling thread's namespace.
fn switch_fast_open_off() -> FastOpen {
    // Where a container sees it read-only, the first process of the host does not. Whose namespace it is about depends on
    // who opens it, not on where it is.
    let places = ["/proc/sys", "/proc/1/root/proc/sys"].map(|root| format!("{root}/net/ipv4/tcp_fastopen"));
    match fs::read_to_string(&places[0]) {
        Ok(value) if value.trim() == "0" => return FastOpen::Off,
        // A kernel without it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return FastOpen::Off,
        _ => {}
    }
    let switched = fs::write(&places[0], "0").or_else(|_| fs::write(&places[1], "0"));
    match switched {
        Ok(()) => FastOpen::Off,
        Err(error) => {
            tracing::warn!(%error, "cannot switch TCP Fast Open off in a namespace (net.ipv4.tcp_fastopen)");
            FastOpen::Left
        }
    }
}

/// Addresses of the calling thread's namespace, loopback left out (it is known without looking).
pub fn addresses() -> io::Result<BTreeSet<Address>> {
    let mut found = BTreeSet::new();
    for interface in getifaddrs()? {
        let Some(address) = interface.address else {
            continue;
        };
        let ip = if let Some(v4) = address.as_sockaddr_in() {
            IpAddr::V4(v4.ip())
        } else if let Some(v6) = address.as_sockaddr_in6() {
            IpAddr::V6(v6.ip())
        } else {
            continue;
        };
        if !ip.is_loopback() {
            found.insert(Address::from(ip));
        }
    }
    Ok(found)
}

/// Processes of a cgroup itself.
pub fn members(cgroup: &Path) -> Vec<u32> {
    // Gone or unreadable: nobody is in it.
    let text = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

/// Processes of a cgroup and of everything below it.
pub fn processes(cgroup: &Path) -> Vec<u32> {
    processes_outside(cgroup, &|_| false)
}

/// Processes of a cgroup and of what is below it, without the cgroups for which `another` holds and what is below those.
pub fn processes_outside(cgroup: &Path, another: &dyn Fn(&Path) -> bool) -> Vec<u32> {
    let mut found = Vec::new();
    let mut pending = vec![cgroup.to_path_buf()];
    while let Some(directory) = pending.pop() {
        found.extend(members(&directory));
        if found.len() > MOST_PROCESSES {
            break;
        }
        // A cgroup has two links and one for each cgroup in it, and listing its hundred files costs more than all else here.
        if fs::metadata(&directory).is_ok_and(|meta| meta.nlink() == 2) {
            continue;
        }
        let Ok(entries) = fs::read_dir(&directory) else {
            continue;
        };
        pending.extend(
            entries
                .flatten()
                .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                .map(|entry| entry.path())
                .filter(|path| !another(path)),
        );
    }
    found
}

#[cfg(test)]
mod tests;
