// SPDX-License-Identifier: Apache-2.0
//! The network of the demo: a namespace for each service, joined by a bridge that has a namespace of its own, so that
//! the machine's own interfaces, addresses and routes are never touched.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};

use super::cast::Who;
use super::error::DemoError;
use super::names::Names;

/// Makes all of it.
pub(super) fn create(names: &Names) -> Result<(), DemoError> {
    let mut batch = format!("netns add {}\n", names.bridge());
    for who in Who::ALL {
        // Writing to a String cannot fail.
        let _ = writeln!(batch, "netns add {}", names.namespace(who));
    }
    ip(None, &batch)?;
    let mut bridge = String::from(
        "link add br0 type bridge forward_delay 0 stp_state 0 mcast_snooping 0\nlink set br0 up\n",
    );
    for who in Who::ALL {
        let (name, namespace) = (who.name(), names.namespace(who));
        let _ = write!(
            bridge,
            "link add {name} type veth peer name eth0 netns {namespace}\nlink set {name} master br0 up\n"
        );
    }
    ip(Some(&names.bridge()), &bridge)?;
    for who in Who::ALL {
        let (ipv4, ipv6) = (who.ipv4(), who.ipv6());
        // Without duplicate address detection the IPv6 address can be used at once.
        let batch = format!(
            "link set lo up\nlink set eth0 up\naddr add {ipv4}/24 dev eth0\naddr add {ipv6}/64 dev eth0 nodad\n"
        );
        ip(Some(&names.namespace(who)), &batch)?;
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
    let batch = |verb: &str| format!("addr {verb} {address}/24 dev eth0\n");
    ip(Some(&names.namespace(from)), &batch("del"))?;
    ip(Some(&names.namespace(to)), &batch("add"))?;
    ip(Some(&names.namespace(Who::Postgres)), "neigh flush dev eth0\n")
}

/// Removes a named network namespace; its interfaces go with it.
pub(super) fn remove_namespace(name: &str) -> Result<(), DemoError> {
    ip(None, &format!("netns del {name}\n"))
}

/// Whether there is an `ip` command.
pub(super) fn ip_exists() -> bool {
    let mut command = Command::new("ip");
    command
        .arg("-V")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Runs lines of `ip` commands in a namespace, in one process.
fn ip(namespace: Option<&str>, batch: &str) -> Result<(), DemoError> {
    let mut command = Command::new("ip");
    if let Some(namespace) = namespace {
        command.args(["-n", namespace]);
    }
    command.args(["-batch", "-"]);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = command.spawn().map_err(DemoError::io("run `ip`"))?;
    if let Some(mut input) = child.stdin.take() {
        input
            .write_all(batch.as_bytes())
            .map_err(DemoError::io("write to `ip`"))?;
    }
    let output = child.wait_with_output().map_err(DemoError::io("wait for `ip`"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(DemoError::Command {
        command: format!("ip {}", batch.trim().replace('\n', "; ")),
        output: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}
