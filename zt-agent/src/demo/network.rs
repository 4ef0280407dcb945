// SPDX-License-Identifier: Apache-2.0
//! The network of the demo: a namespace for each service, joined by a bridge that has a namespace of its own, so that
//! the machine's own interfaces, addresses and routes are never touched.

mod links;
mod namespaces;

use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd as _;

use self::links::Links;
use super::cast::Who;
use super::error::DemoError;
use super::names::Names;
use crate::kernel::netns;

pub(super) use self::namespaces::{open as open_namespace, remove as remove_namespace};

/// The bridge, in its namespace.
const BRIDGE: &str = "br0";
/// A service's interface, in its own.
const INTERFACE: &str = "eth0";
/// The lengths of the prefixes of the network that all are in.
const PREFIX_V4: u8 = 24;
const PREFIX_V6: u8 = 64;

/// Makes all of it; with addresses of IPv6, where that is there. The node's process has the bridge's.
pub(super) fn create(names: &Names, ipv6: bool) -> Result<(), DemoError> {
    namespaces::add(&names.bridge())?;
    let mut ends = Vec::new();
    for who in Who::ALL {
        let namespace = names.namespace(who);
        namespaces::add(&namespace)?;
        ends.push((who, namespaces::open(&namespace)?));
    }
    inside(&names.bridge(), |links| {
        links.add_bridge(BRIDGE).map_err(not_made("bridge"))?;
        for (who, end) in &ends {
            let pair = links.add_pair(who.name(), BRIDGE, INTERFACE, end.as_fd());
            pair.map_err(not_made("veth"))?;
        }
        settle(links, Who::Host, BRIDGE, ipv6)
    })?;
    for who in Who::ALL {
        inside(&names.namespace(who), |links| settle(links, who, INTERFACE, ipv6))?;
    }
    Ok(())
}

/// Sets the interfaces of somebody's namespace up, and gives one of them his addresses.
fn settle(links: &Links, who: Who, interface: &str, ipv6: bool) -> Result<(), DemoError> {
    let up = links.set_up("lo").and_then(|()| links.set_up(interface));
    up.map_err(DemoError::io(format!("set the interfaces of {} up", who.name())))?;
    give(links, who, interface, (who.ipv4(), PREFIX_V4))?;
    if ipv6 {
        give(links, who, interface, (who.ipv6(), PREFIX_V6))?;
    }
    Ok(())
}

/// Gives chat the address of iam, and has postgres look anew for whoever has it.
pub(super) fn lend(names: &Names) -> Result<(), DemoError> {
    move_address(names, Who::Iam, Who::Chat)
}

/// Gives it back.
pub(super) fn give_back(names: &Names) -> Result<(), DemoError> {
    move_address(names, Who::Chat, Who::Iam)
}

fn move_address(names: &Names, from: Who, to: Who) -> Result<(), DemoError> {
    let address = Who::Iam.ipv4();
    inside(&names.namespace(from), |links| {
        let removed = links.remove_address(INTERFACE, address, PREFIX_V4);
        removed.map_err(DemoError::io(format!("take {address} from {}", from.name())))
    })?;
    inside(&names.namespace(to), |links| {
        give(links, to, INTERFACE, (address, PREFIX_V4))
    })?;
    inside(&names.namespace(Who::Postgres), |links| {
        let forgotten = links.forget_neighbour(INTERFACE, address);
        forgotten.map_err(DemoError::io(format!("have postgres forget {address}")))
    })
}

fn give(links: &Links, who: Who, interface: &str, (address, prefix): (IpAddr, u8)) -> Result<(), DemoError> {
    let given = links.add_address(interface, address, prefix);
    given.map_err(DemoError::io(format!("give {address} to {}", who.name())))
}

/// Does something in a named namespace.
fn inside(
    namespace: &str,
    work: impl FnOnce(&Links) -> Result<(), DemoError> + Send,
) -> Result<(), DemoError> {
    let file = namespaces::open(namespace)?;
    let done = netns::inside(&file, || {
        let links = Links::open().map_err(DemoError::io("speak with the kernel about interfaces"))?;
        work(&links)
    });
    done.map_err(DemoError::io(format!("enter the network namespace {namespace}")))?
}

/// Of an interface of a kind.
fn not_made(kind: &'static str) -> impl FnOnce(io::Error) -> DemoError {
    move |source| match source.raw_os_error() {
        Some(libc::EOPNOTSUPP) => DemoError::NoSuchLinks { kind },
        _ => DemoError::io(format!("make a {kind} interface"))(source),
    }
}
