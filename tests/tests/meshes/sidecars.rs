// SPDX-License-Identifier: Apache-2.0
//! Proxies of service meshes beside their workloads.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use zt_tests::probe::built_binary;

use super::*;

/// The ports of a mesh's proxy.
#[derive(Clone, Copy)]
struct Mesh {
    /// What the status calls it.
    name: &'static str,
    outbound: u16,
    inbound: u16,
    /// Another one that it listens on.
    more: Option<u16>,
}

/// A sidecar of a workload: the rules of a mesh's init container in its namespace, and a proxy in its cgroup.
struct Sidecar(Child);

impl Sidecar {
    fn start(party: &Party, mesh: Mesh) -> Result<Self> {
        // Outbound what is not the proxy's own or on loopback, inbound everything.
        for rule in [
            "-A OUTPUT -p tcp -m owner --uid-owner 1337 -j RETURN",
            "-A OUTPUT -p tcp -d 127.0.0.1/32 -j RETURN",
            &format!("-A OUTPUT -p tcp -j REDIRECT --to-ports {}", mesh.outbound),
            &format!("-A PREROUTING -p tcp -j REDIRECT --to-ports {}", mesh.inbound),
        ] {
            let arguments = ["-t", "nat"].into_iter().chain(rule.split(' '));
            let done = party.host.command("iptables").args(arguments).output()?;
            ensure!(
                done.status.success(),
                "iptables {rule}: {}",
                String::from_utf8_lossy(&done.stderr)
            );
        }
        let mut child = Command::new(built_binary("zt-sidecar", "cargo xtask test kernel")?)
            .arg(party.cgroup.path())
            .arg(party.host.namespace_file())
            .args(
                [mesh.outbound, mesh.inbound]
                    .into_iter()
                    .chain(mesh.more)
                    .map(|port| port.to_string()),
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut said = String::new();
        let output = child.stdout.take().context("a pipe")?;
        BufReader::new(output).read_line(&mut said)?;
        ensure!(said.trim() == "ready", "{said}");
        Ok(Self(child))
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_sidecar_of_istio_changes_nothing_at_the_source_and_is_a_port_of_its_own_at_the_destination() -> Result<()>
{
    changes_nothing_at_the_source(Mesh {
        name: "istio",
        outbound: 15001,
        inbound: 15006,
        more: None,
    })
}

#[test]
fn a_sidecar_of_linkerd_does_neither() -> Result<()> {
    changes_nothing_at_the_source(Mesh {
        name: "linkerd",
        outbound: 4140,
        inbound: 4143,
        more: None,
    })
}

#[test]
fn a_node_proxy_of_istio_does_neither() -> Result<()> {
    // What comes by the tunnel of other nodes' proxies has a port of its own.
    changes_nothing_at_the_source(Mesh {
        name: "istio-ambient",
        outbound: 15001,
        inbound: 15008,
        more: Some(15006),
    })
}

fn changes_nothing_at_the_source(mesh: Mesh) -> Result<()> {
    let (scene, [server, other, mut client], agent) = three(mesh.name, "off", |policy| policy)?;
    let _of_client = Sidecar::start(&client, mesh)?;
    // What it may reach, and what it may not, though its proxy would carry either on.
    assert_eq!(client.talk(server.v4(80))?, "ok");
    assert_eq!(client.talk(other.v4(80))?, "EPERM");
    let told = wait_around(&agent, mesh.name, None)?;
    ensure!(
        told["evidence"]
            .as_str()
            .is_some_and(|text| text.contains(&mesh.inbound.to_string())),
        "{told}"
    );

    // With one at the server too, its end is reached at the proxy's port: who may reach the workload is asked about that one.
    let _of_server = Sidecar::start(&server, mesh)?;
    let outcome = client.talk(server.v4(80))?;
    ensure!(
        outcome != "ok",
        "the port of the proxy is one that no rule allows"
    );
    agent.records("decision=DENY", 1, |record| {
        record["observer"] == "destination"
            && record["destination"]["port"] == mesh.inbound
            && record["source"]["spiffe_id"] == client.id
    })?;
    let mut stranger = scene.outsider("stranger")?;
    let outcome = stranger.talk(server.v4(80))?;
    ensure!(outcome != "ok", "{outcome}");
    let both = Policy::new("mesh").allow("client", "server", TCP, "80").allow(
        "client",
        "server",
        TCP,
        &mesh.inbound.to_string(),
    );
    agent.files.write_policy("policy.yaml", &both.text())?;
    wait_for("the proxy to be reached", LATER, || {
        Ok((client.talk(server.v4(80))? == "ok").then_some(()))
    })?;
    // The source's end still asks about the port that was meant.
    assert_eq!(client.talk(server.v4(81))?, "EPERM");
    assert_eq!(client.talk(other.v4(80))?, "EPERM");
    let outcome = stranger.talk(server.v4(80))?;
    ensure!(outcome != "ok", "{outcome}");
    Ok(())
}
