// SPDX-License-Identifier: Apache-2.0
//! A socket of another process, taken without its help.

use std::io;

use socket2::Socket;
use zt_tests::attack::Attempt;

use crate::route::converse;
use crate::system::descriptor_of;
use crate::{At as _, told};

pub(crate) fn attempt(pid: i32, descriptor: i32) -> Attempt {
    told(take(pid, descriptor))
}

fn take(pid: i32, descriptor: i32) -> Result<String, (&'static str, io::Error)> {
    let taken = Socket::from(descriptor_of(pid, descriptor).at("take")?);
    taken.set_nonblocking(false).at("option")?;
    converse(&taken).at("receive")
}
