// SPDX-License-Identifier: Apache-2.0
//! What the commands of `zt-agent policy` say, as values.

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::agent::Agent;

impl Agent {
    /// What a command of `zt-agent policy` prints, as JSON. One that does not end with 0 is an error.
    pub fn policy_says(&self, arguments: &[&str]) -> Result<Value> {
        let output = self
            .command(&[&["policy"], arguments, &["-o", "json"]].concat())
            .output()?;
        ensure!(output.status.success(), "{output:?}");
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// How a flow (from, to, port, protocol) is explained: `by` the policies of a directory, or of an agent (`--api`).
    pub fn explained(&self, by: &[&str], flow: (&str, &str, u64, &str)) -> Result<Value> {
        let (from, to, port, protocol) = flow;
        let port = port.to_string();
        let flow = [
            "--from",
            from,
            "--to",
            to,
            "--port",
            &port,
            "--protocol",
            protocol,
        ];
        self.policy_says(&[&["explain"], by, &flow].concat())
    }
}
