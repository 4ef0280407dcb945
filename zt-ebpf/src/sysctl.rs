// SPDX-License-Identifier: Apache-2.0
//! `cgroup/sysctl`: keeps TCP Fast Open off, which would send data before the handshake has shown who answers.

use aya_ebpf::helpers::generated as helper;
use aya_ebpf::macros::cgroup_sysctl;
use aya_ebpf::programs::SysctlContext;
use zt_common::counter::Counter;

use crate::call::{ALLOW, REFUSE};
use crate::{emit, keys, maps};

/// A longer value is none that the kernel takes.
const LONGEST: usize = 16;
const NAME: &[u8; 21] = b"net/ipv4/tcp_fastopen";

/// A workload that writes another value is not refused, as that would keep a container from starting: it writes 0.
#[cgroup_sysctl]
pub fn zt_sysctl(ctx: SysctlContext) -> i32 {
    // SAFETY: a field of the context.
    if unsafe { (*ctx.sysctl).write } == 0 {
        return ALLOW;
    }
    if !matches!(maps::zt_control.get(0), Some(control) if keys::is_on(control)) {
        return ALLOW;
    }
    let mut name = [0_u8; 32];
    // SAFETY: the buffer has the length given.
    let length =
        unsafe { helper::bpf_sysctl_get_name(ctx.sysctl, name.as_mut_ptr().cast(), name.len() as u64, 0) };
    if length != NAME.len() as i64 {
        return ALLOW;
    }
    let mut at = 0;
    while at < NAME.len() {
        if name[at] != NAME[at] {
            return ALLOW;
        }
        at += 1;
    }
    let mut value = [0_u8; LONGEST];
    // SAFETY: as above.
    let length =
        unsafe { helper::bpf_sysctl_get_new_value(ctx.sysctl, value.as_mut_ptr().cast(), LONGEST as u64) };
    // From 1 to the most, in a way that kernels before 6.4 follow: of a comparison with 0 they learn nothing.
    let length = ((length as u64).wrapping_sub(1) & (LONGEST as u64 - 1)) + 1;
    // As long as what was written: else the writer would go on with the rest.
    value = [b'\n'; LONGEST];
    value[0] = b'0';
    // SAFETY: the buffer is at least as long.
    let kept = unsafe { helper::bpf_sysctl_set_new_value(ctx.sysctl, value.as_ptr().cast(), length) };
    emit::count(Counter::FastOpenKeptOff);
    if kept == 0 { ALLOW } else { REFUSE }
}
