// SPDX-License-Identifier: Apache-2.0
//! Where a contender is measured: a network namespace, and the cgroups of a client, of a server, and of somebody who may
//! do nothing.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Result, ensure};
use zt_tests::{Cgroup, Host};

use crate::crew::Worker;
use crate::order::Order;

/// The client may reach this port as long as a contender stands.
pub(super) const OPEN: u16 = 7002;
/// A rule about this port is taken away and given back.
pub(super) const SWITCH: u16 = 7003;
/// Somebody listens here too, and no rule says that anybody may reach it.
pub(super) const NOWHERE: u16 = 7009;

const WRONG: &str = "a wrong verdict";
/// Connections go over the loopback of the namespace.
const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Where the same client and server work for each contender.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) host: Host,
    pub(super) client: Cgroup,
    pub(super) server: Cgroup,
    pub(super) other: Cgroup,
    /// Of client and server, which are one process.
    pub(super) cpu: usize,
    /// Where the server listens whom a proxy leads all connections to; without one it listens where clients go.
    pub(super) behind: Option<u16>,
    /// Where whoever may do nothing comes from, where that is told by the address.
    pub(super) stranger: Option<IpAddr>,
}

/// Where a client goes to reach a port.
pub(super) fn at(port: u16) -> SocketAddr {
    SocketAddr::new(HERE, port)
}

impl Place {
    /// A worker whose server clients reach at `port`, now in the client's cgroup.
    pub(super) fn worker(&self, port: u16) -> Result<Worker> {
        let mut worker = Worker::start(&self.server, Some(&self.host), Some(self.cpu))?;
        self.serve(&mut worker, port)?;
        worker.enter(&self.client)?;
        Ok(worker)
    }

    fn serve(&self, worker: &mut Worker, port: u16) -> Result<()> {
        worker.listen(at(self.behind.unwrap_or(port))).map(drop)
    }

    /// Fails unless what is to be allowed is allowed, and what is to be refused refused. In each case somebody listens, so that
    /// a wrong verdict is seen either way.
    pub(super) fn ensure_verdicts(&self) -> Result<()> {
        let mut worker = self.worker(OPEN)?;
        for (who, port, allowed) in [
            ("the client", OPEN, true),
            ("the client", SWITCH, true),
            ("the client", NOWHERE, false),
            ("another one", OPEN, false),
            ("another one", SWITCH, false),
        ] {
            worker.enter(&self.server)?;
            self.serve(&mut worker, port)?;
            let (cgroup, from) = if who == "the client" {
                (&self.client, None)
            } else {
                (&self.other, self.stranger)
            };
            worker.enter(cgroup)?;
            let errno = worker.ask(&Order::Reach { to: at(port), from })?.errno;
            let wanted = if allowed { "allowed" } else { "refused" };
            ensure!(
                (errno == 0) == allowed,
                "{WRONG}: {who} is to be {wanted} at port {port}, and the answer is {}",
                answer(errno)
            );
        }
        Ok(())
    }
}

/// Whether this is what [`Place::ensure_verdicts`] fails with, and no other failure.
pub(super) fn is_wrong(error: &anyhow::Error) -> bool {
    error.to_string().starts_with(WRONG)
}

/// How an attempt ended, in words.
pub(super) fn answer(errno: i32) -> String {
    match errno {
        0 => "a byte that gets through".to_owned(),
        errno => nix::errno::Errno::from_raw(errno).to_string(),
    }
}
