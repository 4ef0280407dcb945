// SPDX-License-Identifier: Apache-2.0
//! How far a long piece of work is, on a terminal.

use std::io::{self, IsTerminal as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// What takes no longer than this says nothing.
const SILENT: Duration = Duration::from_secs(1);
const EVERY: Duration = Duration::from_millis(250);
/// Back to the beginning of the line, and nothing on it.
const CLEAR: &str = "\r\x1b[K";

/// Tells of the work, from a thread of its own: also while the work waits for a server that sorts.
#[derive(Debug, Default)]
pub(in crate::cli) struct Progress {
    entries: Arc<AtomicU64>,
    thread: Option<(Sender<()>, JoinHandle<()>)>,
}

impl Progress {
    /// Begins; says nothing where standard error is no terminal.
    pub(super) fn begin() -> Self {
        Self::telling(|entries, seconds| format!("{entries} entries looked at in {seconds} s"))
    }

    /// Begins to tell how long something takes.
    pub(in crate::cli) fn waiting(what: &'static str) -> Self {
        Self::telling(move |_, seconds| format!("{what}: {seconds} s"))
    }

    fn telling(text: impl Fn(u64, u64) -> String + Send + 'static) -> Self {
        let entries = Arc::new(AtomicU64::new(0));
        let thread = io::stderr().is_terminal().then(|| {
            let (done, is_done) = mpsc::channel();
            let entries = Arc::clone(&entries);
            let tell = move || {
                let (start, mut shown) = (Instant::now(), false);
                while is_done.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
                    let seconds = start.elapsed();
                    if seconds >= SILENT {
                        let entries = entries.load(Ordering::Relaxed);
                        eprint!("{CLEAR}{}", text(entries, seconds.as_secs()));
                        shown = true;
                    }
                }
                if shown {
                    eprint!("{CLEAR}");
                }
            };
            (done, thread::spawn(tell))
        });
        Self { entries, thread }
    }

    /// So many entries were looked at.
    pub(super) fn tell(&self, entries: u64) {
        self.entries.store(entries, Ordering::Relaxed);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some((done, thread)) = self.thread.take() {
            drop(done);
            // It prints, and has nothing to fail at.
            let _ = thread.join();
        }
    }
}
