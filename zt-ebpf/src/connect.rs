// SPDX-License-Identifier: Apache-2.0
//! `cgroup/connect4`, `cgroup/connect6`: the source's decision, before a packet exists.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use zt_common::abi::{
    CONNECTION_DENIED, CONNECTION_ENFORCED, CONNECTION_ESTABLISHED, CONNECTION_HERE, CONNECTION_INBOUND,
    CONNECTION_IPV6, CONNECTION_LOCAL, Connection, FlowKey, SOCKET_HERE, SOCKET_LOCAL,
};
use zt_common::address::Address;
use zt_common::entry::Flow;
use zt_common::event::{Hook, IPV6};
use zt_common::verdict::{Reason, Verdict};

use crate::call::{ALLOW, REFUSE, TCP, UDP, destination_v6, local_port, port_and_protocol, socket_of};
use crate::emit::Decision;
use crate::lookup::{self, Target};
use crate::own::Own;
use crate::{admit, context, emit, flow, judge, maps};

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

/// Files a connected UDP socket that answers: the destination's end of the flow that its remote party began.
#[inline(always)]
fn answers(own: &Own, begun: &Flow, verdict: &Verdict, netns: u64, key: &FlowKey, cookie: u64, family: u8) {
    let mut flags = CONNECTION_INBOUND | CONNECTION_ESTABLISHED;
    if family == IPV6 {
        flags |= CONNECTION_IPV6;
    }
    if own.enforced() {
        flags |= CONNECTION_ENFORCED;
    }
    admit::connection(
        cookie,
        &Connection {
            netns,
            workload: own.workload,
            source: begun.source,
            destination: begun.destination,
            rule: verdict.rule,
            revision: verdict.revision,
            local: Address::UNSPECIFIED_V6,
            remote: key.remote,
            local_port: key.local_port,
            remote_port: key.remote_port,
            target_port: begun.port,
            protocol: UDP,
            flags,
        },
    );
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
    if protocol == UDP {
        let key = flow::flow_key(own.workload, address, port, local_port(ctx.sock_addr));
        // A server that answers each client on a socket of its own.
        let begun = flow::answered(&key, control.directory);
        if begun.port != 0 {
            let verdict = judge::judge(&begun);
            // Filed before the swap of a policy returns, it is judged again by the sweep that follows the swap.
            answers(&own, &begun, &verdict, netns, &key, cookie, family);
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
    if own.alien {
        verdict = Verdict::refusal(Reason::AlienTask, verdict.revision);
    }
    let refused = !verdict.allowed && own.enforced();
    if !refused {
        let mut flags = if family == IPV6 { CONNECTION_IPV6 } else { 0 };
        if party.here {
            flags |= CONNECTION_HERE;
        }
        if party.local {
            flags |= CONNECTION_LOCAL;
        }
        if own.enforced() {
            flags |= CONNECTION_ENFORCED;
        }
        if !verdict.allowed {
            flags |= CONNECTION_DENIED;
        }
        let filed = admit::connection(
            cookie,
            &Connection {
                netns,
                workload: own.workload,
                source: flow.source,
                destination: flow.destination,
                rule: verdict.rule,
                revision: verdict.revision,
                local: Address::UNSPECIFIED_V6,
                remote: *address,
                local_port: 0,
                remote_port: port,
                target_port: party.port,
                protocol,
                flags,
            },
        );
        if !filed && party.here && protocol == TCP {
            let local = if party.local { SOCKET_LOCAL } else { 0 };
            admit::unfiled(socket_of(ctx.sock_addr), own.workload, netns, SOCKET_HERE | local);
        }
    }
    emit::decision(
        &Decision {
            hook: Hook::Connect,
            started,
            own: &own,
            netns,
            cookie,
            source: flow.source,
            destination: flow.destination,
            source_address: &Address::UNSPECIFIED_V6,
            destination_address: address,
            source_port: 0,
            destination_port: port,
            target_port: party.port,
            protocol,
            flags: family,
            in_task: true,
        },
        &verdict,
    );
    if refused { REFUSE } else { ALLOW }
}
