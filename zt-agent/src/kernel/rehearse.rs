// SPDX-License-Identifier: Apache-2.0
//! Tries on objects of its own what the agent will ask of the kernel later.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use zt_common::address::Address;

use super::netns;
use super::sock_diag::{Found, LISTEN, SockDiag, TCP};

/// Whether sockets can be destroyed (`CONFIG_INET_DIAG_DESTROY`): makes one on loopback that nobody connects to, and destroys it.
pub fn destroy_one() -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    let own = Address::from(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let diag = SockDiag::open()?;
    let listed = diag.list(false, TCP, 1 << LISTEN)?;
    // Others may listen at the same port of another address.
    let is_own = |found: &Found| found.target.local_port == port && found.target.local == own;
    let own = listed.into_iter().find(is_own);
    let own = own.ok_or_else(|| io::Error::other("the kernel does not list a socket that is there"))?;
    let mut outcome = Ok(());
    diag.destroy(&[own.target], |_, answer| outcome = answer)?;
    outcome
}

/// What `net.ipv4.tcp_fastopen` is in the network namespaces that some processes are in: a process of each, and the value.
pub fn fast_open_of(pids: &[u32]) -> Vec<(u32, io::Result<u32>)> {
    let mut namespaces = BTreeMap::new();
    for pid in pids {
        let path = PathBuf::from(format!("/proc/{pid}/ns/net"));
        // Gone since it was listed.
        if let Ok(metadata) = fs::metadata(&path) {
            namespaces.entry(metadata.ino()).or_insert((*pid, path));
        }
    }
    let of = |path: &PathBuf| {
        let namespace = File::open(path)?;
        netns::inside(&namespace, || {
            let text = fs::read_to_string("/proc/sys/net/ipv4/tcp_fastopen")?;
            text.trim()
                .parse()
                .map_err(|_| io::Error::other(format!("{text:?} is no number")))
        })?
    };
    namespaces
        .into_values()
        .map(|(pid, path)| (pid, of(&path)))
        .collect()
}
