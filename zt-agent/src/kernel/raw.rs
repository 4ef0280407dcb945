// SPDX-License-Identifier: Apache-2.0
//! Raw, ICMP, UDP-Lite and SCTP sockets that a workload opened while it might, and may no longer.
//!
//! The kernel decides on them when they are created, and has no call that ends one. They are cut off through a
//! descriptor borrowed from the process that has them: bound to an interface that does not exist, so that nothing is
//! routed from them, and behind a locked filter that takes nothing in.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::sys::socket::{MsgFlags, recv};
use zt_common::names;

use super::descriptors;

/// Lists of sockets below `/proc/<pid>/net`: name, IP protocol number where the list has but one, column of the inode.
const LISTS: [(&str, Option<u8>, usize); 7] = [
    ("raw", None, 9),
    ("raw6", None, 9),
    ("icmp", Some(1), 9),
    ("icmp6", Some(58), 9),
    ("udplite", Some(136), 9),
    ("udplite6", Some(136), 9),
    ("sctp/eps", Some(132), 7),
];
/// What was received before the filter is thrown away, up to so many packets: more than a receive buffer holds.
const MOST_QUEUED: usize = 100_000;

/// A socket that was cut off, or could not be.
#[derive(Debug)]
pub struct RawSocket {
    /// A process that has it.
    pub pid: u32,
    /// That process's name.
    pub comm: [u8; 16],
    /// Cookie of the socket; 0 if unknown.
    pub cookie: u64,
    /// Cookie of its namespace; 0 if unknown.
    pub netns: u64,
    /// IP protocol number.
    pub protocol: u8,
    /// Of the IPv6 family.
    pub ipv6: bool,
    /// Why it is not cut off, if it is not.
    pub left: Option<io::Error>,
}

/// What a list says of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Listed {
    protocol: u8,
    ipv6: bool,
}

/// Cuts off the sockets of some processes that policy cannot speak about.
pub fn cut_off(pids: &[u32]) -> Vec<RawSocket> {
    let mut namespaces: HashMap<String, HashMap<u32, Listed>> = HashMap::new();
    let mut done = HashSet::new();
    let mut found = Vec::new();
    for &pid in pids {
        let Ok(namespace) = fs::read_link(format!("/proc/{pid}/ns/net")) else {
            continue;
        };
        let listed = namespaces
            .entry(namespace.display().to_string())
            .or_insert_with(|| list(pid));
        if listed.is_empty() {
            continue;
        }
        for (number, inode) in descriptors::sockets_of(pid) {
            let Some(socket) = listed.get(&inode) else {
                continue;
            };
            if done.contains(&inode) {
                continue;
            }
            match descriptors::borrow(pid, number, inode) {
                // Closed since; whoever else has it is still to come.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Ok(fd) if is_cut_off(&fd) => {}
                borrowed => found.push(cut(pid, borrowed, *socket)),
            }
            done.insert(inode);
        }
    }
    found
}

/// The sockets of the namespace of a process, by inode.
fn list(pid: u32) -> HashMap<u32, Listed> {
    let mut found = HashMap::new();
    for (name, protocol, column) in LISTS {
        // A kernel without that protocol has no such list.
        let text = fs::read_to_string(format!("/proc/{pid}/net/{name}")).unwrap_or_default();
        found.extend(parse(&text, protocol, column, name.ends_with('6')));
    }
    found
}

fn parse(
    text: &str,
    protocol: Option<u8>,
    column: usize,
    ipv6: bool,
) -> impl Iterator<Item = (u32, Listed)> + '_ {
    text.lines().skip(1).filter_map(move |line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let inode = fields.get(column)?.parse().ok()?;
        // In the lists of raw sockets the local port is the protocol.
        let listed = || u8::try_from(u16::from_str_radix(fields.get(1)?.rsplit_once(':')?.1, 16).ok()?).ok();
        let protocol = protocol.or_else(listed).unwrap_or(255);
        Some((inode, Listed { protocol, ipv6 }))
    })
}

fn cut(pid: u32, borrowed: io::Result<OwnedFd>, socket: Listed) -> RawSocket {
    let mut comm = [0; 16];
    let name = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
    for (place, byte) in comm.iter_mut().take(15).zip(name.trim_ascii_end()) {
        *place = *byte;
    }
    let number_of = |option| {
        borrowed
            .as_ref()
            .map_or(0, |fd| option_u64(fd, option).unwrap_or(0))
    };
    RawSocket {
        pid,
        comm,
        cookie: number_of(SO_COOKIE),
        netns: number_of(SO_NETNS_COOKIE),
        protocol: socket.protocol,
        ipv6: socket.ipv6,
        left: borrowed.and_then(|fd| fence(&fd)).err(),
    }
}

/// Whether a socket was cut off before: by this agent or the one before it.
fn is_cut_off(socket: &OwnedFd) -> bool {
    let is = |option, value: u64| option_u64(socket, option).is_ok_and(|found| found == value);
    is(SO_BINDTOIFINDEX, names::NO_INTERFACE.into()) && is(libc::SO_LOCK_FILTER, 1)
}

const SO_COOKIE: libc::c_int = 57;
const SO_NETNS_COOKIE: libc::c_int = 71;
const SO_BINDTOIFINDEX: libc::c_int = 62;

fn fence(socket: &OwnedFd) -> io::Result<()> {
    // Neither way out nor in; each alone is worth having.
    let out = set(socket, SO_BINDTOIFINDEX, &names::NO_INTERFACE);
    let nothing = [libc::sock_filter {
        code: (libc::BPF_RET | libc::BPF_K) as u16,
        jt: 0,
        jf: 0,
        k: 0,
    }];
    let program = libc::sock_fprog {
        len: 1,
        filter: nothing.as_ptr().cast_mut(),
    };
    let inward = set(socket, libc::SO_ATTACH_FILTER, &program)
        .and_then(|()| set(socket, libc::SO_LOCK_FILTER, &1_i32));
    let mut byte = [0_u8; 1];
    for _ in 0..MOST_QUEUED {
        if recv(socket.as_raw_fd(), &mut byte, MsgFlags::MSG_DONTWAIT).is_err() {
            break;
        }
    }
    out.and(inward)
}

#[expect(unsafe_code, reason = "nix does not know these options")]
fn set<T>(socket: &OwnedFd, option: libc::c_int, value: &T) -> io::Result<()> {
    // SAFETY: the kernel reads as many bytes as the value has; what it points at lives across the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[expect(unsafe_code, reason = "nix does not know these options")]
fn option_u64(socket: &OwnedFd, option: libc::c_int) -> io::Result<u64> {
    let mut value = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the buffer has the length given.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            std::ptr::from_mut(&mut value).cast(),
            &raw mut length,
        )
    };
    if result == 0 {
        Ok(value)
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_by_their_columns() {
        let raw = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n   \
                   1: 00000000:0001 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4711 2 0000000000000000 0\n\
                   cut short\n";
        let found: Vec<(u32, Listed)> = parse(raw, None, 9, false).collect();
        let icmp = Listed {
            protocol: 1,
            ipv6: false,
        };
        assert_eq!(found, [(4711, icmp)]);
        let eps = " ENDPT     SOCK   STY SST HBKT LPORT   UID INODE LADDRS\n  ffff8 ffff8 2 10 29 11111 0 815 127.0.0.1\n";
        let found: Vec<(u32, Listed)> = parse(eps, Some(132), 7, false).collect();
        assert_eq!(found[0].0, 815);
    }
}
