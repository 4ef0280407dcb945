// SPDX-License-Identifier: Apache-2.0
//! Processor time of other processes: on a machine that is shared it says more than the clock.

use std::fs;

use anyhow::{Context as _, Result};
use nix::sys::time::TimeValLike as _;
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::{Pid, SysconfVar, sysconf};

/// Microseconds that these processes have computed since they began. One that has ended counts as none.
pub(crate) fn microseconds(pids: &[u32]) -> f64 {
    let ticks: u64 = pids.iter().filter_map(|pid| ticks(*pid)).sum();
    let per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100);
    ticks as f64 * 1e6 / per_second as f64
}

/// Nanoseconds that a process has computed since it began, in all its threads and in the kernel on its behalf. Interrupts that
/// come meanwhile count as its own; those that its packets set off are among them.
pub(crate) fn nanoseconds(pid: u32) -> Result<u64> {
    let read = || clock_gettime(clock_getcpuclockid(Pid::from_raw(pid as i32))?);
    let time = read().with_context(|| format!("the processor time of process {pid}"))?;
    Ok(time.num_nanoseconds() as u64)
}

/// For the process itself and for the kernel on its behalf.
fn ticks(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Its name, in parentheses, may have spaces.
    let (_, fields) = text.rsplit_once(") ")?;
    let mut times = fields.split(' ').skip(11).map(|field| field.parse::<u64>().ok());
    Some(times.next()?? + times.next()??)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_computes() {
        let (me, nobody) = (std::process::id(), u32::MAX);
        let before = microseconds(&[me]);
        let mut number = 1_u64;
        while microseconds(&[me]) < before + 20_000.0 {
            number = std::hint::black_box(number.wrapping_mul(3));
        }
        assert!(microseconds(&[nobody]) < 1.0);
    }

    #[test]
    fn the_finer_clock_goes_on_as_the_other_does() -> Result<()> {
        let me = std::process::id();
        let (fine, coarse) = (nanoseconds(me)?, microseconds(&[me]));
        let mut number = 1_u64;
        while microseconds(&[me]) < coarse + 50_000.0 {
            number = std::hint::black_box(number.wrapping_mul(3));
        }
        // The other one counts whole ticks, of ten milliseconds.
        let passed = nanoseconds(me)? - fine;
        assert!(passed > 20_000_000, "{passed}");
        // More than there may be, and as many bits as a clock's number has room for.
        assert!(nanoseconds(0x0fff_ffff).is_err());
        Ok(())
    }
}
