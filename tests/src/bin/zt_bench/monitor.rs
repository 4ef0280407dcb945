// SPDX-License-Identifier: Apache-2.0
//! Whether `zt-agent monitor` keeps up with what a node decides at the most, and with whoever presses a key meanwhile: by itself, of a stream
//! of ready-made events, and beside an agent that makes them.

mod real;
mod stream;

use std::io::{BufReader, Read};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use zt_tests::agent::binary;
use zt_tests::{Sandbox, Terminal, eventually};

use self::stream::Sent;
use crate::Plan;
use crate::processor;
use crate::report::{Metric, Target};
use crate::samples::Summary;

/// Decisions a second.
const RATE: u64 = 50_000;
/// The part of that which must be taken in.
const LEAST: f64 = 0.99;
/// Milliseconds within which a key shows.
const KEY: f64 = 300.0;
/// How long the program may take to begin.
const BEGINS: Duration = Duration::from_secs(30);
/// How often one looks at the screen for a key.
const LOOK: Duration = Duration::from_millis(5);

/// On a terminal, and as lines; of ready-made events, and of real decisions.
pub(crate) fn keeps_up(plan: &Plan, metrics: &mut Vec<Metric>) -> Result<()> {
    let sandbox = Sandbox::new("bench-monitor")?;
    let events = stream::events()?;
    let seconds = if plan.quick { 3 } else { 10 };
    view(&sandbox, &events, seconds, metrics)?;
    lines(&sandbox, &events, seconds, metrics)?;
    real::follows(plan, metrics)
}

fn told(metrics: &mut Vec<Metric>, how: &str, sent: Sent, microseconds: f64) {
    let events = sent.events as f64;
    metrics.push(
        Metric::value(
            format!("monitor {how}, {events} ready-made decisions, none missing: taken in"),
            "/s",
            sent.rate(),
        )
        .target(Target::AtLeast(RATE as f64 * LEAST)),
    );
    metrics.push(Metric::value(
        "  processor time for one",
        "µs",
        microseconds / events,
    ));
}

/// The view, looked at through tmux.
fn view(sandbox: &Sandbox, events: &[String], seconds: u64, metrics: &mut Vec<Metric>) -> Result<()> {
    let socket = sandbox.directory().join("view.sock");
    let streams = stream::listen(&socket)?;
    let terminal = Terminal::open(sandbox)?;
    let program = binary()?;
    terminal.enter(&format!(
        "exec {} monitor --api unix://{}",
        program.display(),
        socket.display()
    ))?;
    terminal.press(&["Enter"])?;
    let mut stream = streams
        .recv_timeout(BEGINS)
        .context("the view asks for nothing")?;
    terminal.shows("the view", |screen| {
        screen.contains("monitor  bench") && screen.contains("connected")
    })?;
    let pid = terminal.says("#{pane_pid}")?.parse()?;
    let before = processor::microseconds(&[pid]);
    let mut keys = Vec::new();
    let sent = thread::scope(|scope| {
        let pump = scope.spawn(|| stream::pump(&mut stream, events, RATE, seconds));
        press_until(&terminal, || pump.is_finished(), &mut keys)?;
        pump.join().expect("the pump does not panic")
    })?;
    let screen = terminal.shows("all of them", |screen| {
        Said::of(screen).is_some_and(|said| said.all == sent.events)
    })?;
    ensure!(!screen.contains("not sent"), "some are missing:\n{screen}");
    told(
        metrics,
        "on a terminal",
        sent,
        processor::microseconds(&[pid]) - before,
    );
    tell_of_keys(&keys, metrics);
    Ok(())
}

/// Presses keys until something is over. What each took is added, in milliseconds.
fn press_until(terminal: &Terminal, is_over: impl Fn() -> bool, keys: &mut Vec<f64>) -> Result<()> {
    while !is_over() {
        for (key, is_there) in [("?", true), ("Escape", false)] {
            keys.push(pressed(terminal, key, is_there)?);
        }
    }
    Ok(())
}

fn tell_of_keys(keys: &[f64], metrics: &mut Vec<Metric>) {
    let slowest = keys.iter().copied().fold(0.0, f64::max);
    metrics.push(Metric::summed("  a key, to the screen", "ms", Summary::of(keys)));
    metrics.push(Metric::value("  the slowest of them", "ms", slowest).target(Target::AtMost(KEY)));
}

/// Milliseconds until the help is there, or gone.
fn pressed(terminal: &Terminal, key: &str, is_there: bool) -> Result<f64> {
    let begun = Instant::now();
    terminal.press(&[key])?;
    while terminal.screen()?.contains("any key closes") != is_there {
        ensure!(begun.elapsed() < BEGINS, "`{key}` does nothing");
        thread::sleep(LOOK);
    }
    Ok(begun.elapsed().as_secs_f64() * 1000.0)
}

/// What the first line of the view says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Said {
    /// Decisions on the screen.
    shown: u64,
    /// All that there were.
    all: u64,
    /// Of these, what the agent did not send.
    not_sent: u64,
}

impl Said {
    fn of(screen: &str) -> Option<Self> {
        let (_, rest) = screen.lines().next()?.split_once("   shown ")?;
        let (shown, of) = rest.split_once(" of ")?;
        let not_sent = of.split_once(" not sent").and_then(|(before, _)| {
            let (_, count) = before.rsplit_once(", ")?;
            number(count)
        });
        Some(Self {
            shown: number(shown)?,
            all: number(of)?,
            not_sent: not_sent.unwrap_or(0),
        })
    }
}

/// The number that a text begins with, as people write it.
fn number(text: &str) -> Option<u64> {
    let digits: String = text
        .chars()
        .take_while(|character| character.is_ascii_digit() || *character == ',')
        .filter(char::is_ascii_digit)
        .collect();
    digits.parse().ok()
}

/// Lines into a pipe.
fn lines(sandbox: &Sandbox, events: &[String], seconds: u64, metrics: &mut Vec<Metric>) -> Result<()> {
    let socket = sandbox.directory().join("lines.sock");
    let streams = stream::listen(&socket)?;
    let mut child = Command::new(binary()?)
        .args(["monitor", "-o", "json", "--api"])
        .arg(format!("unix://{}", socket.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    // So that it is swept up when this process is killed.
    sandbox.outside().child("lines")?.add(child.id())?;
    let output = child.stdout.take().context("it is piped")?;
    let reader = thread::spawn(move || count_lines(BufReader::with_capacity(1 << 16, output)));
    let stream = streams.recv_timeout(BEGINS).context("it asks for nothing")?;
    let (sent, microseconds) = fed(stream, events, seconds, child.id(), &socket)?;
    let counted = reader.join().expect("the reader does not panic")?;
    child.wait()?;
    ensure!(
        counted == sent.events,
        "{counted} lines of {} decisions",
        sent.events
    );
    told(metrics, "as lines", sent, microseconds);
    Ok(())
}

/// Feeds a process, waits until it has read everything, and says what that cost it. The stream ends with this.
fn fed(
    mut stream: UnixStream,
    events: &[String],
    seconds: u64,
    pid: u32,
    socket: &Path,
) -> Result<(Sent, f64)> {
    let before = processor::microseconds(&[pid]);
    let sent = stream::pump(&mut stream, events, RATE, seconds)?;
    eventually(&format!("{} to be read", socket.display()), BEGINS, || {
        let idle = processor::microseconds(&[pid]);
        thread::sleep(Duration::from_millis(100));
        Ok(processor::microseconds(&[pid]) <= idle)
    })?;
    Ok((sent, processor::microseconds(&[pid]) - before))
}

#[expect(clippy::naive_bytecount, reason = "what is measured is whoever writes")]
fn count_lines(mut from: impl Read) -> Result<u64> {
    let (mut bytes, mut count) = (vec![0_u8; 1 << 16], 0);
    loop {
        let read = from.read(&mut bytes)?;
        if read == 0 {
            return Ok(count);
        }
        count += bytes[..read].iter().filter(|byte| **byte == b'\n').count() as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_view_says_of_itself_is_read_from_its_first_line() {
        let all = " zt-agent monitor  node  connected   55,998/s   shown 4,000 of 1,250,003: a sample, the trail has all ";
        let some = "  connected   9/s   shown 40 of 1,250,003, 12,345 not sent: a sample, the trail has all \n  x not sent";
        let said = |shown, not_sent| {
            Some(Said {
                shown,
                all: 1_250_003,
                not_sent,
            })
        };
        assert_eq!(Said::of(all), said(4000, 0));
        assert_eq!(Said::of(some), said(40, 12_345));
        assert_eq!(Said::of("$ "), None);
    }
}
