// SPDX-License-Identifier: Apache-2.0
//! `zt-agent monitor` on a real terminal, which tmux is, of an agent that enforces.

use std::io::{Read as _, Write as _};
use std::ops::Deref;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use zt_tests::agent::binary;
use zt_tests::probe::{Flood, Operation};
use zt_tests::{Agent, Policy, Scene, TCP, Terminal, eventually, spiffe, wait_for};

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

/// Fewer than fill half of the ring buffer, so that the agent loses none of them however slow the machine is.
const CONNECTIONS: u64 = 20_000;

/// Somebody who asks for all decisions, and then reads none of them.
fn idle_reader(agent: &Agent) -> Result<UnixStream> {
    let mut stream = UnixStream::connect(agent.socket())?;
    stream.set_read_timeout(Some(LATER))?;
    stream.write_all(b"GET /v1/decisions/stream HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
    let mut begun = [0; 12];
    stream.read_exact(&mut begun)?;
    ensure!(begun == *b"HTTP/1.1 200", "{}", String::from_utf8_lossy(&begun));
    Ok(stream)
}

/// How many decisions a view says that it shows, and of how many.
fn sums(screen: &str) -> Option<(u64, u64)> {
    let (_, sums) = screen.lines().next()?.split_once("   shown ")?;
    let (shown, all) = sums.split_once(" of ")?;
    let number = |text: &str| {
        let digits = text.chars().take_while(|c| c.is_ascii_digit() || *c == ',');
        digits
            .filter(char::is_ascii_digit)
            .collect::<String>()
            .parse()
            .ok()
    };
    Some((number(shown)?, number(all)?))
}

#[test]
fn slow_readers_cost_no_record_and_the_view_says_that_it_is_a_sample() -> Result<()> {
    let (scene, server, mut client) = Scene::served("monitor-flood", &[80])?;
    let agent = scene
        .agent(&Policy::new("core").allow("client", "server", TCP, "80"))?
        .start()?;
    let terminal = View::open(&scene)?;
    terminal.monitor(&format!("unix://{}", agent.socket().display()))?;
    let idle = idle_reader(&agent)?;
    let flood = Flood::new(server.v4(80), CONNECTIONS);
    let reply = client.call(Operation::ConnectMany(flood))?.ok()?;
    let counts = &reply.outcomes[0].counts;
    ensure!(reply.outcomes[0].count("ok") == CONNECTIONS, "{counts:?}");

    // Each decision is in the trail, though one of the readers has read none and the other shows a few.
    agent.settled("store_failed", 0)?;
    let lost = agent.metrics()?.sum("zt_events_lost_total", &[]);
    ensure!(lost == 0 && agent.counter("events_lost")? == 0, "{lost}");
    drop(idle);
    let decided = agent.decisions()?;
    let mut changes = 0;
    for kind in ["policy_change", "mode_change", "identity_change"] {
        changes += agent.all_records(&format!("type={kind}"))?.len() as u64;
    }
    let screen = terminal.shows("that it has counted all of them", |screen| {
        sums(screen).is_some_and(|(_, all)| all >= decided)
    })?;
    let (shown, all) = sums(&screen).context("sums")?;
    ensure!(
        shown > 0 && shown < all && all <= decided + changes,
        "{decided}, {changes}:\n{screen}"
    );
    ensure!(screen.contains("a sample, the trail has all"), "{screen}");

    // Edges are below the decisions where there is no room beside them.
    for (columns, lines, wide) in [(100, 30, false), (170, 45, true), (100, 30, false)] {
        terminal.resize(columns, lines)?;
        let height: usize = terminal.says("#{pane_height}")?.parse()?;
        terminal.shows("the view at its new size", |screen| {
            let rows: Vec<&str> = screen.lines().collect();
            let border = rows.iter().find(|row| row.contains(" decisions "));
            rows.len() == height
                && rows[0].contains("zt-agent monitor  ")
                && rows[height - 1].contains("/ filter")
                && screen.contains("denied most often")
                && border.is_some_and(|border| {
                    border.chars().count() == columns && border.contains("denied most often") == wide
                })
        })?;
    }
    terminal.enter("q")?;
    terminal.is_restored("ended:0")
}
