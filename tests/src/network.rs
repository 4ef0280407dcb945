// SPDX-License-Identifier: Apache-2.0
//! Network namespaces joined by a bridge. The bridge has a namespace of its own, so the machine's own interfaces,
//! addresses and routes are never touched.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

use anyhow::{Context as _, Result, bail, ensure};
use nix::sched::{CloneFlags, setns};

/// Where iproute2 keeps named network namespaces.
pub(crate) const NAMESPACES: &str = "/run/netns";

/// The kernel's limit (`BR_MAX_PORTS`, less one).
const BRIDGE_PORTS: u16 = 1023;

/// A network namespace with a loopback, and `eth0` on the sandbox's bridge.
///
/// Every sandbox numbers its hosts alike, from 10.99.0.1 and `fd99::1`: nothing joins two sandboxes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    namespace: String,
    bridge: String,
    port: String,
    /// Its address on the bridge, in 10.99.0.0/16.
    pub ipv4: Ipv4Addr,
    /// Its address on the bridge, in `fd99::/64`.
    pub ipv6: Ipv6Addr,
}

impl Host {
    /// The name that `ip netns` lists.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The file that `nsenter --net=` and `setns` take.
    pub fn namespace_file(&self) -> PathBuf {
        Path::new(NAMESPACES).join(&self.namespace)
    }

    /// Both addresses, as `workloads.yaml` lists them.
    pub fn addresses(&self) -> [IpAddr; 2] {
        [self.ipv4.into(), self.ipv6.into()]
    }

    /// A command that runs in this namespace. (`ip netns exec` would hide cgroupfs and bpffs.)
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", self.namespace_file().display()))
            .arg("--")
            .arg(program);
        command
    }

    /// Does something on a thread that is in this namespace. A socket that it makes stays there.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let namespace = File::open(self.namespace_file())?;
        std::thread::scope(|scope| {
            let there = scope.spawn(|| {
                setns(namespace, CloneFlags::CLONE_NEWNET).context("cannot enter the namespace")?;
                work()
            });
            there.join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    /// Gives it one more address, such as `10.99.7.7/16`, on `eth0`.
    pub fn add_address(&self, address: &str) -> Result<()> {
        ip(
            Some(&self.namespace),
            &format!("addr add {address} dev eth0{}\n", nodad(address)),
        )
    }

    /// Sends what goes to a network, such as `192.0.2.0/24`, out on `eth0`.
    pub fn add_route(&self, network: &str) -> Result<()> {
        ip(Some(&self.namespace), &format!("route add {network} dev eth0\n"))
    }

    /// Runs lines of `ip` commands here.
    pub fn ip(&self, batch: &str) -> Result<()> {
        ip(Some(&self.namespace), batch)
    }

    /// Runs a command of `bridge` here.
    pub fn bridge(&self, arguments: &str) -> Result<()> {
        self.run("bridge", arguments, "iproute2")
    }

    /// Adds a rule to the table of NAT, as `iptables` takes it.
    pub fn nat(&self, rule: &str) -> Result<()> {
        self.iptables(&format!("-t nat -A {rule}"))
    }

    /// Runs a command of `iptables` here.
    pub fn iptables(&self, arguments: &str) -> Result<()> {
        self.run("iptables", &format!("-w {arguments}"), "iptables")
    }

    /// Runs a program, which a package has, with words.
    fn run(&self, program: &str, arguments: &str, package: &str) -> Result<()> {
        let output = self
            .command(program)
            .args(arguments.split_whitespace())
            .output()
            .with_context(|| format!("cannot run `{program}`: run `apt-get install {package}`"))?;
        ensure!(
            output.status.success(),
            "{program} {arguments}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(())
    }

    /// Cuts the bridge's port off: packets are lost in both directions, and the interface stays up.
    pub fn cut(&self) -> Result<()> {
        self.port_state("0")
    }

    /// Undoes [`Self::cut`].
    pub fn mend(&self) -> Result<()> {
        self.port_state("3")
    }

    /// As spanning tree would set it: 0 is disabled, 3 forwards.
    fn port_state(&self, state: &str) -> Result<()> {
        let output = Command::new("bridge")
            .args([
                "-n",
                &self.bridge,
                "link",
                "set",
                "dev",
                &self.port,
                "state",
                state,
            ])
            .output()
            .context("cannot run `bridge`: run `apt-get install iproute2`")?;
        ensure!(
            output.status.success(),
            "port {} to state {state}: {}",
            self.port,
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(())
    }

    /// Sets a switch of the namespace, such as `net/ipv4/tcp_fastopen`.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        let output = self
            .command("sh")
            .args(["-c", &format!("echo {value} > /proc/sys/{name}")])
            .output()?;
        ensure!(
            output.status.success(),
            "{name}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(())
    }

    /// The hardware address of `eth0`.
    pub fn hardware(&self) -> Result<[u8; 6]> {
        let output = Command::new("ip")
            .args(["-n", &self.namespace, "-o", "link", "show", "eth0"])
            .output()
            .context("cannot run `ip`: run `apt-get install iproute2`")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let words: Vec<&str> = text.split_whitespace().collect();
        let place = words.iter().position(|word| *word == "link/ether");
        let address = place.and_then(|place| words.get(place + 1));
        let address = address.with_context(|| format!("no hardware address in {text:?}"))?;
        let bytes: Vec<u8> = address
            .split(':')
            .map(|byte| u8::from_str_radix(byte, 16))
            .collect::<Result<_, _>>()?;
        <[u8; 6]>::try_from(bytes).map_err(|bytes| anyhow::anyhow!("{bytes:?} is no hardware address"))
    }

    /// Says at which hardware address a neighbour is, whoever else claims to have his address.
    pub fn neighbour(&self, address: IpAddr, hardware: [u8; 6]) -> Result<()> {
        let hardware: Vec<String> = hardware.iter().map(|byte| format!("{byte:02x}")).collect();
        ip(
            Some(&self.namespace),
            &format!("neigh replace {address} lladdr {} dev eth0\n", hardware.join(":")),
        )
    }

    /// Takes an address of `eth0` away.
    pub fn remove_address(&self, address: &str) -> Result<()> {
        ip(Some(&self.namespace), &format!("addr del {address} dev eth0\n"))
    }
}

/// The bridge of one sandbox.
#[derive(Debug)]
pub(crate) struct Network {
    prefix: String,
    hosts: Mutex<u16>,
}

impl Network {
    /// Makes the namespace of the bridge; all names start with `prefix`.
    pub(crate) fn create(prefix: &str) -> Result<Self> {
        let network = Self {
            prefix: prefix.to_owned(),
            hosts: Mutex::new(0),
        };
        add_namespace(&network.bridge())?;
        ip(
            Some(&network.bridge()),
            "link add br0 type bridge forward_delay 0 stp_state 0 mcast_snooping 0\nlink set br0 up\n",
        )?;
        Ok(network)
    }

    /// Makes a namespace on the bridge.
    pub(crate) fn host(&self, name: &str) -> Result<Host> {
        let number = {
            let mut hosts = self
                .hosts
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            *hosts += 1;
            *hosts
        };
        ensure!(
            number <= BRIDGE_PORTS,
            "a bridge takes at most {BRIDGE_PORTS} ports"
        );
        let host = Host {
            namespace: format!("{}-{name}", self.prefix),
            bridge: self.bridge(),
            port: format!("p{number}"),
            ipv4: Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 99, 0, 0)) + u32::from(number)),
            ipv6: Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, number),
        };
        add_namespace(&host.namespace)?;
        let (namespace, bridge) = (&host.namespace, self.bridge());
        ip(
            Some(&bridge),
            &format!(
                "link add p{number} type veth peer name eth0 netns {namespace}\n\
                 link set p{number} master br0 up\n"
            ),
        )?;
        ip(
            Some(namespace),
            &format!(
                "link set lo up\nlink set eth0 up\naddr add {}/16 dev eth0\naddr add {}/64 dev eth0 nodad\n",
                host.ipv4, host.ipv6
            ),
        )?;
        Ok(host)
    }

    fn bridge(&self) -> String {
        format!("{}-bridge", self.prefix)
    }
}

/// An IPv6 address is usable at once only without duplicate address detection.
fn nodad(address: &str) -> &'static str {
    if address.contains(':') { " nodad" } else { "" }
}

fn add_namespace(name: &str) -> Result<()> {
    ip(None, &format!("netns add {name}\n"))
}

/// Removes a named network namespace; the kernel frees it when the last process in it has gone.
pub(crate) fn remove_namespace(name: &str) -> Result<()> {
    ip(None, &format!("netns del {name}\n"))
}

/// Runs lines of `ip` commands in a namespace, in one process.
fn ip(namespace: Option<&str>, batch: &str) -> Result<()> {
    let mut command = Command::new("ip");
    if let Some(namespace) = namespace {
        command.args(["-n", namespace]);
    }
    command
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .context("cannot run `ip`: run `apt-get install iproute2`")?;
    child
        .stdin
        .take()
        .context("ip has no standard input")?
        .write_all(batch.as_bytes())?;
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let place = namespace.unwrap_or("this namespace");
        bail!(
            "ip in {place}: {}: {}",
            batch.trim(),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}
