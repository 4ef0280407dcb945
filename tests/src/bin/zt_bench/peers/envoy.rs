// SPDX-License-Identifier: Apache-2.0
//! Envoy as a proxy of TCP, whose RBAC filter says which address may go to which port.

use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::unistd::Pid;
use serde_json::{Map, Value, json};
use zt_tests::{Cgroup, Sandbox, wait_for};

use crate::crew::Worker;
use crate::load::now;
use crate::memory::resident;
use crate::order::Order;
use crate::worker::pin;

use super::contender::{Contender, NotHere, listed, version};
use super::place::{NOWHERE, OPEN, Place, SWITCH, at};

/// Where the program is.
const PROGRAM: &str = "ZT_ENVOY";
/// The server listens here; clients go to the ports of the rules, where Envoy does.
const BEHIND: u16 = 7000;
/// Whom no rule names. He is told by where he comes from.
const STRANGER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 9));
/// How long new rules may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// What it was told last is shown of its log.
const LAST_LINES: usize = 3;

/// A running Envoy. It is killed when this is dropped.
pub(super) struct Envoy {
    place: Place,
    directory: PathBuf,
    child: Child,
    count: usize,
    version: u64,
}

impl Envoy {
    /// Starts one on a CPU, in the namespace of the place and in a cgroup that goes with the sandbox.
    pub(super) fn start(
        sandbox: &Sandbox,
        mut place: Place,
        cgroup: &Cgroup,
        cpu: usize,
        rules: usize,
    ) -> Result<(Self, String)> {
        let program = std::env::var_os(PROGRAM).ok_or_else(|| {
            NotHere(format!(
                "{PROGRAM} says of no Envoy: `cargo xtask bench` obtains it"
            ))
        })?;
        let version = version(&program.to_string_lossy())?;
        place.behind = Some(BEHIND);
        place.stranger = Some(STRANGER);
        let directory = sandbox.directory().join(place.host.namespace());
        fs::create_dir_all(&directory)?;
        write(&directory, "listeners.json", &listeners(rules, true, 0))?;
        let bootstrap = bootstrap(&directory.join("listeners.json"));
        fs::write(directory.join("envoy.json"), bootstrap.to_string())?;
        let log = File::create(directory.join("log"))?;
        let child = place
            .host
            .command("setpriv")
            .args(["--pdeathsig", "KILL"])
            .arg(&program)
            .arg("--config-path")
            .arg(directory.join("envoy.json"))
            // Rules that were replaced are not kept for connections that may still have them.
            .args(["--concurrency", "1", "--disable-hot-restart", "--drain-time-s", "1"])
            .args(["--log-level", "error"])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot run nsenter")?;
        let mut envoy = Self {
            place,
            directory,
            child,
            count: rules,
            version: 0,
        };
        // What it starts is where it is itself.
        pin(Pid::from_raw(envoy.child.id() as i32), cpu)?;
        cgroup.add(envoy.child.id())?;
        let mut worker = envoy.place.worker(SWITCH)?;
        envoy
            .wait(&mut worker, true)
            .with_context(|| envoy.last_words())?;
        Ok((envoy, format!("Envoy {}", number(&version))))
    }

    /// Waits until the rule that is switched is in force, or no longer.
    fn wait(&mut self, worker: &mut Worker, open: bool) -> Result<()> {
        wait_for("Envoy to have its rules", PATIENCE, || {
            if let Some(status) = self.child.try_wait()? {
                bail!("Envoy ended with {status}");
            }
            let order = Order::Reach {
                to: at(SWITCH),
                from: None,
            };
            Ok(((worker.ask(&order)?.errno == 0) == open).then_some(()))
        })
    }

    fn tell(&mut self, open: bool) -> Result<u64> {
        self.version += 1;
        write(
            &self.directory,
            "listeners.json",
            &listeners(self.count, open, self.version),
        )
    }

    fn last_words(&self) -> String {
        let log = fs::read_to_string(self.directory.join("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LAST_LINES)..].join("; ")
    }
}

/// The number in `envoy  version: REVISION/1.40.0/Clean/RELEASE/BoringSSL`, before which is the path of the program.
fn number(version: &str) -> &str {
    let parts = version.rsplit_once("version: ").map(|(_, parts)| parts);
    parts.and_then(|parts| parts.split('/').nth(1)).unwrap_or(version)
}

impl Contender for Envoy {
    fn place(&self) -> &Place {
        &self.place
    }

    fn rules(&mut self, count: usize) -> Result<()> {
        // It does not say when it has taken rules in: that is seen by one of them that was not there, and then is.
        self.count = count;
        let mut worker = self.place.worker(SWITCH)?;
        for open in [false, true] {
            self.tell(open)?;
            self.wait(&mut worker, open)?;
        }
        Ok(())
    }

    fn switch(&mut self, open: bool) -> Result<u64> {
        self.tell(open)
    }

    fn helpers(&self) -> Vec<u32> {
        vec![self.child.id()]
    }

    fn memory(&self) -> Result<Option<f64>> {
        resident(self.child.id()).map(Some)
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Replaces a file that is watched, and says when it began to.
fn write(directory: &Path, file: &str, content: &Value) -> Result<u64> {
    let aside = directory.join(format!(".{file}"));
    fs::write(&aside, content.to_string())?;
    let began = now();
    fs::rename(&aside, directory.join(file))?;
    Ok(began)
}

fn bootstrap(listeners: &Path) -> Value {
    json!({
        "node": {"id": "bench", "cluster": "bench"},
        "dynamic_resources": {
            "lds_config": {"resource_api_version": "V3", "path_config_source": {"path": listeners}},
        },
        "static_resources": {
            "clusters": [{
                "name": "server",
                "type": "STATIC",
                "load_assignment": {
                    "cluster_name": "server",
                    "endpoints": [{"lb_endpoints": [{"endpoint": {"address": socket(Ipv4Addr::LOCALHOST, BEHIND)}}]}],
                },
            }],
        },
    })
}

fn socket(address: Ipv4Addr, port: u16) -> Value {
    json!({"socket_address": {"address": address, "port_value": port}})
}

/// One listener at all ports, with one list of rules.
fn listeners(count: usize, open: bool, version: u64) -> Value {
    let switched = if open { SWITCH } else { SWITCH + 1 };
    let rules = listed(
        count,
        |workload, port| policy(Ipv4Addr::new(10, 1, 0, workload as u8), port),
        [OPEN, switched].map(|port| policy(Ipv4Addr::LOCALHOST, port)),
    );
    // It goes through them by name.
    let policies: Map<String, Value> = rules
        .into_iter()
        .enumerate()
        .map(|(number, rule)| (format!("rule-{number:05}"), rule))
        .collect();
    let [also, nowhere] = [SWITCH, NOWHERE].map(|port| json!({"address": socket(Ipv4Addr::LOCALHOST, port)}));
    json!({
        "version_info": version.to_string(),
        "resources": [{
            "@type": "type.googleapis.com/envoy.config.listener.v3.Listener",
            "name": "bench",
            "address": socket(Ipv4Addr::LOCALHOST, OPEN),
            "additional_addresses": [also, nowhere],
            "filter_chains": [{
                "filters": [
                    {
                        "name": "rbac",
                        "typed_config": {
                            "@type": "type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC",
                            "stat_prefix": "bench",
                            "rules": {"action": "ALLOW", "policies": policies},
                        },
                    },
                    {
                        "name": "tcp",
                        "typed_config": {
                            "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                            "stat_prefix": "bench",
                            "cluster": "server",
                        },
                    },
                ],
            }],
        }],
    })
}

/// Who comes from an address may go to a port.
fn policy(from: Ipv4Addr, port: u16) -> Value {
    json!({
        "permissions": [{"destination_port": port}],
        "principals": [{"direct_remote_ip": {"address_prefix": from, "prefix_len": 32}}],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_a_number() {
        let said = "/usr/bin/envoy  version: 9e5580/1.40.0/Clean/RELEASE/BoringSSL";
        assert_eq!(number(said), "1.40.0");
        assert_eq!(number("another"), "another");
    }

    #[test]
    fn the_clients_rules_are_in_the_middle_of_the_names() {
        let told = listeners(10, true, 1);
        let rules =
            &told["resources"][0]["filter_chains"][0]["filters"][0]["typed_config"]["rules"]["policies"];
        assert_eq!(rules.as_object().map(Map::len), Some(10));
        for (name, port) in [("rule-00004", OPEN), ("rule-00005", SWITCH)] {
            assert_eq!(rules[name]["permissions"][0]["destination_port"], port);
        }
    }
}
