// SPDX-License-Identifier: Apache-2.0
//! The clocks: whether somebody keeps the wall clock right, and whether it was set since the agent started.

use std::fs;
use std::io;

use nix::time::{ClockId, clock_gettime};
use nix::unistd::{SysconfVar, sysconf};

use super::finding::Finding;

/// Before this the clock is plainly wrong: Unix seconds, the start of 2026.
const FIRST: i64 = 1_767_225_600;
/// Seconds by which the wall clock may have been set unnoticed.
const STEP: f64 = 2.0;

/// What the kernel says of how its clock is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kept {
    /// Somebody keeps it.
    pub(super) synchronized: bool,
    /// Microseconds by which it may be wrong, by whoever keeps it.
    pub(super) error: i64,
}

/// Asks the kernel how its clock is kept; nothing is changed.
#[expect(unsafe_code, reason = "nix has no adjtimex")]
pub(super) fn kept() -> io::Result<Kept> {
    // SAFETY: numbers alone, for which zeros are values.
    let mut state: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes a whole structure of this type; without modes it changes nothing.
    let answer = unsafe { libc::adjtimex(&raw mut state) };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Kept {
        synchronized: answer != libc::TIME_ERROR && state.status & libc::STA_UNSYNC == 0,
        error: state.maxerror,
    })
}

/// `now`: Unix seconds.
pub(super) fn synchronized(kept: &io::Result<Kept>, now: i64) -> Finding {
    const CHECK: &str = "clock.synchronized";
    if now < FIRST {
        return Finding::failed(
            CHECK,
            "the clock shows a time before this program was written",
            "set it: certificates are not valid then, and records bear that time",
        );
    }
    match kept {
        Ok(Kept {
            synchronized: true,
            error,
        }) => Finding::ok(CHECK, format!("somebody keeps it, within {} ms", error / 1000)),
        Ok(_) => Finding::warning(
            CHECK,
            "nobody keeps it, as far as the kernel knows",
            "run chrony or systemd-timesyncd. In a virtual machine or container whose host keeps it, that cannot be seen from here",
        ),
        Err(error) => Finding::not_applicable(CHECK, format!("the kernel does not say: {error}")),
    }
}

/// Seconds since the machine started at which a process began, and those since then now, sleep included.
pub(super) fn age_of(pid: u32) -> Option<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let ticks = start_ticks(&text)?;
    let a_second = sysconf(SysconfVar::CLK_TCK)
        .ok()
        .flatten()
        .filter(|ticks| *ticks > 0)?;
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).ok()?;
    let now = now.tv_sec() as f64 + now.tv_nsec() as f64 / 1e9;
    Some(now - ticks as f64 / a_second as f64)
}

/// Field 22 of `/proc/PID/stat`; the name, field 2, may hold anything.
fn start_ticks(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// `age`: seconds that the agent has run, by a clock that nobody sets; `uptime`: by the wall clock, since it started.
pub(super) fn stepped(age: Option<f64>, uptime: Option<f64>) -> Finding {
    const CHECK: &str = "clock.steps";
    let (Some(age), Some(uptime)) = (age, uptime) else {
        return Finding::not_applicable(CHECK, "needs an agent that runs, for a time to compare with");
    };
    let step = uptime - age;
    if step.abs() < STEP {
        Finding::ok(CHECK, "the wall clock was not set since the agent started")
    } else {
        Finding::warning(
            CHECK,
            format!("the wall clock was set by {step:+.0} s since the agent started"),
            "records made before bear the time that it showed then; decisions do not depend on it, expiry of certificates does",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Status;
    use super::*;

    #[test]
    fn the_kernel_says_how_its_clock_is_kept() {
        let kept = kept();
        assert!(kept.is_ok(), "{kept:?}");
    }

    #[test]
    fn a_clock_that_nobody_keeps_is_told_of() {
        let judge = |kept, now| synchronized(&kept, now).status;
        let by = |synchronized| {
            Ok(Kept {
                synchronized,
                error: 12_345,
            })
        };
        assert_eq!(judge(by(true), FIRST + 1), Status::Ok);
        assert_eq!(judge(by(false), FIRST + 1), Status::Warning);
        assert_eq!(judge(by(true), 7), Status::Failed);
        let unknown = Err(io::ErrorKind::PermissionDenied.into());
        assert_eq!(judge(unknown, FIRST + 1), Status::NotApplicable);
    }

    #[test]
    fn a_process_has_an_age_whatever_it_is_called() {
        let stat = "42 (a) b (c) S 1 42 42 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 9876 12 13\n";
        assert_eq!(start_ticks(stat), Some(9876));
        let age = age_of(std::process::id()).expect("this process");
        assert!(age >= 0.0, "{age}");
        assert_eq!(age_of(u32::MAX), None);
    }

    #[test]
    fn a_step_is_the_difference_of_two_clocks() {
        assert_eq!(stepped(Some(100.0), Some(100.9)).status, Status::Ok);
        let found = stepped(Some(100.0), Some(3700.0));
        assert_eq!(found.status, Status::Warning);
        assert!(found.found.contains("+3600 s"), "{found:?}");
        assert!(stepped(Some(100.0), Some(40.0)).found.contains("-60 s"));
        assert_eq!(stepped(None, Some(1.0)).status, Status::NotApplicable);
    }
}
