// SPDX-License-Identifier: Apache-2.0
//! A real terminal, which tmux is, with a shell in it.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::sandbox::Sandbox;
use crate::wait::wait_for;

/// Longer than anything takes on a busy machine.
const LATER: Duration = Duration::from_secs(60);

/// A terminal; it ends when this is dropped.
#[derive(Debug)]
pub struct Terminal {
    socket: PathBuf,
}

impl Terminal {
    /// Opens one of 150 columns and 40 lines.
    pub fn open(sandbox: &Sandbox) -> Result<Self> {
        let terminal = Self {
            socket: sandbox.directory().join("tmux"),
        };
        terminal.tmux(&[
            "new-session",
            "-d",
            "-x",
            "150",
            "-y",
            "40",
            "-e",
            "PS1=$ ",
            "-e",
            "ENV=",
            "sh",
        ])?;
        // So that it is swept up when this process is killed.
        let cgroup = sandbox.outside().child("tmux")?;
        for pid in ["#{pid}", "#{pane_pid}"] {
            cgroup.add(terminal.says(pid)?.parse()?)?;
        }
        Ok(terminal)
    }

    /// What tmux says of itself, in its own words for it.
    pub fn says(&self, what: &str) -> Result<String> {
        Ok(self.tmux(&["display-message", "-p", what])?.trim().to_owned())
    }

    /// What is on the screen.
    pub fn screen(&self) -> Result<String> {
        self.tmux(&["capture-pane", "-p"])
    }

    /// Presses keys, by their names in tmux.
    pub fn press(&self, keys: &[&str]) -> Result<()> {
        self.tmux(&[&["send-keys"], keys].concat())?;
        Ok(())
    }

    /// Types a text as it is.
    pub fn enter(&self, text: &str) -> Result<()> {
        self.tmux(&["send-keys", "-l", text])?;
        Ok(())
    }

    /// Waits until the screen is as wanted, and returns it.
    pub fn shows(&self, what: &str, wanted: impl Fn(&str) -> bool) -> Result<String> {
        let mut last = String::new();
        let found = wait_for(what, LATER, || {
            last = self.screen()?;
            Ok(wanted(&last).then(|| last.clone()))
        });
        found.with_context(|| format!("the screen was:\n{last}"))
    }

    /// Makes it that large, as whoever drags the border of its window does.
    pub fn resize(&self, columns: usize, lines: usize) -> Result<()> {
        let (columns, lines) = (columns.to_string(), lines.to_string());
        self.tmux(&["resize-window", "-x", &columns, "-y", &lines])?;
        Ok(())
    }

    /// Clears it, and what has left it.
    pub fn clear(&self) -> Result<()> {
        self.press(&["-R"])?;
        self.tmux(&["clear-history"])?;
        Ok(())
    }

    fn tmux(&self, arguments: &[&str]) -> Result<String> {
        let output = Command::new("tmux")
            .args(["-f", "/dev/null", "-S"])
            .arg(&self.socket)
            .args(arguments)
            .env_remove("TMUX")
            .env("LC_ALL", "C.UTF-8")
            .output()
            .context("tmux is not installed: run `cargo xtask setup`")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "tmux {arguments:?}: {said}");
        Ok(String::from_utf8(output.stdout)?)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.tmux(&["kill-server"]);
    }
}
