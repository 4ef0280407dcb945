// SPDX-License-Identifier: Apache-2.0
//! Datagrams between the parties of a scene.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;

use crate::hooks::has_packet_hook;
use crate::probe::{Handle, Operation, Reply};
use crate::scene::Party;
use crate::wait::eventually;

/// Sends a datagram, from a new socket if there is no handle.
pub fn send(from: &mut Party, socket: Option<Handle>, to: SocketAddr, data: &str) -> Result<Reply> {
    let data = data.to_owned();
    from.call(Operation::UdpSendTo { socket, to, data })
}

/// The next datagram, if one comes in time.
pub fn take(party: &mut Party, socket: Handle, timeout: Duration) -> Result<Reply> {
    party.call(Operation::UdpRecvFrom { socket, timeout })
}

/// How long the guard may take to be there on a busy machine.
const GUARDED: Duration = Duration::from_secs(30);

/// Waits for the guard of a workload that has bound a port.
pub fn guarded(party: &Party) -> Result<()> {
    eventually("the guard of the workload", GUARDED, || {
        has_packet_hook(&party.cgroup)
    })
}
