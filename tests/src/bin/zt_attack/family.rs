// SPDX-License-Identifier: Apache-2.0
//! Sockets of other families and protocols.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};

use clap::ValueEnum;
use socket2::{SockAddr, Socket};
use zt_tests::attack::Attempt;

use crate::system;
use crate::{At as _, family_of, opened, told};

/// What is tried instead of TCP and UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Family {
    /// Shared memory over RDMA or over memory of the machine, made by a handshake of TCP
    Smc,
    /// Virtual machines and their hosts
    Vsock,
    /// Messages of clusters
    Tipc,
    /// Datagram congestion control
    Dccp,
    /// UDP whose checksum covers a part
    UdpLite,
    /// Streams of messages
    Sctp,
}

const AF_SMC: i32 = 43;
const AF_TIPC: i32 = 30;
/// `SMCPROTO_SMC`, `SMCPROTO_SMC6`
const SMC: [i32; 2] = [0, 1];
const UDP_LITE: i32 = 136;
const DCCP: i32 = 33;
const SOCK_DCCP: i32 = 6;
const TIPC_ADDR_NAME: u8 = 2;
const CLUSTER_SCOPE: i8 = 2;
const ANY_PORT: u32 = 80;

/// `struct sockaddr_tipc`, with a name in it.
#[repr(C)]
struct TipcAddress {
    family: u16,
    kind: u8,
    scope: i8,
    service: u32,
    instance: u32,
    domain: u32,
}

pub(crate) fn attempt(family: Family, to: SocketAddr) -> Attempt {
    told(reach(family, to))
}

fn reach(family: Family, to: SocketAddr) -> Result<String, (&'static str, io::Error)> {
    let (inet, stream, datagram) = (family_of(to), libc::SOCK_STREAM, libc::SOCK_DGRAM);
    match family {
        Family::Smc => send(opened(AF_SMC, stream, SMC[usize::from(to.is_ipv6())])?, to),
        Family::Dccp => send(opened(inet, SOCK_DCCP, DCCP)?, to),
        Family::Sctp => send(opened(inet, stream, libc::IPPROTO_SCTP)?, to),
        Family::UdpLite => send(opened(inet, datagram, UDP_LITE)?, to),
        Family::Vsock => {
            let made = opened(libc::AF_VSOCK, stream, 0)?;
            // The machine itself: nobody else is called.
            let address = libc::sockaddr_vm {
                svm_family: libc::AF_VSOCK as u16,
                svm_reserved1: 0,
                svm_port: ANY_PORT,
                svm_cid: libc::VMADDR_CID_LOCAL,
                svm_zero: [0; 4],
            };
            system::connect(made.as_fd(), &address).at("connect")?;
            Ok(String::new())
        }
        Family::Tipc => {
            let made = opened(AF_TIPC, stream, 0)?;
            let address = TipcAddress {
                family: AF_TIPC as u16,
                kind: TIPC_ADDR_NAME,
                scope: CLUSTER_SCOPE,
                service: ANY_PORT,
                instance: 0,
                domain: 0,
            };
            system::connect(made.as_fd(), &address).at("connect")?;
            Ok(String::new())
        }
    }
}

fn send(socket: OwnedFd, to: SocketAddr) -> Result<String, (&'static str, io::Error)> {
    let socket = Socket::from(socket);
    socket.connect(&SockAddr::from(to)).at("connect")?;
    socket.send(b"word").at("send")?;
    Ok(String::new())
}
