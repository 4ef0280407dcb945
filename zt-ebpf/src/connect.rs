// SPDX-License-Identifier: Apache-2.0
//! `cgroup/connect4`, `cgroup/connect6`: the source's decision, before a packet exists.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use zt_common::abi::{
    CONNECTION_DENIED, CONNECTION_ELSEWHERE, CONNECTION_ENFORCED, CONNECTION_ESTABLISHED, CONNECTION_FRONT,
    CONNECTION_HERE, CONNECTION_INBOUND, CONNECTION_IPV6, CONNECTION_LOCAL, CONNECTION_PORTS,
    CONNECTION_REQUIRES, CONNECTION_TRANSLATED, Connection, SOCKET_FRONT, SOCKET_HERE,
};
use zt_common::address::Address;
use zt_common::entry::Flow;
use zt_common::event::{Hook, IPV6};
use zt_common::identity;
use zt_common::proof::Proof;
use zt_common::verdict::{Reason, Verdict};

use crate::call::{ALLOW, REFUSE, TCP, UDP, destination_v6, local_port, port_and_protocol, socket_of};
use crate::emit::Told;
use crate::lookup::{self, Target};
use crate::own::Own;
use crate::{admit, context, emit, flow, judge, keys, maps};

#[cgroup_sock_addr(connect4)]
pub fn zt_connect4(ctx: SockAddrContext) -> i32 {
    // SAFETY: a field of the context.
    let address = Address::from_v4_word(unsafe { (*ctx.sock_addr).user_ip4 });
    connect(&ctx, &address, 0)
}

#[cgroup_sock_addr(connect6)]
pub fn zt_connect6(ctx: SockAddrContext) -> i32 {
    connect(&ctx, &destination_v6(ctx.sock_addr), IPV6)
}

#[inline(always)]
fn connect(ctx: &SockAddrContext, address: &Address, family: u8) -> i32 {
    let (port, protocol) = port_and_protocol(ctx.sock_addr);
    if protocol != TCP && protocol != UDP {
        // Sockets of other protocols were decided on when they were created.
        return ALLOW;
    }
    let started = context::now();
    let Some(control) = maps::zt_control.get(0) else {
        return ALLOW;
    };
    let own = Own::current(control);
    let netns = context::netns_cookie(ctx.as_ptr());
    let cookie = context::socket_cookie(ctx.as_ptr());
    let target = Target {
        netns,
        address: *address,
        port,
        protocol,
    };
    // One for all that may be filed here: there is no room for two on the stack.
    let mut entry = Connection {
        netns,
        workload: own.workload,
        remote: *address,
        remote_port: port,
        protocol,
        ..Connection::BLANK
    };
    if family == IPV6 {
        entry.flags |= CONNECTION_IPV6;
    }
    if protocol == UDP {
        let key = flow::flow_key(own.workload, address, port, local_port(ctx.sock_addr));
        // A server that answers each client on a socket of its own: the destination's end of the flow that its remote
        // party began.
        let begun = flow::answered(&key, control.directory);
        if begun.port != 0 {
            let verdict = judge::judge(&begun);
            entry.flags |= CONNECTION_INBOUND | CONNECTION_ESTABLISHED;
            if own.enforced(verdict.revision) {
                entry.flags |= CONNECTION_ENFORCED;
            }
            entry.source = begun.source;
            entry.destination = begun.destination;
            entry.rule = verdict.rule;
            entry.revision = verdict.revision;
            entry.local_port = key.local_port;
            entry.target_port = begun.port;
            // Filed before the swap of a policy returns, it is judged again by the sweep that follows the swap.
            admit::connection(cookie, &entry);
            return ALLOW;
        }
    }

    let mut party = lookup::destination(control, &target);
    let mut flow = Flow {
        source: own.identity,
        destination: party.identity,
        port: party.port,
        protocol,
    };
    let mut verdict = judge::judge(&flow);
    if party.outdated(&verdict) {
        party = lookup::destination(control, &target);
        flow.destination = party.identity;
        verdict = judge::judge(&flow);
    }
    if own.is_alien() {
        verdict = Verdict::refusal(Reason::AlienTask, verdict.revision);
    }
    // Where the handshake bears identities, it shows a moment later who answers.
    let mut proves = false;
    if protocol == TCP && keys::is_on(control) {
        if keys::has_key(party.node) {
            entry.node = party.node;
        }
        entry.flags |= party.front;
        if party.identity == identity::HOST || party.identity == identity::REMOTE_NODE && entry.node != 0 {
            entry.flags |= CONNECTION_FRONT | CONNECTION_PORTS | CONNECTION_TRANSLATED;
        }
        proves = party.here || party.front != 0 || entry.node != 0;
    }
    // Of several ports behind a virtual address nobody could say whether who answers is one of those.
    if (!proves || entry.flags & CONNECTION_PORTS != 0) && !judge::proof_waits(control) {
        verdict = verdict.unproven();
    }
    if verdict.proof {
        entry.flags |= CONNECTION_REQUIRES;
    }
    let enforced = own.enforced(verdict.revision);
    if enforced {
        entry.flags |= CONNECTION_ENFORCED;
    }
    entry.source = flow.source;
    entry.destination = flow.destination;
    entry.target_port = flow.port;
    entry.rule = verdict.rule;
    entry.revision = verdict.revision;
    entry.reason = verdict.reason as u8;
    if party.here {
        entry.flags |= CONNECTION_HERE;
    }
    if party.local {
        entry.flags |= CONNECTION_LOCAL;
    }
    if party.node != 0 && identity::is_workload(party.identity) {
        entry.flags |= CONNECTION_ELSEWHERE;
    }
    if !verdict.allowed {
        entry.flags |= CONNECTION_DENIED;
    }
    entry.pid = context::current_process();
    context::current_name(&mut entry.comm);
    entry.latency = (context::now() - started) as u32;
    if !verdict.allowed && enforced {
        emit::told(cookie, started, &entry, NOW);
        return REFUSE;
    }
    if proves {
        entry.started = started;
    }
    let filed = admit::connection(cookie, &entry);
    if !filed && entry.flags & CONNECTION_REQUIRES != 0 {
        // Nobody would ask at the end of the handshake.
        entry.flags |= CONNECTION_DENIED;
        entry.reason = Reason::ProofRequired as u8;
        if enforced {
            emit::told(cookie, started, &entry, NOW);
            return REFUSE;
        }
    }
    if !filed && protocol == TCP {
        let known = party.here && entry.flags & CONNECTION_FRONT == 0;
        if known || entry.flags & CONNECTION_ELSEWHERE == 0 && keys::is_on(control) {
            let flag = if known { SOCKET_HERE } else { SOCKET_FRONT };
            admit::unfiled(socket_of(ctx.sock_addr), own.workload, netns, flag);
        }
    }
    if !filed || entry.started == 0 {
        emit::told(cookie, started, &entry, NOW);
    }
    ALLOW
}

/// The record of what no handshake will prove.
const NOW: Told = Told {
    hook: Hook::Connect,
    flags: 0,
    proof: Proof::None,
};
