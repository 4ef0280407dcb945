// SPDX-License-Identifier: Apache-2.0
//! `zt-agent monitor` on a real terminal, which tmux is, of an agent that enforces.

use std::ops::Deref;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use zt_tests::agent::binary;
use zt_tests::{Policy, Scene, TCP, Terminal, eventually, spiffe, wait_for};

/// Longer than anything takes on a busy machine.
const LATER: Duration = Duration::from_secs(60);

/// A terminal in which the view is started.
struct View<'s> {
    terminal: Terminal,
    scene: &'s Scene,
}

impl Deref for View<'_> {
    type Target = Terminal;

    fn deref(&self) -> &Terminal {
        &self.terminal
    }
}

impl<'s> View<'s> {
    fn open(scene: &'s Scene) -> Result<Self> {
        let terminal = Terminal::open(scene.sandbox())?;
        Ok(Self { terminal, scene })
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
        ensure!(self.says("#{alternate_on}")? == "0");
        ensure!(self.says("#{cursor_flag}")? == "1");
        self.clear()?;
        // Of a terminal in raw mode `stty` says otherwise.
        self.enter("stty -a | tr ' ;' '\\n\\n' | grep -cx -e echo -e icanon -e isig")?;
        self.press(&["Enter"])?;
        self.shows("what the terminal does", |screen| {
            screen.lines().any(|line| line.trim() == "3")
        })?;
        self.clear()
    }
}

#[test]
fn the_view_shows_filters_explains_reconnects_and_leaves_the_terminal_as_it_was() -> Result<()> {
    let (scene, server, mut client) = Scene::served("monitor", &[80])?;
    let policy = Policy::new("core").allow("client", "server", TCP, "80");
    let mut agent = scene.agent(&policy)?.start()?;
    let api = format!("unix://{}", agent.socket().display());
    let terminal = View::open(&scene)?;
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
