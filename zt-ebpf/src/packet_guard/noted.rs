// SPDX-License-Identifier: Apache-2.0
//! A connection that the hooks have seen begin: judged by the names that are noted of it.

use aya_ebpf::bindings::__sk_buff;
use zt_common::abi::{
    CONNECTION_ENFORCED, CONNECTION_ESTABLISHED, CONNECTION_INBOUND, CONNECTION_LOCAL, CONNECTION_PROVEN,
    Connection, ServiceKey,
};
use zt_common::control::{Control, HAS_SERVICES, UNKNOWN_DENY};
use zt_common::entry::Flow;
use zt_common::identity;

use super::{ABSENT, DECIDED, Outcome, UNDECIDED, socket_of};
use crate::call::TCP;
use crate::own::{self, Own};
use crate::{context, judge, lookup, maps};

/// Judges a connection by the names that are noted of it, as they are now: [`DECIDED`], [`ABSENT`], or [`UNDECIDED`] where its handshake
/// is not over.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn zt_packet_noted(skb: *mut __sk_buff, cookie: u64, outcome: *mut Outcome) -> u32 {
    if outcome.is_null() {
        return UNDECIDED;
    }
    // SAFETY: checked above; the verifier knows the size from the type.
    let outcome = unsafe { &mut *outcome };
    let Some(control) = maps::zt_control.get(0) else {
        return UNDECIDED;
    };
    let Some(place) = maps::zt_connections.get_ptr(cookie) else {
        return ABSENT;
    };
    // SAFETY: the entry belongs to this socket, whose handshake wrote it.
    let connection = unsafe { &*place };
    if connection.flags & CONNECTION_ESTABLISHED == 0 {
        return UNDECIDED;
    }
    outcome.started = context::now();
    outcome.netns = connection.netns;
    outcome.inbound = connection.flags & CONNECTION_INBOUND;
    let noted = if outcome.inbound != 0 {
        connection.destination
    } else {
        connection.source
    };
    // SAFETY: read once, copied at once.
    let mut entry = unsafe { maps::zt_workloads.get(connection.workload) };
    if entry.is_none() {
        // A process that began it before the cgroup around its own was anybody's.
        // SAFETY: as above.
        entry = unsafe { maps::zt_workloads.get(zt_packet_around(skb)) };
    }
    let (mode, identity) = match entry {
        Some(workload) => (workload.mode, workload.identity),
        None => {
            let enforced = connection.flags & CONNECTION_ENFORCED != 0 || control.flags & UNKNOWN_DENY != 0;
            (own::mode_if(enforced), noted)
        }
    };
    let own = Own::stored(control, connection.workload, identity, mode);
    let mut flow = Flow {
        source: identity,
        destination: identity,
        port: connection.target_port,
        protocol: TCP,
    };
    let mut named = rename(control, connection, &mut flow);
    let mut verdict = judge::judge(&flow);
    if named != 0 && named != verdict.revision {
        // The second time both are of one revision: between two swaps lie milliseconds.
        named = rename(control, connection, &mut flow);
        verdict = judge::judge(&flow);
        if named != 0 && named != verdict.revision {
            return UNDECIDED;
        }
    }
    if connection.flags & CONNECTION_PROVEN == 0 && !judge::proof_waits(control) {
        verdict = verdict.unproven();
    }
    outcome.says(&own, &flow, &verdict);
    DECIDED
}

/// The workload around the cgroup that a packet's socket was born in, by its key in `zt_workloads`; the plain cgroup where there is none.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn zt_packet_around(skb: *mut __sk_buff) -> u64 {
    let sock = socket_of(skb);
    if sock.is_null() {
        return 0;
    }
    match maps::zt_control.get(0) {
        Some(control) => Own::of_birth(control, sock).workload,
        None => 0,
    }
}

/// Gives the other end of a connection the name that it has now, as the sweep does: the revision whose networks named it, or 0.
#[inline(always)]
fn rename(control: &Control, connection: &Connection, flow: &mut Flow) -> u64 {
    let inbound = connection.flags & CONNECTION_INBOUND != 0;
    let mut other = if inbound {
        connection.source
    } else {
        connection.destination
    };
    let mut named = 0;
    let mut port = connection.target_port;
    let mut front = 0_u32;
    if !inbound && !identity::is_workload(other) && control.flags & HAS_SERVICES != 0 {
        let key = ServiceKey {
            address: connection.remote,
            port: connection.remote_port,
            protocol: TCP,
            reserved: 0,
        };
        // SAFETY: read once, copied at once.
        if let Some(service) = unsafe { maps::zt_services.get(key) } {
            other = service.identity;
            port = service.target_port;
            front = 1;
        }
    }
    // What the networks of a policy named is named by those of the next.
    let depends = other == identity::WORLD
        || other == identity::UNKNOWN
        || other & identity::NETWORK_BIT != 0
        || identity::is_group(other);
    if front == 0 && depends && !identity::is_workload(other) && connection.flags & CONNECTION_LOCAL == 0 {
        (other, named) = lookup::network(&connection.remote);
    }
    flow.port = port;
    if inbound {
        flow.source = other;
    } else {
        flow.destination = other;
    }
    named
}
