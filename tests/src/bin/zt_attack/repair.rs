// SPDX-License-Identifier: Apache-2.0
//! A connection that is declared established without a handshake, as checkpoints are restored.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;

use socket2::{Domain, Socket, Type};
use zt_tests::attack::Attempt;

use crate::route::converse;
use crate::system::set_option;
use crate::{At as _, told};

const ON: [u8; 4] = 1_i32.to_ne_bytes();
/// Without a probe of the window, which would tell the peer.
const OFF: [u8; 4] = (-1_i32).to_ne_bytes();

pub(crate) fn attempt(to: SocketAddr) -> Attempt {
    told(declare(to))
}

fn declare(to: SocketAddr) -> Result<String, (&'static str, io::Error)> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).at("socket")?;
    set_option(socket.as_fd(), libc::SOL_TCP, libc::TCP_REPAIR, &ON).at("option")?;
    socket.connect(&to.into()).at("connect")?;
    set_option(socket.as_fd(), libc::SOL_TCP, libc::TCP_REPAIR, &OFF).at("end of the repair")?;
    converse(&socket).at("receive")
}
