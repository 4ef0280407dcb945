// SPDX-License-Identifier: Apache-2.0
//! nftables: rules about the cgroup of a socket and a port, in a set or one after the other.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use zt_tests::{Cgroup, Sandbox, cgroup};

use crate::load::now;

use super::charge::Charge;
use super::contender::{Contender, listed, version};
use super::place::{OPEN, Place, SWITCH};
use super::tool::{first, run};

/// Where `nft` looks for cgroups, wherever they are.
const LOOKED_AT: &str = "/sys/fs/cgroup";
/// Keeps a mount namespace with the cgroups there until its standard input ends, which is when this process does.
const KEEP: &str = "mount --bind \"$1\" \"$2\" && echo ready && exec cat";

/// How the rules are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// One rule that looks into a set; what is established is let through by connection tracking.
    Set,
    /// The same, and only a SYN is looked at: no connection is tracked.
    Stateless,
    /// A rule for each, behind connection tracking.
    Chain,
}

impl Shape {
    fn through(self) -> &'static str {
        match self {
            Self::Set | Self::Chain => "ct state established,related accept",
            Self::Stateless => "tcp flags & (syn | ack) != syn accept",
        }
    }
}

/// Rules in the namespace of a place, and nowhere else.
pub(super) struct Nftables {
    place: Place,
    shape: Shape,
    others: Vec<Cgroup>,
    file: PathBuf,
    mounts: Option<Mounts>,
    charge: Option<Charge>,
    /// Of the rule that is switched, and of the one before it, where there is a rule for each.
    handles: Option<(u64, u64)>,
}

impl Nftables {
    /// `others` are the cgroups of workloads that have rules too.
    pub(super) fn start(
        sandbox: &Sandbox,
        place: Place,
        shape: Shape,
        others: Vec<Cgroup>,
        rules: usize,
    ) -> Result<(Self, String)> {
        let version = version("nft")?;
        let name = format!("nft-{shape:?}").to_lowercase();
        let mut nftables = Self {
            file: sandbox.directory().join(format!("{name}.nft")),
            mounts: Mounts::needed()?,
            charge: Charge::create(sandbox, &name)?,
            place,
            shape,
            others,
            handles: None,
        };
        first(nftables.rules(rules))?;
        Ok((nftables, version))
    }

    fn nft(&self) -> Command {
        let mut command = Command::new("nsenter");
        if let Some(mounts) = &self.mounts {
            command.arg(format!("--mount={}", mounts.namespace().display()));
        }
        command
            .arg(format!("--net={}", self.place.host.namespace_file().display()))
            .args(["--", "nft"]);
        command
    }

    /// Source and port, as an element of the set or as what a rule asks for.
    fn element(cgroup: &Cgroup, port: u16) -> String {
        format!("\"{}\" . {port}", cgroup.relative().display())
    }

    fn rule(cgroup: &Cgroup, port: u16) -> String {
        format!(
            "tcp dport {port} socket cgroupv2 level {} \"{}\" accept",
            level(cgroup),
            cgroup.relative().display()
        )
    }

    fn text(&self, count: usize) -> String {
        let write = if self.shape == Shape::Chain {
            Self::rule
        } else {
            Self::element
        };
        let client = &self.place.client;
        let rules = listed(
            count,
            |workload, port| write(&self.others[workload], port),
            [write(client, OPEN), write(client, SWITCH)],
        );
        // Whatever is there is replaced, all at once.
        let mut text = "table inet zt {}\ndelete table inet zt\ntable inet zt {\n".to_owned();
        let (set, chain) = if self.shape == Shape::Chain {
            (String::new(), rules.join("\n    "))
        } else {
            let source = format!("socket cgroupv2 level {} . tcp dport", level(client));
            (
                format!(
                    "  set allowed {{\n    typeof {source}\n    elements = {{ {} }}\n  }}\n",
                    rules.join(",\n      ")
                ),
                format!("{source} @allowed accept"),
            )
        };
        // Writing into a String cannot fail.
        let _ = writeln!(
            text,
            "{set}  chain output {{\n    type filter hook output priority filter; policy drop;\n    {}\n    {chain}\n    \
             meta l4proto tcp reject with tcp reset\n  }}\n}}",
            self.shape.through()
        );
        text
    }

    /// Finds the rule that is switched, and the one before it.
    fn find_handles(&mut self) -> Result<()> {
        let text = run(self.nft().args(["-a", "list", "chain", "inet", "zt", "output"]))?;
        let find = |port: u16| handle(&text, &format!("tcp dport {port} "));
        let before = find(OPEN).context("the chain has the client's rule")?;
        self.handles = Some((find(SWITCH).unwrap_or(0), before));
        Ok(())
    }
}

/// The handle of the rule that starts so, in what `nft -a list` says.
fn handle(text: &str, start: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.trim_start().starts_with(start))?;
    line.rsplit_once("# handle ")?.1.trim().parse().ok()
}

/// How deep in the tree a cgroup is.
fn level(cgroup: &Cgroup) -> usize {
    cgroup.relative().components().count()
}

impl Contender for Nftables {
    fn place(&self) -> &Place {
        &self.place
    }

    fn rules(&mut self, count: usize) -> Result<()> {
        fs::write(&self.file, self.text(count))?;
        let mut nft = self.nft();
        nft.arg("-f").arg(&self.file);
        let mut load = match &self.charge {
            Some(charge) => charge.around(&nft),
            None => nft,
        };
        run(&mut load)?;
        self.settle()
    }

    fn switch(&mut self, open: bool) -> Result<u64> {
        let client = &self.place.client;
        let command = match (self.handles, open) {
            (Some((_, before)), true) => {
                format!(
                    "add rule inet zt output position {before} {}",
                    Self::rule(client, SWITCH)
                )
            }
            (Some((switched, _)), false) => format!("delete rule inet zt output handle {switched}"),
            (None, open) => format!(
                "{} element inet zt allowed {{ {} }}",
                if open { "add" } else { "delete" },
                Self::element(client, SWITCH)
            ),
        };
        let began = now();
        run(self.nft().arg(command))?;
        Ok(began)
    }

    fn settle(&mut self) -> Result<()> {
        match self.shape {
            Shape::Chain => self.find_handles(),
            Shape::Set | Shape::Stateless => Ok(()),
        }
    }

    fn memory(&self) -> Result<Option<f64>> {
        self.charge.as_ref().map(Charge::mebibytes).transpose()
    }
}

/// A mount namespace in which the cgroups are where `nft` looks for them.
struct Mounts {
    holder: Child,
    _alive: ChildStdin,
}

impl Mounts {
    /// None where they are there anyway.
    fn needed() -> Result<Option<Self>> {
        let mount = cgroup::mount_point()?;
        if mount == Path::new(LOOKED_AT) {
            return Ok(None);
        }
        let mut holder = Command::new("unshare")
            .args(["--mount", "sh", "-c", KEEP, "sh"])
            .arg(mount)
            .arg(LOOKED_AT)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot run unshare")?;
        let alive = holder.stdin.take().context("its input is piped")?;
        let mut line = String::new();
        BufReader::new(holder.stdout.take().context("its output is piped")?).read_line(&mut line)?;
        let mounts = Self {
            holder,
            _alive: alive,
        };
        ensure!(line == "ready\n", "the cgroups cannot be mounted at {LOOKED_AT}");
        Ok(Some(mounts))
    }

    fn namespace(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/mnt", self.holder.id()))
    }
}

impl Drop for Mounts {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_handle_is_that_of_the_rule_that_starts_so() {
        let text = "\t\ttcp dport 20000 socket cgroupv2 level 3 \"a\" accept # handle 3\n\
                    \t\ttcp dport 7002 socket cgroupv2 level 3 \"a\" accept # handle 14\n";
        assert_eq!(handle(text, "tcp dport 7002 "), Some(14));
        assert_eq!(handle(text, "tcp dport 200 "), None);
    }
}
