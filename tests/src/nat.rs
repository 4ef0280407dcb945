// SPDX-License-Identifier: Apache-2.0
//! Translated addresses, as a node's firewall translates them.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Result, ensure};

use crate::scene::Party;

/// Adds a rule to the table `nat` of a party's namespace.
pub fn nat(party: &Party, rule: &str) -> Result<()> {
    let arguments = format!("-w -t nat -A {rule}");
    let output = party
        .host
        .command("iptables")
        .args(arguments.split_whitespace())
        .output()?;
    ensure!(
        output.status.success(),
        "iptables {arguments}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// Has a party's namespace lead a place to port 80 of another party.
pub fn translate(party: &Party, from: Ipv4Addr, port: u16, to: &Party) -> Result<SocketAddr> {
    translate_to(party, from, port, to, 80)
}

/// The same to another port.
pub fn translate_to(party: &Party, from: Ipv4Addr, port: u16, to: &Party, target: u16) -> Result<SocketAddr> {
    let destination = format!("{}:{target}", to.host.ipv4);
    nat(
        party,
        &format!("OUTPUT -d {from} -p tcp --dport {port} -j DNAT --to-destination {destination}"),
    )?;
    Ok(SocketAddr::new(from.into(), port))
}
