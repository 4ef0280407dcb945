// SPDX-License-Identifier: Apache-2.0
//! The same beside an agent: real decisions, which it records, writes down and sends, on the same processors. What was made, what
//! `zt-agent monitor` took in of it and says that it was not sent, and what the trail has.

use std::io::{BufRead as _, BufReader, Read};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use zt_tests::agent::binary;
use zt_tests::{Terminal, wait_for};

use super::{BEGINS, LEAST, RATE, Said, number, press_until, tell_of_keys};
use crate::Plan;
use crate::crew::Worker;
use crate::processor;
use crate::report::{Metric, Target};
use crate::trail::{Counts, at_rest, connects, recording, settled};
use crate::world::World;

/// Thousands of decisions a second that are asked for: somewhat more than there are to be.
const ASKED: u32 = 56;
/// How long it may take until all that was decided is told.
const DRAIN: Duration = Duration::from_secs(120);
/// A count that stays for so long has nothing more to take in.
const QUIET: Duration = Duration::from_millis(300);

/// As lines, and on a terminal, of the same agent.
pub(super) fn follows(plan: &Plan, metrics: &mut Vec<Metric>) -> Result<()> {
    let (world, mut workers) = recording(None, 0)?;
    let milliseconds = plan.rounds(3000, 10_000) as u32;
    as_lines(&world, &mut workers, milliseconds, metrics)?;
    on_a_terminal(&world, &mut workers, milliseconds, metrics)
}

/// What was decided, and what became of it.
struct Outcome {
    decided: u64,
    /// How long it was decided.
    seconds: f64,
    /// What the monitor told of, by its own count.
    told: u64,
    /// What of that it says that it was not sent.
    not_sent: u64,
    /// After how long it had told of everything.
    until: f64,
    /// What the agent counts as lost.
    lost: u64,
    /// Of the monitor's processor time.
    microseconds: f64,
}

impl Outcome {
    fn push(&self, how: &str, metrics: &mut Vec<Metric>) {
        let taken = (self.told - self.not_sent) as f64;
        let decided = self.decided;
        metrics.extend([
            Metric::value(
                format!("monitor {how}, beside an agent, {decided} real decisions: made"),
                "/s",
                decided as f64 / self.seconds,
            )
            .target(Target::AtLeast(RATE as f64)),
            Metric::value("  taken in", "/s", taken / self.until)
                .target(Target::AtLeast(RATE as f64 * LEAST)),
            Metric::value("  not sent, as it says", "decisions", self.not_sent as f64),
            Metric::value("  missing in the trail", "decisions", self.lost as f64)
                .target(Target::AtMost(0.0)),
            Metric::value("  processor time for one", "µs", self.microseconds / taken),
        ]);
    }
}

/// Has decisions made, and waits until they are told and recorded. `told`: how many the monitor has told of, taken in or not sent.
fn storm(
    world: &World,
    monitor: u32,
    make: impl FnOnce() -> Result<u64>,
    told: impl Fn() -> Result<u64>,
) -> Result<Outcome> {
    at_rest(world)?;
    let told_before = still(&told)?;
    let (before, recorded_before) = (Counts::read(world)?, recorded(world)?);
    let computed = processor::microseconds(&[monitor]);
    let start = Instant::now();
    let decided = make()?;
    let seconds = start.elapsed().as_secs_f64();
    // What is lost on the way to the agent is told to nobody.
    wait_for("the monitor to tell of all decisions", DRAIN, || {
        let lost = Counts::read(world)?.lost() - before.lost();
        Ok((told()? + lost >= told_before + decided).then_some(()))
    })
    .with_context(|| format!("of {decided} decisions"))?;
    let until = start.elapsed().as_secs_f64();
    let microseconds = processor::microseconds(&[monitor]) - computed;
    let after = settled(world, &before)?;
    at_rest(world)?;
    let counted = after.decided - before.decided;
    let (told, lost) = (still(&told)? - told_before, after.lost() - before.lost());
    ensure!(
        counted == decided && told <= decided && told + lost >= decided,
        "{decided} connects were refused, the kernel counted {counted}, and the monitor told of {told}; {lost} were lost"
    );
    // Read from the store: what the agent counts is not what is there.
    let in_trail = recorded(world)? - recorded_before;
    ensure!(
        in_trail + lost == decided,
        "{decided} decisions, {in_trail} of them in the trail, {lost} counted as lost"
    );
    Ok(Outcome {
        decided,
        seconds,
        told,
        not_sent: 0,
        until,
        lost,
        microseconds,
    })
}

/// Waits until a count stays as it is, and gives it.
fn still(count: impl Fn() -> Result<u64>) -> Result<u64> {
    wait_for("the monitor to have nothing more to tell", DRAIN, || {
        let before = count()?;
        thread::sleep(QUIET);
        Ok((count()? == before).then_some(before))
    })
}

/// How many decisions the trail has.
fn recorded(world: &World) -> Result<u64> {
    let graph = world.agent.get("/v1/graph")?;
    let edges = graph["edges"].as_array().context("the graph has edges")?;
    let counts = edges
        .iter()
        .flat_map(|edge| ["allowed", "denied", "would_deny"].map(|count| edge[count].as_u64().unwrap_or(0)));
    Ok(counts.sum())
}

/// What came over the pipes of a monitor.
#[derive(Default)]
struct Lines {
    taken: AtomicU64,
    not_sent: AtomicU64,
}

impl Lines {
    fn read(&self, output: impl Read) -> Result<()> {
        let mut output = BufReader::with_capacity(1 << 16, output);
        let mut line = Vec::new();
        while output.read_until(b'\n', &mut line)? > 0 {
            let decisions = after(std::str::from_utf8(&line)?, "\"count\":").unwrap_or(1);
            self.taken.fetch_add(decisions, Ordering::Relaxed);
            line.clear();
        }
        Ok(())
    }

    fn read_notices(&self, errors: impl Read) -> Result<()> {
        for line in BufReader::new(errors).lines() {
            let line = line?;
            let missed = after(&line, "\"missed\":").with_context(|| format!("the monitor says: {line}"))?;
            self.not_sent.fetch_add(missed, Ordering::Relaxed);
        }
        Ok(())
    }

    fn not_sent(&self) -> u64 {
        self.not_sent.load(Ordering::Relaxed)
    }

    fn all(&self) -> u64 {
        self.taken.load(Ordering::Relaxed) + self.not_sent()
    }
}

/// The number that follows a key.
fn after(text: &str, key: &str) -> Option<u64> {
    number(text.split_once(key)?.1)
}

fn as_lines(
    world: &World,
    workers: &mut [Worker],
    milliseconds: u32,
    metrics: &mut Vec<Metric>,
) -> Result<()> {
    let mut child = Command::new(binary()?)
        .args(["monitor", "-o", "json", "--api"])
        .arg(format!("unix://{}", world.agent.socket().display()))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    // So that it is swept up when this process is killed.
    world.sandbox.outside().child("lines")?.add(child.id())?;
    let pipes = child.stdout.take().zip(child.stderr.take());
    let (output, errors) = pipes.context("they are piped")?;
    let lines = Arc::new(Lines::default());
    let readers = [
        thread::spawn({
            let lines = Arc::clone(&lines);
            move || lines.read(output)
        }),
        thread::spawn({
            let lines = Arc::clone(&lines);
            move || lines.read_notices(errors)
        }),
    ];
    // It does not say when it listens; what is decided then is a line.
    wait_for("the monitor to listen", BEGINS, || {
        connects(workers, 2, 1)?;
        // Rarely: what repeats becomes one record.
        thread::sleep(QUIET);
        Ok((lines.all() > 0).then_some(()))
    })?;
    let before = lines.not_sent();
    let outcome = storm(
        world,
        child.id(),
        || connects(workers, ASKED, milliseconds),
        || Ok(lines.all()),
    )?;
    let not_sent = lines.not_sent() - before;
    child.kill()?;
    child.wait()?;
    for reader in readers {
        reader.join().expect("a reader does not panic")?;
    }
    Outcome { not_sent, ..outcome }.push("as lines", metrics);
    Ok(())
}

fn on_a_terminal(
    world: &World,
    workers: &mut [Worker],
    milliseconds: u32,
    metrics: &mut Vec<Metric>,
) -> Result<()> {
    let terminal = Terminal::open(&world.sandbox)?;
    terminal.enter(&format!(
        "exec {} monitor --api unix://{}",
        binary()?.display(),
        world.agent.socket().display()
    ))?;
    terminal.press(&["Enter"])?;
    terminal.shows("the view", |screen| {
        screen.contains("zt-agent monitor  ") && screen.contains("connected")
    })?;
    let said = || {
        let screen = terminal.screen()?;
        Said::of(&screen).with_context(|| format!("the screen is:\n{screen}"))
    };
    let mut keys = Vec::new();
    let make = || {
        thread::scope(|scope| {
            let made = scope.spawn(|| connects(workers, ASKED, milliseconds));
            press_until(&terminal, || made.is_finished(), &mut keys)?;
            made.join().expect("who asks for them does not panic")
        })
    };
    let pid = terminal.says("#{pane_pid}")?.parse()?;
    let outcome = storm(world, pid, make, || Ok(said()?.all))?;
    let end = said()?;
    ensure!(end.shown < end.all, "{end:?}");
    let screen = terminal.screen()?;
    ensure!(screen.contains("a sample, the trail has all"), "{screen}");
    Outcome {
        not_sent: end.not_sent,
        ..outcome
    }
    .push("on a terminal", metrics);
    metrics.push(Metric::value(
        "  shown, as it says",
        "decisions",
        end.shown as f64,
    ));
    tell_of_keys(&keys, metrics);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_notices_are_counted_in_decisions() -> Result<()> {
        let lines = Lines::default();
        lines.read(&b"{\"type\":\"decision\"}\n{\"count\":7,\"type\":\"decision\"}\n"[..])?;
        lines.read_notices(&b"lagged: {\"missed\":12}\n"[..])?;
        assert_eq!((lines.all(), lines.not_sent()), (20, 12));
        assert!(lines.read_notices(&b"error: no agent\n"[..]).is_err());
        Ok(())
    }
}
