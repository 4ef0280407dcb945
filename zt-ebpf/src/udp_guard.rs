// SPDX-License-Identifier: Apache-2.0
//! `cgroup_skb/ingress` on the cgroups of workloads that receive UDP: the destination's decision for datagrams.
//!
//! Datagrams of an admitted flow pass on one lookup. TCP passes at the first test; workloads that bind no UDP port
//! never have this program at all, so that their TCP costs nothing.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{__sk_buff, bpf_sock, bpf_sock_tuple};
use aya_ebpf::helpers::generated as helper;
use aya_ebpf::macros::cgroup_skb;
use aya_ebpf::programs::SkBuffContext;
use zt_common::address::Address;
use zt_common::counter::Counter;
use zt_common::entry::Flow;
use zt_common::event::{Hook, INBOUND, IPV6};
use zt_common::identity;
use zt_common::proof::Proof;
use zt_common::verdict::{Reason, Verdict};

use crate::call::UDP;
use crate::emit::Decision;
use crate::flow::{decided, flow_key, known};
use crate::lookup;
use crate::origin::{Origin, by_address};
use crate::own::Own;
use crate::{context, emit, judge, maps};

const DROP: i32 = 0;
const PASS: i32 = 1;
/// `TCP_ESTABLISHED`, which a connected UDP socket has too.
const CONNECTED: u32 = 1;
/// IPv6 extension headers that are looked behind. More is not received.
const EXTENSIONS: u32 = 6;

#[cgroup_skb(ingress)]
pub fn zt_udp_guard(ctx: SkBuffContext) -> i32 {
    if guard(&ctx) { PASS } else { DROP }
}

#[inline(always)]
fn guard(ctx: &SkBuffContext) -> bool {
    let skb = ctx.skb.skb;
    // SAFETY: a field of the context; the helper takes what it gives.
    let sock = unsafe {
        let sock = (*skb).__bindgen_anon_2.sk;
        if sock.is_null() {
            return true;
        }
        helper::bpf_sk_fullsock(sock)
    };
    if sock.is_null() {
        return true;
    }
    // SAFETY: checked above.
    let (protocol, state) = unsafe { ((*sock).protocol, (*sock).state) };
    // A connected socket receives from its peer alone, and that was decided in `connect`.
    if protocol != u32::from(UDP) || state == CONNECTED {
        return true;
    }
    let Some(control) = maps::zt_control.get(0) else {
        return true;
    };
    let own = Own::of_birth(control, sock);
    let Some(packet) = Packet::read(skb) else {
        let enforced = own.enforced(judge::revision());
        if enforced {
            emit::count(Counter::DatagramsRefused);
        }
        return !enforced;
    };
    // The decision and its report are functions of their own in the object, one after the other: nested, they would
    // need more stack than a program has.
    let mut outcome = Outcome::default();
    let pass = decide(ctx, sock, &own, &packet, &mut outcome);
    if outcome.told != 0 {
        report(ctx, sock, &own, &packet, &outcome);
    }
    pass
}

/// What `decide` leaves for `report`.
#[derive(Default)]
struct Outcome {
    started: u64,
    source: u64,
    destination: u64,
    rule: u64,
    revision: u64,
    port: u16,
    reason: u8,
    allowed: u8,
    outbound: u16,
    told: u16,
}

#[inline(never)]
fn decide(
    ctx: &SkBuffContext,
    sock: *mut bpf_sock,
    own: &Own,
    packet: &Packet,
    outcome: &mut Outcome,
) -> bool {
    let started = context::now();
    let Some(control) = maps::zt_control.get(0) else {
        return true;
    };
    let key = flow_key(
        own.workload,
        &packet.source,
        packet.source_port,
        packet.destination_port,
    );
    let prior = known(&key, control.directory, started);
    if let Some(allowed) = prior.in_force() {
        // What comes back on a flow that this end began is a reply.
        if allowed || !own.enforced(prior.revision) {
            return true;
        }
        emit::count(Counter::DatagramsRefused);
        return false;
    }
    let netns = context::stored(sock).map_or(0, |socket| socket.netns);
    let mut sender = origin(ctx, netns, packet);
    let outbound = prior.began_here();
    let mut flow = if outbound {
        Flow {
            source: own.identity,
            destination: sender.identity,
            port: prior.target_port,
            protocol: UDP,
        }
    } else {
        Flow {
            source: sender.identity,
            destination: own.identity,
            port: packet.destination_port,
            protocol: UDP,
        }
    };
    let mut verdict = judge::judge(&flow);
    if sender.outdated(&verdict) {
        sender = origin(ctx, netns, packet);
        if outbound {
            flow.destination = sender.identity;
        } else {
            flow.source = sender.identity;
        }
        verdict = judge::judge(&flow);
    }
    decided(&key, &flow, &verdict, control.directory, !outbound, started);
    let refused = !verdict.allowed && own.enforced(verdict.revision);
    if prior.says(&flow, &verdict) {
        if refused {
            emit::count(Counter::DatagramsRefused);
        }
    } else if sender.is_recording() && !refused {
        // The source recorded this flow at its own end.
        emit::count(Counter::Agreed);
    } else {
        outcome.started = started;
        outcome.source = flow.source;
        outcome.destination = flow.destination;
        outcome.rule = verdict.rule;
        outcome.revision = verdict.revision;
        outcome.port = flow.port;
        outcome.reason = verdict.reason as u8;
        outcome.allowed = u8::from(verdict.allowed);
        outcome.outbound = u16::from(outbound);
        outcome.told = 1;
    }
    !refused
}

#[inline(never)]
fn report(ctx: &SkBuffContext, sock: *mut bpf_sock, own: &Own, packet: &Packet, outcome: &Outcome) {
    let family = if packet.source.is_v4() { 0 } else { IPV6 };
    let (ends, flags) = if outcome.outbound != 0 {
        (
            (
                &packet.destination,
                packet.destination_port,
                &packet.source,
                packet.source_port,
            ),
            family,
        )
    } else {
        (
            (
                &packet.source,
                packet.source_port,
                &packet.destination,
                packet.destination_port,
            ),
            family | INBOUND,
        )
    };
    emit::decision(
        &Decision {
            hook: Hook::Receive,
            started: outcome.started,
            own,
            netns: context::stored(sock).map_or(0, |socket| socket.netns),
            cookie: context::socket_cookie(ctx.as_ptr()),
            source: outcome.source,
            destination: outcome.destination,
            source_address: ends.0,
            destination_address: ends.2,
            source_port: ends.1,
            destination_port: ends.3,
            target_port: outcome.port,
            protocol: UDP,
            flags,
            in_task: false,
            proof: Proof::None,
        },
        &Verdict {
            allowed: outcome.allowed != 0,
            // SAFETY: `decide` cast a `Reason` to this number.
            reason: unsafe { core::mem::transmute::<u8, Reason>(outcome.reason) },
            rule: outcome.rule,
            revision: outcome.revision,
            proof: false,
        },
    );
}

/// Who sent a datagram: from the namespace itself, the owner of the socket that has the source port; else by address.
///
/// A function of its own in the object, so that its keys do not share the caller's stack.
#[inline(never)]
fn origin(ctx: &SkBuffContext, netns: u64, packet: &Packet) -> Origin {
    if !lookup::is_local(netns, &packet.source) {
        let origin = by_address(&packet.source);
        let managed = lookup::is_here(&packet.source, origin.identity);
        return origin.recording(managed);
    }
    let Some(control) = maps::zt_control.get(0) else {
        return Origin::NOBODY;
    };
    const CURRENT_NETNS: u64 = u64::MAX;
    // The socket that would receive an answer is the one that sent.
    // SAFETY: numbers alone, for which zeros are values.
    let mut tuple: bpf_sock_tuple = unsafe { core::mem::zeroed() };
    let size = if packet.source.is_v4() {
        // SAFETY: both members are numbers alone, of which all bits are initialized.
        let ipv4 = unsafe { &mut tuple.__bindgen_anon_1.ipv4 };
        ipv4.saddr = packet.destination.v4_word();
        ipv4.daddr = packet.source.v4_word();
        ipv4.sport = packet.destination_port.to_be();
        ipv4.dport = packet.source_port.to_be();
        size_of_val(ipv4)
    } else {
        // SAFETY: as above.
        let ipv6 = unsafe { &mut tuple.__bindgen_anon_1.ipv6 };
        ipv6.saddr = packet.destination.words();
        ipv6.daddr = packet.source.words();
        ipv6.sport = packet.destination_port.to_be();
        ipv6.dport = packet.source_port.to_be();
        size_of_val(ipv6)
    };
    // SAFETY: the tuple has the size that its family asks for; the socket is released below.
    unsafe {
        let sender: *mut bpf_sock =
            helper::bpf_sk_lookup_udp(ctx.as_ptr(), &raw mut tuple, size as u32, CURRENT_NETNS, 0);
        if sender.is_null() {
            return Origin::NOBODY;
        }
        let found = Own::of_birth(control, sender);
        helper::bpf_sk_release(sender.cast());
        if found.is_alien() {
            Origin::of(identity::HOST)
        } else {
            Origin::of(found.identity).recording(true)
        }
    }
}

/// The two ends of a datagram, from its headers.
struct Packet {
    source: Address,
    destination: Address,
    source_port: u16,
    destination_port: u16,
}

impl Packet {
    /// Reads the headers, or `None` where they are cut short or hide the ports.
    #[inline(never)]
    fn read(skb: *mut __sk_buff) -> Option<Self> {
        let first: [u8; 1] = context::load(skb, 0)?;
        if first[0] >> 4 == 4 {
            let source: [u8; 4] = context::load(skb, 12)?;
            let destination: [u8; 4] = context::load(skb, 16)?;
            let header = u32::from(first[0] & 0xf) * 4;
            let (source_port, destination_port) = ports(skb, header)?;
            return Some(Self {
                source: Address::from_v4(source),
                destination: Address::from_v4(destination),
                source_port,
                destination_port,
            });
        }
        let [mut next]: [u8; 1] = context::load(skb, 6)?;
        let source: [u8; 16] = context::load(skb, 8)?;
        let destination: [u8; 16] = context::load(skb, 24)?;
        let mut offset = 40_u32;
        let mut steps = 0;
        while next != UDP {
            // Hop-by-hop, routing, destination options: a length in units of eight bytes. Anything else hides the ports.
            if steps == EXTENSIONS || !(next == 0 || next == 43 || next == 60) {
                return None;
            }
            let [following, length]: [u8; 2] = context::load(skb, offset)?;
            next = following;
            offset += (u32::from(length) + 1) * 8;
            steps += 1;
        }
        let (source_port, destination_port) = ports(skb, offset)?;
        Some(Self {
            source: Address(source),
            destination: Address(destination),
            source_port,
            destination_port,
        })
    }
}

#[inline(always)]
fn ports(skb: *mut __sk_buff, offset: u32) -> Option<(u16, u16)> {
    let [a, b, c, d]: [u8; 4] = context::load(skb, offset)?;
    Some((u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])))
}
