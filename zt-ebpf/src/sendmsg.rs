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
use crate::lookup::{self, Own, Target};
use crate::{context, emit, maps};

/// One end's view of a flow.
pub struct Datagram {
    pub workload: u64,
    pub remote: Address,
    pub remote_port: u16,
    pub local_port: u16,
}

impl Datagram {
    /// Its key in `zt_flows`.
    #[inline(always)]
    pub fn key(&self) -> FlowKey {
        FlowKey {
            workload: self.workload,
            remote: self.remote,
            remote_port: self.remote_port,
            local_port: self.local_port,
            protocol: UDP,
            reserved: [0; 3],
        }
    }
}

/// What is known of a flow: the state in force, or the last one to compare a new decision with.
pub enum Known {
    /// Decided under this revision and directory, and not idle.
    Current(FlowState),
    /// Decided under another, or idle for too long.
    Stale(FlowState),
    /// Never decided, or forgotten.
    New,
}

/// Looks a flow up and, where it is current, notes that a datagram passed.
#[inline(always)]
pub fn known(datagram: &Datagram, directory: u64, now: u64) -> Known {
    let Some(place) = maps::zt_flows.get_ptr_mut(datagram.key()) else { return Known::New };
    // SAFETY: an entry of an LRU map may be reused under us for another flow; both are flows of this map, and a
    // mixed-up `last_seen` only shortens or prolongs an idle time.
    let state = unsafe { *place };
    let idle = now.saturating_sub(state.last_seen) > FLOW_IDLE;
    if !idle && state.directory == directory && state.revision == lookup::revision() {
        // SAFETY: as above.
        unsafe { (*place).last_seen = now };
        return Known::Current(state);
    }
    Known::Stale(state)
}

/// Files what was decided of a flow.
#[inline(always)]
pub fn decided(datagram: &Datagram, flow: &Flow, verdict: &Verdict, directory: u64, inbound: bool, now: u64) {
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
    let _ = maps::zt_flows.insert(datagram.key(), state, u64::from(BPF_ANY));
}

/// Whether a new decision says what the record already says.
#[inline(always)]
pub fn same(state: &FlowState, flow: &Flow, verdict: &Verdict) -> bool {
    state.revision == verdict.revision
        && state.source == flow.source
        && state.destination == flow.destination
        && state.allowed == u8::from(verdict.allowed)
}

/// Whether a datagram to this remote answers one that was admitted.
#[inline(always)]
pub fn is_reply(datagram: &Datagram, directory: u64) -> bool {
    datagram.local_port != 0
        && matches!(known(datagram, directory, context::now()), Known::Current(state) if state.inbound == 1 && state.allowed == 1)
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
    let Some(control) = maps::zt_control.get(0) else { return ALLOW };
    let own = Own::current(control);
    let local_port = local_port(ctx.sock_addr);
    let datagram = Datagram { workload: own.workload, remote: *address, remote_port: port, local_port };
    let known = known(&datagram, control.directory, started);
    if let Known::Current(state) = &known {
        if state.allowed == 1 || !own.enforced {
            return ALLOW;
        }
        emit::count(Counter::DatagramsRefused);
        return REFUSE;
    }

    let netns = context::netns_cookie(ctx.as_ptr());
    let party = lookup::destination(control, &Target { netns, address: *address, port, protocol });
    // A reply on a flow whose decision is out of date is decided again in the direction in which it began.
    let inbound = matches!(&known, Known::Stale(state) if state.inbound == 1 && started.saturating_sub(state.last_seen) <= FLOW_IDLE);
    let flow = match &known {
        Known::Stale(state) if inbound => {
            Flow { source: party.identity, destination: own.identity, port: state.target_port, protocol }
        }
        _ => Flow { source: own.identity, destination: party.identity, port: party.port, protocol },
    };
    let verdict = if own.alien {
        Verdict::refusal(Reason::AlienTask, lookup::revision())
    } else {
        lookup::judge(&flow)
    };
    decided(&datagram, &flow, &verdict, control.directory, inbound, started);
    let refused = !verdict.allowed && own.enforced;
    let repeated = matches!(&known, Known::Stale(state) if same(state, &flow, &verdict));
    if !repeated {
        report(ctx, &own, netns, &datagram, &flow, inbound, family, started, &verdict);
    } else if refused {
        emit::count(Counter::DatagramsRefused);
    }
    if refused { REFUSE } else { ALLOW }
}

#[expect(clippy::too_many_arguments, reason = "one call site, inlined; a struct would only rename the locals")]
#[inline(always)]
fn report(
    ctx: &SockAddrContext,
    own: &Own,
    netns: u64,
    datagram: &Datagram,
    flow: &Flow,
    inbound: bool,
    family: u8,
    started: u64,
    verdict: &Verdict,
) {
    let nowhere = Address::UNSPECIFIED_V6;
    let (source_address, source_port, destination_address, destination_port, flags) = if inbound {
        (&datagram.remote, datagram.remote_port, &nowhere, datagram.local_port, family | zt_common::event::INBOUND)
    } else {
        (&nowhere, datagram.local_port, &datagram.remote, datagram.remote_port, family)
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
