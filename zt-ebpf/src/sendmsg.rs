// SPDX-License-Identifier: Apache-2.0
//! `cgroup/sendmsg4`, `cgroup/sendmsg6`: unconnected datagrams. UDP has no handshake, so a *flow* is decided on: once
//! a revision, with the answer kept in `zt_flows`, and what comes back on an admitted flow is a reply.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use zt_common::abi::FlowKey;
use zt_common::address::Address;
use zt_common::counter::Counter;
use zt_common::entry::Flow;
use zt_common::event::{Hook, IPV6};
use zt_common::proof::Proof;
use zt_common::verdict::{Reason, Verdict};

use crate::call::{ALLOW, REFUSE, UDP, destination_v6, local_port, port_and_protocol};
use crate::emit::Decision;
use crate::flow::{decided, flow_key, known};
use crate::lookup::{self, Target};
use crate::own::Own;
use crate::{context, emit, judge, maps};

#[cgroup_sock_addr(sendmsg4)]
pub fn zt_sendmsg4(ctx: SockAddrContext) -> i32 {
    // SAFETY: a field of the context.
    let address = Address::from_v4_word(unsafe { (*ctx.sock_addr).user_ip4 });
    sendmsg(&ctx, &address, 0)
}

#[cgroup_sock_addr(sendmsg6)]
pub fn zt_sendmsg6(ctx: SockAddrContext) -> i32 {
    sendmsg(&ctx, &destination_v6(ctx.sock_addr), IPV6)
}

#[inline(always)]
fn sendmsg(ctx: &SockAddrContext, address: &Address, family: u8) -> i32 {
    let (port, protocol) = port_and_protocol(ctx.sock_addr);
    if protocol != UDP {
        return ALLOW;
    }
    let started = context::now();
    let Some(control) = maps::zt_control.get(0) else {
        return ALLOW;
    };
    let own = Own::current(control);
    let local_port = local_port(ctx.sock_addr);
    let key = flow_key(own.workload, address, port, local_port);
    let prior = known(&key, control.directory, started);
    if let Some(allowed) = prior.in_force() {
        if allowed || !own.enforced(prior.revision) {
            return ALLOW;
        }
        emit::count(Counter::DatagramsRefused);
        return REFUSE;
    }

    let netns = context::netns_cookie(ctx.as_ptr());
    let target = Target {
        netns,
        address: *address,
        port,
        protocol,
    };
    let mut party = lookup::destination(control, &target);
    // A reply on a flow whose decision is out of date is decided again in the direction in which it began.
    let inbound = prior.began_remotely();
    let mut flow = if inbound {
        Flow {
            source: party.identity,
            destination: own.identity,
            port: prior.target_port,
            protocol,
        }
    } else {
        Flow {
            source: own.identity,
            destination: party.identity,
            port: party.port,
            protocol,
        }
    };
    let mut verdict = judge::judge(&flow);
    if party.outdated(&verdict) {
        party = lookup::destination(control, &target);
        if inbound {
            flow.source = party.identity;
        } else {
            flow.destination = party.identity;
        }
        verdict = judge::judge(&flow);
    }
    if own.is_alien() {
        verdict = Verdict::refusal(Reason::AlienTask, verdict.revision);
    }
    decided(&key, &flow, &verdict, control.directory, inbound, started);
    let refused = !verdict.allowed && own.enforced(verdict.revision);
    if !prior.says(&flow, &verdict) {
        report(ctx, &own, netns, &key, &flow, inbound, family, started, &verdict);
    } else if refused {
        emit::count(Counter::DatagramsRefused);
    }
    if refused { REFUSE } else { ALLOW }
}

#[expect(
    clippy::too_many_arguments,
    reason = "one call site, inlined; a struct would only rename the locals"
)]
#[inline(always)]
fn report(
    ctx: &SockAddrContext,
    own: &Own,
    netns: u64,
    key: &FlowKey,
    flow: &Flow,
    inbound: bool,
    family: u8,
    started: u64,
    verdict: &Verdict,
) {
    let nowhere = Address::UNSPECIFIED_V6;
    let (source_address, source_port, destination_address, destination_port, flags) = if inbound {
        (
            &key.remote,
            key.remote_port,
            &nowhere,
            key.local_port,
            family | zt_common::event::INBOUND,
        )
    } else {
        (&nowhere, key.local_port, &key.remote, key.remote_port, family)
    };
    emit::decision(
        &Decision {
            hook: Hook::Sendmsg,
            started,
            own,
            netns,
            cookie: context::socket_cookie(ctx.as_ptr()),
            source: flow.source,
            destination: flow.destination,
            source_address,
            destination_address,
            source_port,
            destination_port,
            target_port: flow.port,
            protocol: UDP,
            flags,
            in_task: true,
            proof: Proof::None,
        },
        verdict,
    );
}
