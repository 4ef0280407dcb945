// SPDX-License-Identifier: Apache-2.0
//! Of an agent, the stream of decisions alone: as many a second as one likes.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use zt_agent::audit::record::Entry;
use zt_tests::entries::Maker;

/// Different records. Then they come again.
const DIFFERENT: u64 = 4096;
/// Most events that are written at once, as an agent that is behind does.
const AT_ONCE: u64 = 512;
/// How often what is due is sent.
const PACE: Duration = Duration::from_millis(1);

const HEAD: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n";
const STATUS: &str = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 16\r\nConnection: close\r\n\r\n{\"node\":\"bench\"}";

/// Decisions as events, each of one connection.
pub(super) fn events() -> Result<Vec<String>> {
    let maker = Maker {
        start: zt_agent::audit::clock::now(),
        step: 20_000,
        parties: 300,
    };
    let mut events = Vec::new();
    for number in 0..DIFFERENT {
        let mut entry = maker.entry(number);
        let Entry::Decision(record) = &mut entry else {
            continue;
        };
        record.count = 1;
        let data = serde_json::to_string(&entry)?;
        events.push(format!("id: {}\ndata: {data}\n\n", entry.id()));
    }
    Ok(events)
}

/// Listens at a path. Whoever asks for decisions is handed on; whoever asks for something else is told which node it is.
pub(super) fn listen(path: &Path) -> Result<Receiver<UnixStream>> {
    let listener = UnixListener::bind(path)?;
    let (to, streams) = mpsc::channel();
    // It ends with the process.
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            match answer(stream) {
                Ok(Some(stream)) => {
                    // The benchmark may be over.
                    let _ = to.send(stream);
                }
                Ok(None) => {}
                Err(error) => eprintln!("the stream of the benchmark: {error:#}"),
            }
        }
    });
    Ok(streams)
}

fn answer(mut stream: UnixStream) -> Result<Option<UnixStream>> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let mut line = String::new();
    while line.trim() != "" || line.is_empty() {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            bail!("{first:?} and no more");
        }
    }
    if first.contains("/v1/decisions/stream") {
        stream.write_all(HEAD.as_bytes())?;
        return Ok(Some(stream));
    }
    stream.write_all(STATUS.as_bytes())?;
    Ok(None)
}

/// What was sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    pub(super) events: u64,
    pub(super) seconds: f64,
}

impl Sent {
    /// A second.
    pub(super) fn rate(self) -> f64 {
        self.events as f64 / self.seconds
    }
}

/// Sends `rate` events a second for so long. A reader who is slower makes it last longer.
pub(super) fn pump(stream: &mut UnixStream, events: &[String], rate: u64, seconds: u64) -> Result<Sent> {
    let (total, begun) = (rate * seconds, Instant::now());
    let mut sent = 0;
    let mut text = String::new();
    let mut next = events.iter().cycle();
    while sent < total {
        let due = (begun.elapsed().as_micros() as u64 * rate / 1_000_000).min(total);
        if due == sent {
            thread::sleep(PACE);
            continue;
        }
        let count = (due - sent).min(AT_ONCE);
        text.clear();
        for event in next.by_ref().take(count as usize) {
            text.push_str(event);
        }
        stream.write_all(text.as_bytes())?;
        sent += count;
    }
    Ok(Sent {
        events: sent,
        seconds: begun.elapsed().as_secs_f64(),
    })
}
