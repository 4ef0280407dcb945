// SPDX-License-Identifier: Apache-2.0
//! `cgroup/sock_create`, `post_bind4`, `post_bind6`, `sock_release`: which sockets may exist, who owns a port, and
//! what is forgotten when a socket goes.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::macros::cgroup_sock;
use aya_ebpf::programs::SockContext;
use zt_common::abi::{
    CONNECTION_ESTABLISHED, CONNECTION_OFFERS, Listener, ListenerKey, SHARE_LISTENERS, SOCKET_KEEPS,
    SOCKET_LEFT, SOCKET_NOTED, SOCKET_WRITES, Socket,
};
use zt_common::address::Address;
use zt_common::counter::Counter;
use zt_common::event::{Hook, IPV6, NOTICE_UDP_BOUND};
use zt_common::identity;
use zt_common::names::LISTENER_SHARE;
use zt_common::proof::Proof;
use zt_common::verdict::{Reason, Verdict, raw_socket_verdict};

use crate::call::{ALLOW, REFUSE, TCP, UDP};
use crate::emit::Decision;
use crate::own::Own;
use crate::{admit, context, emit, judge, maps, unnoted};

const AF_INET6: u32 = 10;
const SOCK_RAW: u32 = 3;
const IPPROTO_MPTCP: u32 = 262;

#[cgroup_sock(sock_create)]
pub fn zt_sock_create(ctx: SockContext) -> i32 {
    // SAFETY: fields of the context.
    let (family, kind, protocol) = unsafe { ((*ctx.sock).family, (*ctx.sock).type_, (*ctx.sock).protocol) };
    if kind != SOCK_RAW && (protocol == u32::from(TCP) || protocol == u32::from(UDP)) {
        return ALLOW;
    }
    let started = context::now();
    let Some(control) = maps::zt_control.get(0) else {
        return ALLOW;
    };
    let own = Own::current(control);
    let verdict = beyond_policy(&own);
    let verdict = if verdict.allowed || kind == SOCK_RAW {
        verdict
    } else if protocol == IPPROTO_MPTCP {
        Verdict::refusal(Reason::Mptcp, verdict.revision)
    } else {
        Verdict::refusal(Reason::Protocol, verdict.revision)
    };
    let made = Made {
        started,
        netns: context::netns_cookie(ctx.as_ptr()),
        // 255 where the number does not fit: only multipath TCP, which its reason names.
        protocol: if protocol > 255 { 255 } else { protocol as u8 },
        flags: if family == AF_INET6 { IPV6 } else { 0 },
    };
    answer(&own, &made, &verdict)
}

/// What policy says of a workload's right to speak what no policy can name: that to raw sockets.
#[inline(always)]
pub fn beyond_policy(own: &Own) -> Verdict {
    match judge::Table::in_force() {
        Some(table) => raw_socket_verdict(&table, own.identity),
        None => Verdict::refusal(Reason::NoPolicy, 0),
    }
}

/// A socket that is to be made.
pub struct Made {
    /// When it was asked about.
    pub started: u64,
    /// Cookie of its network namespace; 0 where that is not known.
    pub netns: u64,
    /// IP protocol number; 255 where it has none, or one that does not fit.
    pub protocol: u8,
    /// `IPV6`, or nothing.
    pub flags: u8,
}

/// Has the decision about a socket recorded: what the hook answers.
#[inline(always)]
pub fn answer(own: &Own, made: &Made, verdict: &Verdict) -> i32 {
    emit::decision(
        &Decision {
            hook: Hook::Socket,
            started: made.started,
            own,
            netns: made.netns,
            cookie: 0,
            source: own.identity,
            destination: identity::RAW_SOCKETS,
            source_address: &Address::UNSPECIFIED_V6,
            destination_address: &Address::UNSPECIFIED_V6,
            source_port: 0,
            destination_port: 0,
            target_port: 0,
            protocol: made.protocol,
            flags: made.flags,
            in_task: true,
            proof: Proof::None,
        },
        verdict,
    );
    if !verdict.allowed && own.enforced(verdict.revision) {
        REFUSE
    } else {
        ALLOW
    }
}

#[cgroup_sock(post_bind4)]
pub fn zt_post_bind4(ctx: SockContext) -> i32 {
    // SAFETY: a field of the context.
    let address = Address::from_v4_word(unsafe { (*ctx.sock).src_ip4 });
    bound(&ctx, &address);
    ALLOW
}

#[cgroup_sock(post_bind6)]
pub fn zt_post_bind6(ctx: SockContext) -> i32 {
    // SAFETY: fields of the context, word by word as the verifier wants them read.
    let address = unsafe {
        let ip6 = &raw const (*ctx.sock).src_ip6;
        Address::from_words([(*ip6)[0], (*ip6)[1], (*ip6)[2], (*ip6)[3]])
    };
    bound(&ctx, &address);
    ALLOW
}

/// Stores whose socket this is; a UDP socket can receive from here on.
#[inline(always)]
fn bound(ctx: &SockContext, address: &Address) {
    // SAFETY: fields of the context.
    let (protocol, port) = unsafe { ((*ctx.sock).protocol, (*ctx.sock).src_port as u16) };
    if protocol != u32::from(TCP) && protocol != u32::from(UDP) {
        return;
    }
    let Some(control) = maps::zt_control.get(0) else {
        return;
    };
    let own = Own::current(control);
    let netns = context::netns_cookie(ctx.as_ptr());
    // Bound before, and once more: its former place is for others.
    let cookie = context::socket_cookie(ctx.as_ptr());
    let asked = match context::stored(ctx.sock) {
        Some(mut before) => {
            forget(&mut before, cookie);
            before.flags & (SOCKET_KEEPS | SOCKET_WRITES)
        }
        None => 0,
    };
    let mut socket = Socket {
        workload: own.workload,
        cgroup: context::current_cgroup(),
        netns,
        address: *address,
        port,
        protocol: protocol as u8,
        flags: asked,
        holder: 0,
    };
    if protocol == u32::from(UDP) {
        note(&mut socket, cookie, unnoted::has_listeners(netns));
        let pid = (bpf_get_current_pid_tgid() >> 32) as u32;
        emit::notice(NOTICE_UDP_BOUND, pid, own.workload, netns);
    }
    if !context::store(ctx.sock, &socket) && socket.is_held_by(cookie) {
        // Nothing would give its place back.
        forget(&mut socket, cookie);
        unnoted::zt_listener_left(netns, 1);
    }
}

/// The place in `zt_listeners` that a socket counts for.
#[inline(always)]
fn place(socket: &Socket) -> ListenerKey {
    ListenerKey {
        netns: socket.netns,
        address: socket.address,
        port: socket.port,
        protocol: socket.protocol,
        reserved: [0; 5],
    }
}

/// Notes that the socket's workload listens at its place, if it has not had its share of such places. `doubtful`: it may share the
/// place with somebody whose own one is not noted.
#[inline(always)]
pub fn note(socket: &mut Socket, cookie: u64, doubtful: bool) {
    let mut key = place(socket);
    let wildcard = key.address.is_unspecified();
    let first = Listener {
        workload: socket.workload,
        sockets: 1,
        ambiguous: u32::from(doubtful && wildcard),
        uncounted: 0,
    };
    socket.holder = cookie as u32;
    let share = socket.workload | SHARE_LISTENERS;
    let filed = admit::filed(share);
    if admit::has_room(filed, LISTENER_SHARE)
        && maps::zt_listeners
            .insert(key, first, u64::from(BPF_NOEXIST))
            .is_ok()
    {
        admit::take_room(filed, share);
        socket.flags |= SOCKET_NOTED;
        return;
    }
    if let Some(entry) = maps::zt_listeners.get_ptr_mut(key) {
        // SAFETY: a live entry; the counter is changed atomically, the mark is only ever set.
        unsafe {
            context::add(&raw mut (*entry).sockets, 1);
            if (*entry).workload != socket.workload {
                (*entry).ambiguous = 1;
            }
        }
        socket.flags |= SOCKET_NOTED;
        return;
    }
    emit::count(Counter::ListenersFull);
    unnoted::zt_listener_left(socket.netns, 1);
    socket.flags |= SOCKET_LEFT;
    // What is noted of everywhere is not true of this place any more.
    key.address = Address::UNSPECIFIED_V4;
    doubt(&key, socket.workload);
    key.address = Address::UNSPECIFIED_V6;
    doubt(&key, socket.workload);
}

/// Marks a place where another workload listens: it names nobody.
#[inline(always)]
fn doubt(key: &ListenerKey, workload: u64) {
    if let Some(entry) = maps::zt_listeners.get_ptr_mut(key) {
        // SAFETY: a live entry, whose mark is only ever set.
        unsafe {
            if (*entry).workload != workload {
                (*entry).ambiguous = 1;
            }
        }
    }
}

#[cgroup_sock(sock_release)]
pub fn zt_sock_release(ctx: SockContext) -> i32 {
    // SAFETY: a field of the context.
    let protocol = unsafe { (*ctx.sock).protocol };
    if protocol != u32::from(TCP) && protocol != u32::from(UDP) {
        return ALLOW;
    }
    let cookie = context::socket_cookie(ctx.as_ptr());
    if let Some(mut socket) = context::stored(ctx.sock) {
        if forget(&mut socket, cookie) {
            // It may be told once more that the listener is none any more.
            context::store(ctx.sock, &socket);
        }
    }
    // SAFETY: read once, copied at once.
    if let Some(connection) = unsafe { maps::zt_connections.get(cookie) } {
        // An established TCP connection may outlive its last descriptor; it is forgotten when TCP closes it. So is one
        // whose handshake bears identities: that may come to its end at this very moment, on another processor.
        if connection.protocol == UDP || connection.flags & (CONNECTION_ESTABLISHED | CONNECTION_OFFERS) == 0
        {
            admit::closed(cookie);
        }
    }
    ALLOW
}

/// Takes back what is noted of a socket's listening, if anything is of this very socket: what a listener's child has inherited is
/// the listener's. Whether anything was; what is to be stored says that nothing is.
#[inline(always)]
pub fn forget(socket: &mut Socket, cookie: u64) -> bool {
    let held = socket.is_held_by(cookie);
    let flags = socket.flags;
    socket.flags &= !(SOCKET_NOTED | SOCKET_LEFT);
    if !held {
        return false;
    }
    if flags & SOCKET_LEFT != 0 {
        unnoted::zt_listener_left(socket.netns, u64::MAX);
    }
    if flags & SOCKET_NOTED != 0 {
        give_back(socket);
    }
    true
}

/// Takes a listener's place back.
#[inline(always)]
fn give_back(socket: &Socket) {
    let key = place(socket);
    let Some(entry) = maps::zt_listeners.get_ptr_mut(key) else {
        return;
    };
    // SAFETY: a live entry; the counter is changed atomically.
    let (before, share, counted) = unsafe {
        (
            context::fetch_add(&raw mut (*entry).sockets, u64::MAX),
            (*entry).workload | SHARE_LISTENERS,
            (*entry).uncounted == 0,
        )
    };
    if before <= 1 && maps::zt_listeners.remove(key).is_ok() && counted {
        admit::give_room(share);
    }
}
