// SPDX-License-Identifier: Apache-2.0
//! The completed handshake: the destination's decision at its end, the second look at the source's.
//!
//! What the identity option proves replaces what `lookup::origin` concludes from sockets and addresses, and what `connect`
//! took from the directory.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::bpf_sock_ops;
use aya_ebpf::programs::SockOpsContext;
use zt_common::abi::{
    CONNECTION_DENIED, CONNECTION_ENFORCED, CONNECTION_ESTABLISHED, CONNECTION_INBOUND, CONNECTION_IPV6,
    CONNECTION_LOCAL, CONNECTION_NOTED, CONNECTION_OFFERS, CONNECTION_PORTS, CONNECTION_PROVEN,
    CONNECTION_REQUIRES, CONNECTION_RESENDS, CONNECTION_SOURCE_MANAGED, CONNECTION_TRANSLATED, Connection,
    SOCKET_KEEPS, SOCKET_WRITES,
};
use zt_common::counter::Counter;
use zt_common::entry::Flow;
use zt_common::event::{Hook, REFUSED_SOCKET};
use zt_common::proof::Proof;
use zt_common::verdict::Reason;

use crate::call::TCP;
use crate::emit::Told;
use crate::ends::{ends, socket_of, watch_accepted, watch_close};
use crate::origin::Origin;
use crate::own::Own;
use crate::proof::Claim;
use crate::{admit, context, emit, fence, judge, keys, maps, option, proof, sender};

/// The source's end. `connect` decided before the socket had a port, and policy may have changed since: a swap that
/// fell between is caught here, because the sweep could not yet see this socket.
///
/// Whether to decide `again`: for the caller to do, because the two together need more stack than a program has.
///
/// A *global* function of the object, as `zt_judge` is.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn zt_active(ctx: *mut bpf_sock_ops, passive: u32, claim: *mut Claim) -> u32 {
    if claim.is_null() {
        return 0;
    }
    // SAFETY: checked above; the verifier knows the size from the type.
    let claim = unsafe { &mut *claim };
    u32::from(active(&SockOpsContext::new(ctx), passive != 0, claim))
}

#[inline(always)]
fn active(ctx: &SockOpsContext, passive: bool, claim: &mut Claim) -> bool {
    let cookie = context::socket_cookie(ctx.as_ptr());
    let Some(place) = maps::zt_connections.get_ptr_mut(cookie) else {
        sender::zt_taken(ctx.ops, 0);
        return false;
    };
    let ends = ends(ctx);
    // SAFETY: the entry belongs to this socket, whose handshake this is; the only other writer is its close.
    let connection = unsafe { &mut *place };
    connection.local = ends.local;
    connection.local_port = ends.local_port;
    connection.flags |= CONNECTION_ESTABLISHED;
    let decided = connection.revision;
    watch_close(ctx);
    let mut other = false;
    if keys::is_had() && connection.flags & CONNECTION_OFFERS != 0 {
        if passive {
            // Two that opened toward each other: neither answers the other's SYN with an option.
            claim.proof = Proof::Absent as u32;
        } else {
            proof::zt_of_destination(ctx.ops, &raw const *connection, &raw mut *claim);
        }
        if claim.is_invalid() && connection.flags & CONNECTION_TRANSLATED != 0 {
            // From behind a node's address, of whose key nobody knows: it names nobody, and the address is judged anyway.
            claim.proof = Proof::Absent as u32;
        }
        if claim.resend != 0 {
            connection.flags |= CONNECTION_RESENDS;
            connection.node = claim.node;
        } else {
            option::complete(ctx, connection);
        }
        other = is_another(connection, claim);
        if claim.is_proven() {
            connection.flags |= CONNECTION_PROVEN;
        }
    }
    if waits() {
        // What the other version lets pass has proven what it has to.
        connection.flags |= CONNECTION_PROVEN;
    }
    // Where the source's own proof is only to come, the other end may have to ask what is noted after all.
    let noted = connection.flags & CONNECTION_NOTED != 0;
    // Nothing else is noted where handshakes bear no identities.
    if noted || connection.flags & CONNECTION_LOCAL != 0 || keys::in_force() {
        let mut taken = 0;
        if claim.is_proven() && !other && claim.resend == 0 {
            taken |= sender::PROVEN;
        }
        if noted {
            taken |= sender::EXPECTED;
        }
        sender::zt_taken(ctx.ops, taken);
    }
    let unproven = connection.flags & CONNECTION_REQUIRES != 0 && !claim.is_proven();
    // A record that names who was thought to be there would be of a connection that never was.
    if connection.started != 0 && !other && !unproven && !claim.is_invalid() {
        let ports = connection.flags & CONNECTION_PORTS != 0;
        admit::tell_of(
            cookie,
            place,
            if ports {
                claim.of_some_port()
            } else {
                claim.at_source(false)
            },
        );
    }
    // Another policy; a refusal that only the mode of that moment held back; somebody else than was thought.
    decided != judge::revision()
        || connection.flags & CONNECTION_DENIED != 0
        || other
        || unproven
        || claim.is_invalid()
}

/// See [`judge::proof_waits`].
#[inline(always)]
fn waits() -> bool {
    matches!(maps::zt_control.get(0), Some(control) if judge::proof_waits(control))
}

/// Whether who answered is to be judged by his own name: he is not who was taken for the destination, or one of several.
#[inline(always)]
pub fn is_another(connection: &Connection, claim: &Claim) -> bool {
    claim.is_proven() && claim.identity != connection.destination && connection.flags & CONNECTION_PORTS == 0
}

/// Whether this socket called `connect` itself: two that opened toward each other both complete as the passive end,
/// and both were decided in `connect`.
#[inline(always)]
pub fn connected_itself(ctx: &SockOpsContext) -> bool {
    // SAFETY: presence only.
    unsafe { maps::zt_connections.get(context::socket_cookie(ctx.as_ptr())) }.is_some()
}

/// The destination's end, before it decides: who it is. Whether the listener was told to keep SYNs.
///
/// A *global* function of the object.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn zt_accepted(ctx: *mut bpf_sock_ops, own: *mut Own) -> u32 {
    if own.is_null() {
        return 0;
    }
    // SAFETY: checked above; the verifier knows the size from the type.
    u32::from(accepted(&SockOpsContext::new(ctx), unsafe { &mut *own }))
}

#[inline(always)]
fn accepted(ctx: &SockOpsContext, own: &mut Own) -> bool {
    let Some(control) = maps::zt_control.get(0) else {
        return false;
    };
    match context::stored(socket_of(ctx)) {
        Some(socket) => {
            watch_accepted(ctx, socket.flags & SOCKET_WRITES != 0);
            *own = Own::of_socket(control, &socket);
            socket.flags & SOCKET_KEEPS != 0
        }
        None => {
            watch_accepted(ctx, false);
            emit::count(Counter::OwnerMissing);
            *own = Own::missing(control);
            false
        }
    }
}

/// The destination's end. False where the source was named under another policy than the one that judged it: then nothing is
/// done, unless it is the `last` try.
///
/// A *global* function of the object.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn zt_passive(
    ctx: *mut bpf_sock_ops,
    own: *const Own,
    claim: *const Claim,
    origin: *const Origin,
    last: u32,
) -> u32 {
    if own.is_null() || claim.is_null() || origin.is_null() {
        return 1;
    }
    // SAFETY: checked above; the verifier knows the sizes from the types.
    let (own, claim, origin) = unsafe { (&*own, &*claim, &*origin) };
    u32::from(passive(&SockOpsContext::new(ctx), own, claim, origin, last != 0))
}

#[inline(always)]
fn passive(ctx: &SockOpsContext, own: &Own, claim: &Claim, origin: &Origin, last: bool) -> bool {
    let cookie = context::socket_cookie(ctx.as_ptr());
    let started = context::now();
    let ends = ends(ctx);
    let netns = context::netns_cookie(ctx.as_ptr());
    let mut entry = Connection {
        netns,
        workload: own.workload,
        destination: own.identity,
        local: ends.local,
        remote: ends.remote,
        local_port: ends.local_port,
        remote_port: ends.remote_port,
        target_port: ends.local_port,
        protocol: TCP,
        flags: CONNECTION_ESTABLISHED | CONNECTION_INBOUND,
        ..Connection::BLANK
    };
    if ends.ipv6 {
        entry.flags |= CONNECTION_IPV6;
    }
    entry.source = origin.identity;
    let flow = Flow {
        source: origin.identity,
        destination: own.identity,
        port: entry.local_port,
        protocol: TCP,
    };
    let mut verdict = judge::judge(&flow);
    if origin.outdated(&verdict) && !last {
        return false;
    }
    let proven = claim.is_proven() || waits();
    if !proven {
        verdict = verdict.unproven();
    }
    let unproven = verdict.reason as u8 == Reason::ProofRequired as u8;
    if !verdict.allowed && verdict.reason as u8 == Reason::UnknownSource as u8 {
        if claim.is_invalid() {
            verdict.reason = Reason::TagInvalid;
        } else if origin.is_unproven() {
            verdict.reason = Reason::ProofMissing;
        }
    }
    entry.rule = verdict.rule;
    entry.revision = verdict.revision;
    let enforced = own.enforced(verdict.revision);
    if enforced {
        entry.flags |= CONNECTION_ENFORCED;
    }
    let mut told = Told {
        hook: Hook::Established,
        flags: 0,
        proof: claim.at_destination(),
    };
    if !verdict.allowed && enforced {
        told.flags = REFUSED_SOCKET;
        if !fence::raise(ctx, cookie) {
            emit::count(Counter::Unfenced);
            verdict.reason = Reason::Unfenced;
        }
    } else {
        if origin.is_recording() {
            entry.flags |= CONNECTION_SOURCE_MANAGED;
        }
        if proven {
            entry.flags |= CONNECTION_PROVEN;
        }
        admit::connection(cookie, &entry);
        // Whoever has proven himself after the SYN may have called another place, of which policy said something else.
        if origin.is_recording() && !unproven && (verdict.allowed || !claim.is_late()) {
            // The source recorded this connection at its own end.
            emit::count(Counter::Agreed);
            return true;
        }
    }
    entry.reason = verdict.reason as u8;
    if !verdict.allowed {
        entry.flags |= CONNECTION_DENIED;
    }
    entry.latency = (context::now() - started) as u32;
    emit::told(cookie, started, &entry, told);
    true
}
