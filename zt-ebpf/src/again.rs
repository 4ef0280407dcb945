// SPDX-License-Identifier: Apache-2.0
//! The source's end decides again when its handshake is complete: policy has changed meanwhile, or somebody else has answered.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::bpf_sock_ops;
use aya_ebpf::programs::SockOpsContext;
use zt_common::abi::{CONNECTION_DENIED, CONNECTION_ENFORCED, CONNECTION_PORTS, Connection};
use zt_common::counter::Counter;
use zt_common::entry::Flow;
use zt_common::event::{Hook, REFUSED_SOCKET};
use zt_common::identity;
use zt_common::verdict::Reason;

use crate::call::TCP;
use crate::emit::Told;
use crate::established::is_another;
use crate::lookup::{self, Target};
use crate::own::{self, Own};
use crate::proof::Claim;
use crate::{context, emit, fence, judge, maps};

/// Decides again under the policy now in force. A *global* function of the object.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn zt_again(ctx: *mut bpf_sock_ops, claim: *const Claim) -> u32 {
    if !claim.is_null() {
        // SAFETY: checked above; the verifier knows the size from the type.
        again(&SockOpsContext::new(ctx), unsafe { &*claim });
    }
    0
}

/// Whom a connection goes to under the policy now in force: the port that policy speaks about. A *global* function of the object.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn zt_called(connection: *const Connection, called: *mut u64) -> u32 {
    if connection.is_null() || called.is_null() {
        return 0;
    }
    // SAFETY: checked above; the verifier knows the sizes from the types.
    let connection = unsafe { &*connection };
    let Some(control) = maps::zt_control.get(0) else {
        return 0;
    };
    let target = Target {
        netns: connection.netns,
        address: connection.remote,
        port: connection.remote_port,
        protocol: TCP,
    };
    let party = lookup::destination(control, &target);
    // SAFETY: checked above.
    unsafe { *called = party.identity };
    u32::from(party.port)
}

#[inline(always)]
fn again(ctx: &SockOpsContext, claim: &Claim) {
    let started = context::now();
    let cookie = context::socket_cookie(ctx.as_ptr());
    let Some(place) = maps::zt_connections.get_ptr_mut(cookie) else {
        return;
    };
    // SAFETY: as in `active`.
    let connection = unsafe { &mut *place };
    let Some(control) = maps::zt_control.get(0) else {
        return;
    };
    // SAFETY: read once, copied at once.
    let (mode, source) = match unsafe { maps::zt_workloads.get(connection.workload) } {
        Some(workload) => (workload.mode, workload.identity),
        None => (
            own::mode_if(connection.flags & CONNECTION_ENFORCED != 0),
            connection.source,
        ),
    };
    let own = Own::stored(control, connection.workload, source, mode);
    let mut flow = Flow {
        source,
        destination: identity::UNKNOWN,
        port: connection.target_port,
        protocol: TCP,
    };
    let other = is_another(connection, claim);
    if claim.is_proven() && connection.flags & CONNECTION_PORTS == 0 {
        flow.destination = claim.identity;
    } else if !claim.is_invalid() {
        // A swap that falls into this one too is the business of the sweep after it, which sees this socket by now.
        let mut called = identity::UNKNOWN;
        flow.port = zt_called(&raw const *connection, &raw mut called) as u16;
        flow.destination = called;
    }
    let mut verdict = judge::judge(&flow);
    if !claim.is_proven() && !judge::proof_waits(control) {
        verdict = verdict.unproven();
    }
    let enforced = own.enforced(verdict.revision);
    let refused = !verdict.allowed && enforced;
    // Behind a virtual address was one of those each of whom policy allowed. One whom it does not allow is none of them.
    let member = other
        && identity::is_group(connection.destination)
        && (verdict.allowed
            || connection.flags & CONNECTION_DENIED != 0
            || connection.revision != verdict.revision);
    let mut told = Told {
        hook: Hook::Established,
        flags: 0,
        proof: claim.at_source(other && !member),
    };
    let mut reason = verdict.reason;
    if other && !member {
        emit::count(Counter::IdentityMismatches);
        reason = Reason::IdentityMismatch;
    } else if claim.is_invalid() {
        reason = Reason::TagInvalid;
    } else if reason as u8 == Reason::ProofRequired as u8 {
        // Whatever is done about it, this is why.
    } else if refused {
        reason = Reason::Revoked;
    } else {
        told.hook = Hook::Connect;
    }
    connection.destination = flow.destination;
    connection.target_port = flow.port;
    connection.revision = verdict.revision;
    connection.rule = verdict.rule;
    connection.flags &= !(CONNECTION_DENIED | CONNECTION_ENFORCED);
    if !verdict.allowed {
        connection.flags |= CONNECTION_DENIED;
    }
    if enforced {
        connection.flags |= CONNECTION_ENFORCED;
    }
    // SAFETY: a live entry.
    let unrecorded = unsafe { context::take(&raw mut connection.started) };
    if unrecorded == 0 && !refused {
        // The record of `connect` says it all.
        return;
    }
    if refused {
        told.flags = REFUSED_SOCKET;
        if !fence::raise(ctx, cookie) {
            emit::count(Counter::Unfenced);
            reason = Reason::Unfenced;
        }
    }
    connection.reason = reason as u8;
    if unrecorded == 0 {
        connection.latency = (context::now() - started) as u32;
    }
    let began = if unrecorded == 0 { started } else { unrecorded };
    emit::told(cookie, began, connection, told);
}
