// SPDX-License-Identifier: Apache-2.0
//! Calls from other namespaces: of one's own making, where an ordinary user is root, and of somebody else.

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::path::Path;

use nix::sched::{CloneFlags, setns, unshare};
use socket2::{Domain, Socket, Type};
use zt_tests::attack::Attempt;

use crate::route::{connect_in_time, converse};
use crate::{At as _, told};

fn call(to: SocketAddr) -> Result<String, (&'static str, io::Error)> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).at("socket")?;
    connect_in_time(&socket, to).at("connect")?;
    converse(&socket).at("receive")
}

/// A namespace of one's own has no way out: what is tried is whether the decision is evaded there.
pub(crate) fn apart(to: SocketAddr) -> Attempt {
    let made = unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET);
    told(made.at("namespaces").and_then(|()| call(to)))
}

/// Needs the right to enter it.
pub(crate) fn inside(netns: &Path, to: SocketAddr) -> Attempt {
    let entered = File::open(netns)
        .at("namespace")
        .and_then(|namespace| setns(namespace, CloneFlags::CLONE_NEWNET).at("namespace"));
    told(entered.and_then(|()| call(to)))
}
