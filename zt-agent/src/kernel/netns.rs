// SPDX-License-Identifier: Apache-2.0
//! The network namespaces in which managed workloads live: which cookie is which, what addresses each has, and how to
//! do something inside one.
//!
//! No namespace is held open: a descriptor would keep a deleted pod's network alive. A namespace is found again
//! through a process that is in it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::ifaddrs::getifaddrs;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use zt_common::address::Address;

/// Ends a scan of processes: a node does not have more, and a loop must end.
const MOST_PROCESSES: usize = 200_000;

#[derive(Clone, Debug)]
struct Namespace {
    inode: u64,
    pid: u32,
    addresses: BTreeSet<Address>,
}

/// The namespaces known, by cookie.
#[derive(Debug, Default)]
pub struct Namespaces {
    known: BTreeMap<u64, Namespace>,
    by_inode: HashMap<u64, u64>,
}

impl Namespaces {
    /// Looks at the namespaces of `pids`; those that no process is in any more are forgotten when `complete`.
    ///
    /// Addresses of a namespace already known are read again where `refresh` says so. Returns whether anything changed.
    pub fn look(&mut self, pids: &[u32], refresh: bool, complete: bool) -> bool {
        let mut seen: HashMap<u64, u32> = HashMap::new();
        for &pid in pids.iter().take(MOST_PROCESSES) {
            if let Ok(meta) = fs::metadata(ns_path(pid)) {
                seen.entry(meta.ino()).or_insert(pid);
            }
        }
        let mut changed = false;
        if complete {
            let gone: Vec<u64> = self
                .known
                .iter()
                .filter(|(_, ns)| !seen.contains_key(&ns.inode))
                .map(|(cookie, _)| *cookie)
                .collect();
            for cookie in gone {
                if let Some(namespace) = self.known.remove(&cookie) {
                    self.by_inode.remove(&namespace.inode);
                    changed = true;
                }
            }
        }
        for (inode, pid) in seen {
            if let Some(namespace) = self
                .by_inode
                .get(&inode)
                .and_then(|cookie| self.known.get_mut(cookie))
            {
                namespace.pid = pid;
                if !refresh {
                    continue;
                }
            }
            let Ok(file) = File::open(ns_path(pid)) else {
                continue;
            };
            let Ok(Ok((cookie, addresses))) = inside(&file, || Ok::<_, io::Error>((cookie()?, addresses()?)))
            else {
                continue;
            };
            if let Some(stale) = self
                .by_inode
                .insert(inode, cookie)
                .filter(|stale| *stale != cookie)
            {
                // The kernel gave a new namespace the inode of one that is gone.
                self.known.remove(&stale);
                changed = true;
            }
            let before = self.known.insert(
                cookie,
                Namespace {
                    inode,
                    pid,
                    addresses: addresses.clone(),
                },
            );
            changed |= before.is_none_or(|before| before.addresses != addresses);
        }
        changed
    }

    /// Whether a namespace is known.
    pub fn knows(&self, cookie: u64) -> bool {
        self.known.contains_key(&cookie)
    }

    /// Every (cookie, address) known: the content of `zt_local`.
    pub fn local(&self) -> impl Iterator<Item = (u64, Address)> + '_ {
        self.known.iter().flat_map(|(cookie, namespace)| {
            namespace.addresses.iter().map(move |address| (*cookie, *address))
        })
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
