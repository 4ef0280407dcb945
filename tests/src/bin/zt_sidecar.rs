// SPDX-License-Identifier: Apache-2.0
//! `zt-sidecar CGROUP NETNS OUTBOUND INBOUND [PORT…]`: as much of a service mesh's proxy as matters to whoever looks at
//! connections. It takes what is redirected to the port OUTBOUND, which its workload sends, and to INBOUND, which its workload is to
//! get, and carries it on to where it was meant to go; what is for its workload, over loopback. On other ports it only listens. It
//! runs as the user whose connections are not redirected.

use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpListener, TcpStream};
use std::thread;

use anyhow::{Context as _, Result};
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{getsockopt, sockopt::OriginalDst};
use nix::unistd::{Gid, Uid, setgid, setuid};

/// The user that Istio's proxy runs as.
const USER: u32 = 1337;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let usage = "usage: zt-sidecar CGROUP NETNS OUTBOUND INBOUND [PORT…]";
    let mut argument = || arguments.next().context(usage);
    let (cgroup, namespace) = (argument()?, argument()?);
    let listen = |port: &str| -> Result<TcpListener> {
        Ok(TcpListener::bind((Ipv4Addr::UNSPECIFIED, port.parse()?))?)
    };
    let (outbound, inbound) = (argument()?, argument()?);
    fs::write(format!("{cgroup}/cgroup.procs"), std::process::id().to_string())?;
    setns(File::open(namespace)?, CloneFlags::CLONE_NEWNET)?;
    setgid(Gid::from_raw(USER))?;
    setuid(Uid::from_raw(USER))?;
    let (outbound, inbound) = (listen(&outbound)?, listen(&inbound)?);
    let _more = arguments.map(|port| listen(&port)).collect::<Result<Vec<_>>>()?;
    println!("ready");
    thread::spawn(move || serve(&inbound, true));
    // Until nobody wants it any more.
    thread::spawn(move || serve(&outbound, false));
    let _ = io::stdin().read_line(&mut String::new());
    Ok(())
}

fn serve(listener: &TcpListener, inbound: bool) {
    for stream in listener.incoming().flatten() {
        thread::spawn(move || {
            // A connection that cannot be carried on ends.
            let _ = carry(&stream, inbound);
            let _ = stream.shutdown(Shutdown::Both);
        });
    }
}

fn carry(stream: &TcpStream, inbound: bool) -> Result<()> {
    let meant = getsockopt(stream, OriginalDst)?;
    let port = u16::from_be(meant.sin_port);
    let address = if inbound {
        Ipv4Addr::LOCALHOST
    } else {
        Ipv4Addr::from(u32::from_be(meant.sin_addr.s_addr))
    };
    let onward = TcpStream::connect(SocketAddrV4::new(address, port))?;
    let (mut from, mut to) = (stream.try_clone()?, onward.try_clone()?);
    let there = thread::spawn(move || {
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    });
    let (mut back, mut answer) = (&onward, stream);
    let _ = io::copy(&mut back, &mut answer);
    let _ = stream.shutdown(Shutdown::Write);
    let _ = there.join();
    Ok(())
}
