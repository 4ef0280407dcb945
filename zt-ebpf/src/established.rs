// SPDX-License-Identifier: Apache-2.0
//! The completed handshake: the destination's decision at its end, the second look at the source's.
//!
//! The option that carries identity in the SYN will be read here: what it proves replaces what `lookup::origin`
//! concludes from sockets and addresses, and what `connect` took from the directory.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::programs::SockOpsContext;
use zt_common::abi::{
    CONNECTION_DENIED, CONNECTION_ENFORCED, CONNECTION_ESTABLISHED, CONNECTION_HERE, CONNECTION_INBOUND,
    CONNECTION_IPV6, CONNECTION_LOCAL, CONNECTION_SOURCE_MANAGED, Connection, MODE_ENFORCE, SOCKET_HERE,
    SOCKET_LOCAL, SOCKET_NOTED,
};
use zt_common::counter::Counter;
use zt_common::entry::Flow;
use zt_common::event::{Hook, INBOUND, IPV6, REFUSED_SOCKET};
use zt_common::identity;
use zt_common::verdict::{Reason, Verdict};

use crate::admit::Begun;
use crate::call::TCP;
use crate::emit::Decision;
use crate::ends::{ends, next_received, opens, socket_of, unacknowledged, watch_close};
use crate::lookup::{self, Arrival, Target};
use crate::own::Own;
use crate::{admit, context, emit, fence, judge, maps};

/// Before the SYN leaves: tells the other end, where it is on this node, whose connection this is.
///
/// Not later: a SYN that carries data (Fast Open) makes the destination's socket before the source has heard anything.
#[inline(never)]
pub fn begun(ctx: &SockOpsContext) {
    if !opens(ctx) {
        return;
    }
    // SAFETY: read once, copied at once; the entry belongs to this socket.
    let filed = unsafe { maps::zt_connections.get(context::socket_cookie(ctx.as_ptr())) };
    let (here, local, netns, workload, source) = match filed {
        Some(connection) => (
            connection.flags & CONNECTION_HERE != 0,
            connection.flags & CONNECTION_LOCAL != 0,
            connection.netns,
            connection.workload,
            connection.source,
        ),
        // There was no room for it, or nobody of ours called.
        None => match context::stored(socket_of(ctx)) {
            Some(socket) => (
                socket.flags & SOCKET_HERE != 0,
                socket.flags & SOCKET_LOCAL != 0,
                socket.netns,
                socket.workload,
                identity::UNKNOWN,
            ),
            None => (false, false, 0, 0, 0),
        },
    };
    if !here {
        return;
    }
    let ends = ends(ctx);
    let begun = Begun {
        netns: if local { netns } else { 0 },
        source: ends.local,
        destination: ends.remote,
        source_port: ends.local_port,
        destination_port: ends.remote_port,
        protocol: TCP,
    };
    // Not the next to be sent: the kernel asks for the time-out again before it repeats the SYN.
    admit::source(&begun, workload, source, unacknowledged(ctx));
}

/// The source's end. `connect` decided before the socket had a port, and policy may have changed since: a swap that
/// fell between is caught here, because the sweep could not yet see this socket.
///
/// Whether to decide `again`: for the caller to do, because the two together need more stack than a program has.
#[inline(never)]
pub fn active(ctx: &SockOpsContext) -> bool {
    let cookie = context::socket_cookie(ctx.as_ptr());
    let Some(place) = maps::zt_connections.get_ptr_mut(cookie) else {
        return false;
    };
    let ends = ends(ctx);
    // SAFETY: the entry belongs to this socket, whose handshake this is; the only other writer is its close.
    let (flags, decided) = unsafe {
        (*place).local = ends.local;
        (*place).local_port = ends.local_port;
        (*place).flags |= CONNECTION_ESTABLISHED;
        ((*place).flags, (*place).revision)
    };
    watch_close(ctx);
    // Another policy; or a refusal that only the mode of that moment held back.
    decided != judge::revision() || flags & CONNECTION_DENIED != 0
}

/// Whether this socket called `connect` itself: two that opened toward each other both complete as the passive end,
/// and both were decided in `connect`.
#[inline(always)]
pub fn connected_itself(ctx: &SockOpsContext) -> bool {
    // SAFETY: presence only.
    unsafe { maps::zt_connections.get(context::socket_cookie(ctx.as_ptr())) }.is_some()
}

/// Decides again under the policy now in force.
#[inline(never)]
pub fn again(ctx: &SockOpsContext) {
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
    let (enforced, source) = match unsafe { maps::zt_workloads.get(connection.workload) } {
        Some(workload) => (workload.mode == MODE_ENFORCE, workload.identity),
        None => (connection.flags & CONNECTION_ENFORCED != 0, connection.source),
    };
    let own = Own::stored(control, connection.workload, source, enforced);
    let target = Target {
        netns: connection.netns,
        address: connection.remote,
        port: connection.remote_port,
        protocol: TCP,
    };
    // A swap that falls into this one too is the business of the sweep after it, which sees this socket by now.
    let party = lookup::destination(control, &target);
    let flow = Flow {
        source,
        destination: party.identity,
        port: party.port,
        protocol: TCP,
    };
    let verdict = judge::judge(&flow);
    connection.destination = flow.destination;
    connection.revision = verdict.revision;
    connection.rule = verdict.rule;
    if verdict.allowed || !own.enforced() {
        return;
    }
    let ends = ends(ctx);
    let fenced = fence::raise(ctx, cookie);
    if !fenced {
        emit::count(Counter::Unfenced);
    }
    let reason = if fenced { Reason::Revoked } else { Reason::Unfenced };
    let mut flags = REFUSED_SOCKET;
    if ends.ipv6 {
        flags |= IPV6;
    }
    emit::decision(
        &Decision {
            hook: Hook::Established,
            started,
            own: &own,
            netns: connection.netns,
            cookie,
            source: flow.source,
            destination: flow.destination,
            source_address: &ends.local,
            destination_address: &ends.remote,
            source_port: ends.local_port,
            destination_port: ends.remote_port,
            target_port: flow.port,
            protocol: TCP,
            flags,
            in_task: false,
        },
        &Verdict { reason, ..verdict },
    );
}

/// The destination's end.
#[inline(never)]
pub fn passive(ctx: &SockOpsContext) {
    let cookie = context::socket_cookie(ctx.as_ptr());
    let started = context::now();
    let Some(control) = maps::zt_control.get(0) else {
        return;
    };
    let netns = context::netns_cookie(ctx.as_ptr());
    let own = match context::stored(socket_of(ctx)) {
        Some(mut socket) => {
            if socket.flags & SOCKET_NOTED != 0 {
                // Cloned from the listener, whose place this is not: closing a child must not forget the listener.
                socket.flags &= !SOCKET_NOTED;
                context::store(socket_of(ctx), &socket);
            }
            Own::of_socket(control, &socket)
        }
        None => {
            emit::count(Counter::OwnerMissing);
            Own::missing(control)
        }
    };
    let ends = ends(ctx);
    let arrival = Arrival {
        netns,
        remote: ends.remote,
        local: ends.local,
        remote_port: ends.remote_port,
        local_port: ends.local_port,
        protocol: TCP,
        // The one before the next: nothing but the SYN has been received.
        sequence: next_received(ctx).wrapping_sub(1),
    };
    let mut origin = lookup::origin(&arrival);
    let mut flow = Flow {
        source: origin.identity,
        destination: own.identity,
        port: ends.local_port,
        protocol: TCP,
    };
    let mut verdict = judge::judge(&flow);
    if origin.outdated(&verdict) {
        origin = lookup::origin(&arrival);
        flow.source = origin.identity;
        verdict = judge::judge(&flow);
    }
    let refused = !verdict.allowed && own.enforced();
    let mut event_flags = INBOUND;
    let mut flags = CONNECTION_ESTABLISHED | CONNECTION_INBOUND;
    if ends.ipv6 {
        event_flags |= IPV6;
        flags |= CONNECTION_IPV6;
    }
    if refused {
        event_flags |= REFUSED_SOCKET;
        if !fence::raise(ctx, cookie) {
            emit::count(Counter::Unfenced);
            verdict.reason = Reason::Unfenced;
        }
    } else {
        if origin.managed {
            flags |= CONNECTION_SOURCE_MANAGED;
        }
        if own.enforced() {
            flags |= CONNECTION_ENFORCED;
        }
        admit::connection(
            cookie,
            &Connection {
                netns,
                workload: own.workload,
                source: flow.source,
                destination: flow.destination,
                rule: verdict.rule,
                revision: verdict.revision,
                local: ends.local,
                remote: ends.remote,
                local_port: ends.local_port,
                remote_port: ends.remote_port,
                target_port: ends.local_port,
                protocol: TCP,
                flags,
            },
        );
        watch_close(ctx);
        if origin.managed {
            // The source recorded this connection at its own end.
            emit::count(Counter::Agreed);
            return;
        }
    }
    emit::decision(
        &Decision {
            hook: Hook::Established,
            started,
            own: &own,
            netns,
            cookie,
            source: flow.source,
            destination: flow.destination,
            source_address: &ends.remote,
            destination_address: &ends.local,
            source_port: ends.remote_port,
            destination_port: ends.local_port,
            target_port: ends.local_port,
            protocol: TCP,
            flags: event_flags,
            in_task: false,
        },
        &verdict,
    );
}
