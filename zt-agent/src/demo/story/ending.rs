// SPDX-License-Identifier: Apache-2.0
//! What came out, and what to try next.

use super::super::cast::Who;
use super::super::error::DemoError;
use super::super::process;
use super::super::screen::Look;
use super::Story;

impl Story {
    /// Whether everything came out as it must.
    pub(super) fn end(&mut self, keep: bool) -> Result<bool, DemoError> {
        self.screen.gap()?;
        let failures = self.screen.failures().to_vec();
        if failures.is_empty() {
            let text = format!("All {} expectations held.", self.screen.expectations());
            self.screen.look(&text, Look::Good)?;
        } else {
            let text = format!(
                "{} of {} expectations did not hold:",
                failures.len(),
                self.screen.expectations()
            );
            self.screen.look(&text, Look::Bad)?;
            for failure in &failures {
                self.screen.look(&format!("  ✗ {failure}"), Look::Bad)?;
            }
            self.screen
                .say("The agent's status, so that the reason can be found:")?;
            let status = self.agent.get("/v1/status", &[])?;
            self.screen
                .faint(&serde_json::to_string_pretty(&status).unwrap_or_default())?;
        }
        if keep {
            self.what_to_type()?;
        } else {
            self.screen.gap()?;
            self.screen
                .say("Next: `zt-agent demo --keep` leaves all this running for you to play with;")?;
            self.screen
                .say("`zt-agent run --help` is the real thing, in mode observe until you say otherwise.")?;
        }
        Ok(failures.is_empty())
    }

    fn what_to_type(&self) -> Result<(), DemoError> {
        let names = &self.world.names;
        let program = process::program()?.display().to_string();
        let (chat, redis) = (names.cgroup_directory(Who::Chat), names.namespace_file(Who::Chat));
        // Below it is a directory for each version of the kernel side's layout: here, one.
        let versions = std::fs::read_dir(names.pins()).into_iter().flatten().flatten();
        let maps = versions.map(|entry| entry.path().join("maps")).next();
        let maps = maps.unwrap_or_else(|| names.pins());
        self.screen.gap()?;
        self.screen.say("It all goes on running. In another terminal:")?;
        let commands = [
            (
                "the agent's API is found by",
                format!("export ZT_API={}", self.agent.url()),
            ),
            ("how it is", format!("{program} status")),
            ("decisions as they fall", format!("{program} monitor")),
            ("who is who", format!("{program} identity list")),
            (
                "be chat, in a shell",
                format!("echo $$ > {}/cgroup.procs", chat.display()),
            ),
            ("", format!("exec nsenter --net={} $SHELL", redis.display())),
            (
                "then, as chat",
                format!(
                    "timeout 3 bash -c '</dev/tcp/{}/6379'; timeout 3 bash -c '</dev/tcp/{}/4000'",
                    Who::Redis.ipv4(),
                    Who::Gateway.ipv4()
                ),
            ),
            (
                "allow more",
                format!(
                    "$EDITOR {}/hanzo-core-policy.yaml",
                    self.agent.files.policies().display()
                ),
            ),
            ("the drawing", format!("{program} graph -o mermaid")),
            ("what the kernel has", format!("ls {}", maps.display())),
            (
                "",
                format!("bpftool map dump pinned {}/zt_workloads", maps.display()),
            ),
            ("", "bpftool cgroup tree | grep -A20 zt-demo".to_owned()),
        ];
        let rows: Vec<_> = commands
            .into_iter()
            .map(|(what, command)| vec![(what.to_owned(), Look::Faint), (command, Look::Plain)])
            .collect();
        self.screen.table(&["", ""], &rows)?;
        self.screen.gap()?;
        self.screen.say("Ctrl-C here ends it, and removes everything.")
    }
}
