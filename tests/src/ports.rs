// SPDX-License-Identifier: Apache-2.0
//! Loopback ports for programs that a test starts.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Result, bail};

/// Below those that the kernel gives to outgoing connections: a port that it gave a moment ago may be somebody's the next.
const FIRST: u16 = 10_240;
/// Each process has ports of its own, so that no two take the same one.
const OF_A_PROCESS: u16 = 200;
const PROCESSES: u16 = 110;

static NEXT: AtomicU16 = AtomicU16::new(0);

/// A loopback address at which nobody listens, and that nobody else is given.
pub fn free() -> Result<SocketAddr> {
    let process = u16::try_from(std::process::id() % u32::from(PROCESSES))?;
    for _ in 0..OF_A_PROCESS {
        let port = FIRST + process * OF_A_PROCESS + NEXT.fetch_add(1, Ordering::Relaxed) % OF_A_PROCESS;
        if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            return Ok(listener.local_addr()?);
        }
    }
    bail!("no loopback port is free")
}

/// Two of them.
pub fn two() -> Result<(SocketAddr, SocketAddr)> {
    Ok((free()?, free()?))
}
