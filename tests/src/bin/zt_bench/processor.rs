// SPDX-License-Identifier: Apache-2.0
//! Processor time of other processes: on a machine that is shared it says more than the clock.

use std::fs;

use nix::unistd::{SysconfVar, sysconf};

/// Microseconds that these processes have computed since they began. One that has ended counts as none.
pub(crate) fn microseconds(pids: &[u32]) -> f64 {
    let ticks: u64 = pids.iter().filter_map(|pid| ticks(*pid)).sum();
    let per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100);
    ticks as f64 * 1e6 / per_second as f64
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
}
