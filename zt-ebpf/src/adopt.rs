// SPDX-License-Identifier: Apache-2.0
//! `cgroup/setsockopt`: has a listener that is older than the hooks answer with its identity.
//!
//! A socket's callbacks can be asked for by programs only, and of a listener no hook runs any more. The agent makes one run: it
//! sets an option of its own on a descriptor that it has borrowed. The program is attached for as long as that takes.

use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::helpers::generated as helper;
use aya_ebpf::macros::cgroup_sockopt;
use aya_ebpf::programs::SockoptContext;
use zt_common::abi::SOCKET_WRITES;
use zt_common::names::{ADOPT_LEVEL, ADOPT_OPTION};

use crate::call::{ALLOW, REFUSE};
use crate::context;
use crate::ends::OPTION_CALLBACK;

/// Where the kernel hands over no more of a value.
const PAGE: i32 = 4096;
/// The value goes no further than here.
const HANDLED: i32 = -1;

#[cgroup_sockopt(setsockopt)]
pub fn zt_adopt(ctx: SockoptContext) -> i32 {
    let call = ctx.sockopt;
    // SAFETY: fields of the context.
    unsafe {
        if (*call).level != ADOPT_LEVEL || (*call).optname != ADOPT_OPTION {
            if (*call).optlen > PAGE {
                // Or kernels before 6.4 would refuse it, as if it had been changed here.
                (*call).optlen = 0;
            }
            return ALLOW;
        }
        (*call).optlen = HANDLED;
        if answers((*call).__bindgen_anon_1.sk) {
            ALLOW
        } else {
            REFUSE
        }
    }
}

/// Asks for the callbacks that write into a listener's answers; whether the kernel can.
#[inline(always)]
fn answers(socket: *mut bpf_sock) -> bool {
    const SOL_TCP: i32 = 6;
    const CALLBACKS: i32 = 1008;
    const BYTES: i32 = size_of::<u32>() as i32;
    let Some(mut stored) = context::stored(socket) else {
        return false;
    };
    let mut asked: u32 = 0;
    // SAFETY: the socket is that of the call, checked by `stored`; the option's value is a 32-bit integer.
    let known = unsafe {
        helper::bpf_getsockopt(socket.cast(), SOL_TCP, CALLBACKS, (&raw mut asked).cast(), BYTES) == 0
    };
    if !known {
        return false;
    }
    if asked & OPTION_CALLBACK != 0 {
        // Somebody else's request serves us as well, and is not ours to take back.
        return true;
    }
    let mut wanted = asked | OPTION_CALLBACK;
    // SAFETY: as above.
    let set = unsafe {
        helper::bpf_setsockopt(socket.cast(), SOL_TCP, CALLBACKS, (&raw mut wanted).cast(), BYTES) == 0
    };
    if !set {
        return false;
    }
    stored.flags |= SOCKET_WRITES;
    context::store(socket, &stored)
}
