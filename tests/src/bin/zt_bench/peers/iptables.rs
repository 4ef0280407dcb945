// SPDX-License-Identifier: Apache-2.0
//! iptables: a rule for each source and port, one after the other.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;
use zt_tests::{Cgroup, Sandbox};

use crate::load::now;

use super::charge::Charge;
use super::contender::{Contender, listed, middle, version};
use super::place::{OPEN, Place, SWITCH};
use super::tool::{first, run};

/// Rules in the namespace of a place, and nowhere else.
pub(super) struct Iptables {
    place: Place,
    others: Vec<Cgroup>,
    file: PathBuf,
    charge: Option<Charge>,
    /// Which rule of the chain is switched, from 1.
    switched: usize,
}

impl Iptables {
    /// `others` are the cgroups of workloads that have rules too.
    pub(super) fn start(
        sandbox: &Sandbox,
        place: Place,
        others: Vec<Cgroup>,
        rules: usize,
    ) -> Result<(Self, String)> {
        let version = version("iptables")?;
        let mut iptables = Self {
            file: sandbox.directory().join("iptables.rules"),
            charge: Charge::create(sandbox, "iptables")?,
            place,
            others,
            switched: 0,
        };
        first(iptables.rules(rules))?;
        Ok((iptables, version))
    }

    fn rule(cgroup: &Cgroup, port: u16) -> String {
        format!(
            "-p tcp --dport {port} -m cgroup --path {} -j ACCEPT",
            cgroup.relative().display()
        )
    }
}

impl Contender for Iptables {
    fn place(&self) -> &Place {
        &self.place
    }

    fn rules(&mut self, count: usize) -> Result<()> {
        let client = &self.place.client;
        let rules = listed(
            count,
            |workload, port| Self::rule(&self.others[workload], port),
            [Self::rule(client, OPEN), Self::rule(client, SWITCH)],
        );
        let text = format!(
            "*filter\n:OUTPUT DROP [0:0]\n-A OUTPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT\n-A OUTPUT {}\n\
             -A OUTPUT -p tcp -j REJECT --reject-with tcp-reset\nCOMMIT\n",
            rules.join("\n-A OUTPUT ")
        );
        fs::write(&self.file, text)?;
        let mut restore: Command = self.place.host.command("iptables-restore");
        // What comes after `-w` is a number of seconds.
        restore.arg(&self.file).arg("-w");
        let mut load = match &self.charge {
            Some(charge) => charge.around(&restore),
            None => restore,
        };
        run(&mut load)?;
        // After connection tracking, those before, and the client's other one.
        self.switched = 1 + middle(count) + 2;
        Ok(())
    }

    fn switch(&mut self, open: bool) -> Result<u64> {
        let number = self.switched;
        let arguments = if open {
            format!("-w -I OUTPUT {number} {}", Self::rule(&self.place.client, SWITCH))
        } else {
            format!("-w -D OUTPUT {number}")
        };
        let began = now();
        run(self
            .place
            .host
            .command("iptables")
            .args(arguments.split_whitespace()))?;
        Ok(began)
    }

    fn memory(&self) -> Result<Option<f64>> {
        self.charge.as_ref().map(Charge::mebibytes).transpose()
    }
}
