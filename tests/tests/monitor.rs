// SPDX-License-Identifier: Apache-2.0
//! `zt-agent monitor` on a real terminal, which tmux is, of an agent that enforces.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use zt_tests::agent::binary;
use zt_tests::{Policy, Scene, TCP, eventually, spiffe, wait_for};

/// Longer than anything takes on a busy machine.
const LATER: Duration = Duration::from_secs(60);

/// A terminal with a shell in it; it ends with the test.
struct Terminal<'s> {
    socket: PathBuf,
    scene: &'s Scene,
}

impl<'s> Terminal<'s> {
    fn open(scene: &'s Scene) -> Result<Self> {
        let terminal = Self {
            socket: scene.sandbox().directory().join("tmux"),
            scene,
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
        let cgroup = scene.sandbox().outside().child("tmux")?;
        for pid in ["#{pid}", "#{pane_pid}"] {
            let pid = terminal.tmux(&["display-message", "-p", pid])?;
            cgroup.add(pid.trim().parse()?)?;
        }
        Ok(terminal)
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

    fn screen(&self) -> Result<String> {
        self.tmux(&["capture-pane", "-p"])
    }

    /// Presses keys, by their names in tmux.
    fn press(&self, keys: &[&str]) -> Result<()> {
        self.tmux(&[&["send-keys"], keys].concat())?;
        Ok(())
    }

    /// Types a text as it is.
    fn enter(&self, text: &str) -> Result<()> {
        self.tmux(&["send-keys", "-l", text])?;
        Ok(())
    }

    /// Waits until the screen is as wanted, and returns it.
    fn shows(&self, what: &str, wanted: impl Fn(&str) -> bool) -> Result<String> {
        let mut last = String::new();
        let found = wait_for(what, LATER, || {
            last = self.screen()?;
            Ok(wanted(&last).then(|| last.clone()))
        });
        found.with_context(|| format!("the screen was:\n{last}"))
    }

    /// Starts the view; the file has its process.
    fn monitor(&self, api: &str) -> Result<Pid> {
        let file = self.scene.sandbox().directory().join("pid");
        let _ = std::fs::remove_file(&file);
        let program = binary()?;
        self.enter(&format!(
            "sh -c 'echo $$ > {}; exec {} monitor --api {api}'; echo ended:$?",
            file.display(),
            program.display()
        ))?;
        self.press(&["Enter"])?;
        self.shows("the view", |screen| {
            screen.contains("zt-agent monitor  ") && screen.contains("connected")
        })?;
        let pid = std::fs::read_to_string(&file)?.trim().parse()?;
        Ok(Pid::from_raw(pid))
    }

    /// Waits for the shell to be back, with the terminal as it was.
    fn is_restored(&self, ended: &str) -> Result<()> {
        self.shows("the shell", |screen| screen.contains(ended))?;
        ensure!(self.tmux(&["display-message", "-p", "#{alternate_on}"])?.trim() == "0");
        ensure!(self.tmux(&["display-message", "-p", "#{cursor_flag}"])?.trim() == "1");
        self.clear()?;
        // Of a terminal in raw mode `stty` says otherwise.
        self.enter("stty -a | tr ' ;' '\\n\\n' | grep -cx -e echo -e icanon -e isig")?;
        self.press(&["Enter"])?;
        self.shows("what the terminal does", |screen| {
            screen.lines().any(|line| line.trim() == "3")
        })?;
        self.clear()
    }

    fn clear(&self) -> Result<()> {
        self.press(&["-R"])?;
        self.tmux(&["clear-history"])?;
        Ok(())
    }
}

impl Drop for Terminal<'_> {
    fn drop(&mut self) {
        let _ = self.tmux(&["kill-server"]);
    }
}

#[test]
fn the_view_shows_filters_explains_reconnects_and_leaves_the_terminal_as_it_was() -> Result<()> {
    let (scene, server, mut client) = Scene::served("monitor", &[80])?;
    let policy = Policy::new("core").allow("client", "server", TCP, "80");
    let mut agent = scene.agent(&policy)?.start()?;
    let api = format!("unix://{}", agent.socket().display());
    let terminal = Terminal::open(&scene)?;
    terminal.monitor(&api)?;

    assert_eq!(client.tcp(server.v4(80))?, "ok");
    assert_eq!(client.tcp(server.v4(81))?, "EPERM");
    let screen = terminal.shows("both decisions", |screen| {
        screen.contains("80/TCP") && screen.contains("81/TCP") && screen.contains("core/rule-1")
    })?;
    assert!(
        screen.contains("ALLOW") && screen.contains("DENY") && screen.contains("(no_rule)"),
        "{screen}"
    );
    assert!(screen.contains("denied most often: 1 edges"), "{screen}");

    // As it is typed, and gone again.
    terminal.enter("/port:81")?;
    terminal.shows("the refusal alone", |screen| {
        screen.contains("filter: port:81") && !screen.contains("core/rule-1")
    })?;
    terminal.press(&["Escape"])?;
    terminal.shows("both again", |screen| {
        screen.contains("core/rule-1") && !screen.contains("filter:")
    })?;

    // The rule of the one that was allowed.
    terminal.enter("/rule:core")?;
    terminal.press(&["Enter", "Enter"])?;
    terminal.shows("the rule", |screen| {
        screen.contains("core/rule-1, as it is now")
            && screen.contains("source.spiffe_id")
            && screen.contains(&spiffe("client"))
    })?;
    terminal.press(&["Escape"])?;
    terminal.shows("no details", |screen| !screen.contains("source.spiffe_id"))?;
    terminal.enter("/")?;
    terminal.press(&["C-u", "Enter"])?;
    terminal.shows("all of them", |screen| !screen.contains("filter:"))?;

    // Held, what comes is counted and waits.
    terminal.enter(" ")?;
    terminal.shows("that it is held", |screen| screen.contains("HELD, 0 came since"))?;
    assert_eq!(client.tcp(server.v4(82))?, "EPERM");
    terminal.shows("that something came", |screen| {
        screen.contains("HELD, 1 came since")
    })?;
    terminal.enter(" ")?;

    // The agent goes, and comes back.
    agent.kill()?;
    terminal.shows("that it has gone", |screen| {
        screen.contains("no agent, trying again")
    })?;
    agent.restart()?;
    terminal.shows("that it is back", |screen| screen.contains("connected again"))?;
    assert_eq!(client.tcp(server.v4(83))?, "EPERM");
    terminal.shows("what is decided now", |screen| screen.contains("83/TCP"))?;

    terminal.enter("q")?;
    terminal.is_restored("ended:0")?;

    // Killed in order, and stopped and woken: the shell has its terminal.
    let pid = terminal.monitor(&api)?;
    kill(pid, Signal::SIGTERM)?;
    terminal.is_restored("ended:0")?;
    let pid = terminal.monitor(&api)?;
    terminal.press(&["C-z"])?;
    eventually("the view to be stopped", LATER, || {
        let state = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        Ok(state
            .rsplit(") ")
            .next()
            .is_some_and(|rest| rest.starts_with('T')))
    })?;
    terminal.is_restored("ended:")?;
    terminal.enter("fg")?;
    terminal.press(&["Enter"])?;
    terminal.shows("the view", |screen| screen.contains("zt-agent monitor  "))?;
    terminal.enter("q")?;
    eventually("the view to end", LATER, || Ok(kill(pid, None).is_err()))?;
    terminal.is_restored("$")
}

#[test]
fn without_a_terminal_there_are_lines() -> Result<()> {
    let (scene, server, mut client) = Scene::served("monitor-lines", &[80])?;
    let agent = scene
        .agent(&Policy::new("core").allow("client", "server", TCP, "80"))?
        .start()?;
    let file = scene.sandbox().directory().join("lines");
    let mut child = Command::new(binary()?)
        .args(["monitor", "--denied", "-o", "json"])
        .env("ZT_API", format!("unix://{}", agent.socket().display()))
        .stdout(std::fs::File::create(&file)?)
        .spawn()?;
    let found = wait_for("a line", LATER, || {
        // Only what is decided while it listens is printed.
        ensure!(client.tcp(server.v4(81))? == "EPERM");
        ensure!(client.tcp(server.v4(80))? == "ok");
        let text = std::fs::read_to_string(&file)?;
        Ok(text
            .split_inclusive('\n')
            .find(|line| line.ends_with('\n'))
            .map(str::to_owned))
    });
    child.kill()?;
    child.wait()?;
    let record: serde_json::Value = serde_json::from_str(&found?)?;
    if record["destination"]["port"] != 81 {
        bail!("{record}");
    }
    Ok(())
}
