// SPDX-License-Identifier: Apache-2.0
//! `zt-probe`: a workload that does as it is told, one JSON line at a time.
//!
//! Usage: `zt-probe [--cgroup DIRECTORY] [--netns FILE]`. It enters both before it makes any socket, then reads
//! operations from standard input until that ends, and answers each on standard output.

mod birth;
mod child;
mod descriptors;
mod flood;
mod group;
mod held;
mod server;
mod stream;
mod udp;

use std::fs::{self, File};
use std::io::{self, BufRead as _, Write as _};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use nix::sched::{CloneFlags, setns};
use nix::sys::resource::{Resource, setrlimit};
use zt_tests::probe::{Operation, Reply};

use crate::held::Table;

/// Enough for every connection that a test keeps open.
const OPEN_FILES: u64 = 200_000;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let value = arguments
            .next()
            .with_context(|| format!("{argument} needs a value"))?;
        match argument.as_str() {
            "--cgroup" => enter_cgroup(Path::new(&value))?,
            "--netns" => {
                let namespace = File::open(&value).with_context(|| format!("cannot open {value}"))?;
                setns(namespace, CloneFlags::CLONE_NEWNET)
                    .with_context(|| format!("cannot enter {value}"))?;
            }
            _ => bail!("unknown argument {argument}"),
        }
    }
    // Where it is not allowed, the operations that need it say EMFILE.
    let _ = setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES, OPEN_FILES);

    let mut table = Table::default();
    let mut out = io::stdout().lock();
    for line in io::stdin().lock().lines() {
        let line = line?;
        let operation = serde_json::from_str(&line).with_context(|| format!("not an operation: {line}"))?;
        let reply = answer(&mut table, operation);
        serde_json::to_writer(&mut out, &reply)?;
        out.write_all(b"\n")?;
        out.flush()?;
    }
    Ok(())
}

fn enter_cgroup(cgroup: &Path) -> Result<()> {
    fs::write(cgroup.join("cgroup.procs"), "0").with_context(|| format!("cannot enter {}", cgroup.display()))
}

/// Does an operation. An error of the system becomes its name in the reply.
fn answer(table: &mut Table, operation: Operation) -> Reply {
    let start = Instant::now();
    let mut reply = match perform(table, operation) {
        Ok(reply) => reply,
        Err(error) => Reply {
            errno: Some(held::errno_name(&error)),
            ..Reply::default()
        },
    };
    // Loops report their own time, without what they do to report it.
    if reply.elapsed_ns == 0 {
        reply.elapsed_ns = start.elapsed().as_nanos() as u64;
    }
    reply
}

#[expect(clippy::too_many_lines, reason = "an arm for each operation")]
fn perform(table: &mut Table, operation: Operation) -> io::Result<Reply> {
    match operation {
        Operation::Hello => Ok(Reply::default()),
        Operation::TcpConnect { to, options } => {
            let socket = stream::connect(to, &options)?;
            table.keep_socket(socket)
        }
        Operation::TcpListen { at, options } => table.keep_socket(stream::listen(at, &options)?),
        Operation::Accept { socket, timeout } => {
            let accepted = stream::accept(table.socket(socket)?, timeout)?;
            table.keep_socket(accepted)
        }
        Operation::Send {
            socket,
            data,
            repeat,
            timeout,
        } => stream::send(table.socket(socket)?, data.as_bytes(), repeat, timeout),
        Operation::RoundTrips {
            socket,
            count,
            size,
            timeout,
        } => stream::round_trips(table.socket(socket)?, count, size, timeout),
        Operation::Recv { socket, max, timeout } => stream::receive(table.socket(socket)?, max, timeout),
        Operation::Peek { socket, max, timeout } => stream::peek(table.socket(socket)?, max, timeout),
        Operation::SpliceRead { socket, max, timeout } => {
            descriptors::splice_read(table.socket(socket)?, max, timeout)
        }
        Operation::WaitEnd { socket, timeout } => stream::wait_end(table.socket(socket)?, timeout),
        Operation::UdpBind { at, options } => table.keep_socket(udp::bind(at, &options)?),
        Operation::UdpConnect { socket, to } => {
            let socket = table.udp_socket(socket, to)?;
            let connected = table.socket(socket)?;
            connected.connect(&to.into())?;
            Ok(Reply {
                socket: Some(socket),
                ..held::described(connected)
            })
        }
        Operation::UdpSendTo { socket, to, data } => {
            let socket = table.udp_socket(socket, to)?;
            let sender = table.socket(socket)?;
            let bytes = sender.send_to(data.as_bytes(), &to.into())? as u64;
            Ok(Reply {
                socket: Some(socket),
                bytes: Some(bytes),
                ..held::described(sender)
            })
        }
        Operation::UdpRecvFrom { socket, timeout } => udp::receive_from(table.socket(socket)?, timeout),
        Operation::Socket {
            family,
            kind,
            protocol,
        } => table.keep_socket(descriptors::socket(family, kind, protocol)?),
        Operation::Bind { socket, at } => {
            let socket = table.socket(socket)?;
            socket.bind(&at.into()).map(|()| held::described(socket))
        }
        Operation::Listen { socket, backlog } => {
            let socket = table.socket(socket)?;
            socket.listen(backlog).map(|()| held::described(socket))
        }
        Operation::Connect { socket, to, timeout } => {
            let socket = table.socket(socket)?;
            stream::connect_socket(socket, to, None, timeout).map(|()| held::described(socket))
        }
        Operation::Disconnect { socket } => descriptors::disconnect(table.socket(socket)?),
        Operation::SendWhileConnecting { to, data, timeout } => {
            stream::send_while_connecting(to, data.as_bytes(), timeout)
        }
        Operation::JoinGroup { socket, group } => udp::join(table.socket(socket)?, group),
        Operation::AllowBroadcast { socket } => table
            .socket(socket)?
            .set_broadcast(true)
            .map(|()| Reply::default()),
        Operation::Shutdown { socket, how } => stream::shutdown(table.socket(socket)?, how),
        Operation::Close { socket } => table.close(socket),
        Operation::Reset { socket } => table.reset(socket),
        Operation::FdMailbox { path } => table.keep_socket(descriptors::mailbox(&path)?),
        Operation::SendFd { path, socket } => descriptors::send_fd(&path, table.socket(socket)?),
        Operation::RecvFd { socket, timeout } => {
            let received = descriptors::receive_fd(table.socket(socket)?, timeout)?;
            table.keep_socket(received)
        }
        Operation::MoveTo { cgroup } => {
            fs::write(cgroup.join("cgroup.procs"), "0").map(|()| Reply::default())
        }
        Operation::Spawn { cgroup } => Ok(table.keep_child(child::Child::start(cgroup.as_deref())?)),
        Operation::Child { socket, operation } => table.child(socket)?.call(&operation),
        Operation::Birth { parent, count, to } => birth::births(&parent, count, to),
        Operation::Serve { at, options } => Ok(table.keep_server(server::Server::start(at, &options)?)),
        Operation::ServeState { socket } => Ok(table.server(socket)?.state()),
        Operation::ConnectMany(flood) => Ok(flood::connect(&flood)),
        Operation::SendMany(flood) => flood::send(&flood),
        Operation::OpenMany { to, count, options } => {
            let (group, reply) = group::open(to, count, &options);
            Ok(table.keep_group(group, reply))
        }
        Operation::WaitGroupEnd {
            socket,
            count,
            timeout,
        } => table.group(socket)?.wait_end(count, timeout),
    }
}
