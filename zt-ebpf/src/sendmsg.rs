// SPDX-License-Identifier: Apache-2.0
//! `cgroup/sendmsg4`, `cgroup/sendmsg6`: unconnected datagrams. UDP has no handshake, so a *flow* is decided on: once
//! a revision, with the answer kept in `zt_flows`, and what comes back on an admitted flow is a reply.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::BPF_ANY;
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use zt_common::abi::{FLOW_IDLE, FlowKey, FlowState};
use zt_common::address::Address;
use zt_common::counter::Counter;
use zt_common::entry::Flow;
use zt_common::event::{Hook, IPV6};
use zt_common::verdict::{Reason, Verdict};

use crate::connect::{ALLOW, REFUSE, UDP, destination_v6, local_port, port_and_protocol};
use crate::emit::Decision;
use crate::lookup::{self, Target};
use crate::own::Own;
use crate::{context, emit, judge, maps};

/// The key of a flow as one end sees it.
#[inline(always)]
pub fn flow_key(workload: u64, remote: &Address, remote_port: u16, local_port: u16) -> FlowKey {
    FlowKey {
        workload,
        remote: *remote,
        remote_port,
        local_port,
        protocol: UDP,
        reserved: [0; 3],
    }
}

/// What is known of a flow. Numbers with a value on every path: an enum over the map's pointer becomes arithmetic
/// on that pointer, which the verifier refuses.
pub struct Prior {
    revision: u64,
    source: u64,
    destination: u64,
    /// 0: never decided, forgotten, or idle for so long that it is over. 1: decided under another revision or
    /// directory. 2: decided, and in force.
    standing: u32,
    allowed: u8,
    inbound: u8,
    /// The port that policy speaks about.
    pub target_port: u16,
}

impl Prior {
    /// The decision in force, if there is one: whether it allows.
    #[inline(always)]
    pub fn in_force(&self) -> Option<bool> {
        (self.standing == 2).then_some(self.allowed == 1)
    }

    /// Whether the flow is under way and the remote party began it.
    #[inline(always)]
    pub fn began_remotely(&self) -> bool {
        self.standing != 0 && self.inbound == 1
    }

    /// Whether the flow is under way and this end began it.
    #[inline(always)]
    pub fn began_here(&self) -> bool {
        self.standing != 0 && self.inbound == 0
    }

    /// Whether a new decision says what the record already says.
    #[inline(always)]
    pub fn says(&self, flow: &Flow, verdict: &Verdict) -> bool {
        self.standing != 0
            && self.revision == verdict.revision
            && self.source == flow.source
            && self.destination == flow.destination
            && self.allowed == u8::from(verdict.allowed)
    }
}

/// Looks a flow up and, where it is in force, notes that a datagram passed.
#[inline(always)]
pub fn known(key: &FlowKey, directory: u64, now: u64) -> Prior {
    let mut prior = Prior {
        revision: 0,
        source: 0,
        destination: 0,
        standing: 0,
        allowed: 0,
        inbound: 0,
        target_port: 0,
    };
    if let Some(place) = maps::zt_flows.get_ptr_mut(key) {
        // SAFETY: an entry of an LRU map may be reused under us for another flow; both are flows of this map, and a
        // mixed-up `last_seen` only shortens or prolongs an idle time.
        let state = unsafe { &mut *place };
        if now.saturating_sub(state.last_seen) > FLOW_IDLE {
            return prior;
        }
        prior.standing = 1;
        prior.allowed = state.allowed;
        prior.inbound = state.inbound;
        prior.revision = state.revision;
        prior.source = state.source;
        prior.destination = state.destination;
        prior.target_port = state.target_port;
        if state.directory == directory && state.revision == judge::revision() {
            prior.standing = 2;
            state.last_seen = now;
        }
    }
    prior
}

/// Files what was decided of a flow.
#[inline(always)]
pub fn decided(key: &FlowKey, flow: &Flow, verdict: &Verdict, directory: u64, inbound: bool, now: u64) {
    let state = FlowState {
        revision: verdict.revision,
        directory,
        source: flow.source,
        destination: flow.destination,
        target_port: flow.port,
        allowed: u8::from(verdict.allowed),
        inbound: u8::from(inbound),
        reserved: 0,
        last_seen: now,
    };
    let _ = maps::zt_flows.insert(key, state, u64::from(BPF_ANY));
}

/// Whether a datagram to this remote answers one that was admitted.
#[inline(always)]
pub fn is_reply(key: &FlowKey, directory: u64) -> bool {
    if key.local_port == 0 {
        return false;
    }
    let prior = known(key, directory, context::now());
    prior.in_force() == Some(true) && prior.began_remotely()
}

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
        if allowed || !own.enforced() {
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
    if own.alien {
        verdict = Verdict::refusal(Reason::AlienTask, verdict.revision);
    }
    decided(&key, &flow, &verdict, control.directory, inbound, started);
    let refused = !verdict.allowed && own.enforced();
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
        },
        verdict,
    );
}
