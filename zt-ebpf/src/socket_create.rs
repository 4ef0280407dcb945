// SPDX-License-Identifier: Apache-2.0
//! `socket_create` of BPF LSM, for cgroups, where the kernel has that: sockets of the families that `cgroup/sock_create` is not asked
//! about, such as packet sockets. Whoever has one speaks what no policy can name.

use aya_ebpf::macros::lsm_cgroup;
use aya_ebpf::programs::LsmContext;
use zt_common::names::PROBE_PROTOCOL;

use crate::call::{ALLOW, REFUSE};
use crate::own::Own;
use crate::socket::{Made, answer, beyond_policy};
use crate::{context, maps};

const AF_UNSPEC: i32 = 0;
const AF_UNIX: i32 = 1;
const AF_INET: i32 = 2;
const AF_INET6: i32 = 10;
const AF_KEY: i32 = 15;
const AF_NETLINK: i32 = 16;
const AF_ALG: i32 = 38;
/// Records that are read off connections of TCP which somebody has made.
const AF_KCM: i32 = 41;

/// Of a record: the socket has no IP protocol.
const NO_PROTOCOL: u8 = 255;

/// Whether sockets of a family are other hooks' to decide on, or reach nobody but the kernel and processes of the same machine. A
/// family that is not known here may reach anybody.
#[inline(always)]
fn is_no_concern(family: i32) -> bool {
    matches!(
        family,
        AF_UNSPEC | AF_UNIX | AF_INET | AF_INET6 | AF_KEY | AF_NETLINK | AF_ALG | AF_KCM
    )
}

#[lsm_cgroup(hook = "socket_create")]
pub fn zt_socket_create(ctx: LsmContext) -> i32 {
    let (family, of_kernel): (i32, i32) = (ctx.arg(0), ctx.arg(3));
    if of_kernel != 0 || is_no_concern(family) {
        return ALLOW;
    }
    let started = context::now();
    let Some(control) = maps::zt_control.get(0) else {
        return ALLOW;
    };
    let own = Own::current(control);
    let verdict = beyond_policy(&own);
    let made = Made {
        started,
        // There is no socket yet whose namespace could be asked for.
        netns: 0,
        protocol: NO_PROTOCOL,
        flags: 0,
    };
    answer(&own, &made, &verdict)
}

/// Refuses a socket that nobody makes: by that the agent sees whether the kernel asks such programs, which it loads and attaches
/// also where it does not.
#[lsm_cgroup(hook = "socket_create")]
pub fn zt_lsm_probe(ctx: LsmContext) -> i32 {
    let (family, protocol): (i32, i32) = (ctx.arg(0), ctx.arg(2));
    if family == AF_UNIX && protocol == PROBE_PROTOCOL {
        REFUSE
    } else {
        ALLOW
    }
}
