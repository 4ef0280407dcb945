// SPDX-License-Identifier: Apache-2.0
//! Precedence over other processes for the short time in which what policy revoked is still open.

use std::time::{Duration, Instant};

/// For so long at most: what takes longer gives way to others again.
const LONGEST: Duration = Duration::from_millis(100);

/// The calling thread goes before all others until this is dropped or has lasted for long, where the system lets it
/// (`CAP_SYS_NICE`).
///
/// Real-time scheduling rather than niceness, because niceness counts within a cgroup or session only.
#[derive(Debug)]
pub(super) struct Urgent {
    until: Option<Instant>,
}

impl Urgent {
    pub(super) fn begin() -> Self {
        Self {
            until: schedule(libc::SCHED_FIFO, 1).then(|| Instant::now() + LONGEST),
        }
    }

    /// Gives way to others if it has lasted for long. To be called now and then.
    pub(super) fn check(&mut self) {
        if self.until.is_some_and(|until| Instant::now() >= until) {
            self.end();
        }
    }

    fn end(&mut self) {
        if self.until.take().is_some() {
            schedule(libc::SCHED_OTHER, 0);
        }
    }
}

impl Drop for Urgent {
    fn drop(&mut self) {
        self.end();
    }
}

/// Whether the calling thread is scheduled in this way now. Threads that it starts are not.
#[expect(unsafe_code, reason = "no crate of ours wraps sched_setscheduler")]
fn schedule(policy: libc::c_int, priority: libc::c_int) -> bool {
    let parameters = libc::sched_param {
        sched_priority: priority,
    };
    // SAFETY: a valid structure, which the kernel copies; 0 is the calling thread.
    unsafe { libc::sched_setscheduler(0, policy | libc::SCHED_RESET_ON_FORK, &raw const parameters) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(unsafe_code, reason = "no crate of ours wraps sched_getscheduler")]
    fn policy() -> i32 {
        // SAFETY: a plain number; 0 is the calling thread.
        unsafe { libc::sched_getscheduler(0) & !libc::SCHED_RESET_ON_FORK }
    }

    #[test]
    fn what_was_urgent_is_given_back() {
        let mut urgent = Urgent::begin();
        let expected = if urgent.until.is_some() {
            libc::SCHED_FIFO
        } else {
            libc::SCHED_OTHER
        };
        assert_eq!(policy(), expected);
        urgent.check();
        assert_eq!(policy(), expected, "it has not lasted for long");
        urgent.until = urgent.until.map(|_| Instant::now());
        urgent.check();
        assert_eq!(policy(), libc::SCHED_OTHER);
        let urgent = Urgent::begin();
        drop(urgent);
        assert_eq!(policy(), libc::SCHED_OTHER);
    }
}
