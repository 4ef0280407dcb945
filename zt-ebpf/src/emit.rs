// SPDX-License-Identifier: Apache-2.0
//! Decisions on their way out: one count and one event each.

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::helpers::generated as helper;
use zt_common::ABI_VERSION;
use zt_common::abi::{
    CONNECTION_DENIED, CONNECTION_ENFORCED, CONNECTION_INBOUND, CONNECTION_IPV6, CONNECTION_OMITTED,
    Connection,
};
use zt_common::address::Address;
use zt_common::control::DIAGNOSTICS;
use zt_common::counter::Counter;
use zt_common::event::{
    ALLOWED, DecisionEvent, ENFORCED, EventHeader, Hook, INBOUND, IPV6, KIND_DECISION, KIND_NOTICE,
    NoticeEvent, REFUSED_SOCKET,
};
use zt_common::flood::way;
use zt_common::proof::Proof;
use zt_common::verdict::Verdict;

use crate::flood::anew;
use crate::own::Own;
use crate::{context, flood, maps};

const NO_WAKEUP: u64 = 1;
const FORCE_WAKEUP: u64 = 2;

/// Everything about a decision that is not the verdict.
pub struct Decision<'a> {
    pub hook: Hook,
    pub started: u64,
    pub own: &'a Own,
    pub netns: u64,
    pub cookie: u64,
    pub source: u64,
    pub destination: u64,
    pub source_address: &'a Address,
    pub destination_address: &'a Address,
    pub source_port: u16,
    pub destination_port: u16,
    pub target_port: u16,
    pub protocol: u8,
    /// Or of the flags of [`zt_common::event`] other than `ALLOWED` and `ENFORCED`.
    pub flags: u8,
    /// Whether the running task is the one that acts.
    pub in_task: bool,
    /// How the other end proved who it is.
    pub proof: Proof,
}

/// Adds to a counter of this CPU.
#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(slot) = maps::zt_counters.get_ptr_mut(counter as u32) {
        // SAFETY: a slot of this CPU; programs on it may nest (task, then softirq), hence the atomic.
        unsafe { context::add(slot, 1) };
    }
}

/// Whether somebody reads the diagnostics.
#[inline(always)]
pub fn diagnostics() -> bool {
    match maps::zt_control.get(0) {
        Some(control) => control.flags & DIAGNOSTICS != 0,
        None => false,
    }
}

/// Counts a decision and hands it to the agent.
///
/// The agent is woken only where something waits for it (a fenced socket): it comes by itself often enough for the
/// rest, and an interrupt for every connection would cost more than the decision.
///
/// A function of its own in the object: one copy for every place that decides.
#[inline(never)]
pub fn decision(decision: &Decision<'_>, verdict: &Verdict) {
    let enforced = decision.own.enforced(verdict.revision);
    count_decision(verdict.allowed, enforced);
    let denial = || (!verdict.allowed).then(|| number(decision, verdict));
    if flood::has_no_room(decision.own.workload, decision.started, denial) {
        count(Counter::EventsLost);
        return;
    }
    let Some(mut slot) = maps::zt_events.reserve(0) else {
        flood::was_not_told();
        count(Counter::EventsLost);
        return;
    };
    let mut flags = decision.flags;
    if verdict.allowed {
        flags |= ALLOWED;
    }
    if enforced {
        flags |= ENFORCED;
    }
    // Field by field into the ring: a value of this size does not fit on the stack beside the maps' keys.
    let event = slot.as_mut_ptr();
    // SAFETY: reserved memory of the event's size; every field is written before it is submitted.
    unsafe {
        (*event).header = EventHeader {
            version: ABI_VERSION,
            size: size_of::<DecisionEvent>() as u16,
            kind: KIND_DECISION,
            reserved: 0,
        };
        (*event).time = decision.started;
        (*event).source = decision.source;
        (*event).destination = decision.destination;
        (*event).rule = verdict.rule;
        (*event).revision = verdict.revision;
        (*event).workload = decision.own.workload;
        (*event).cookie = decision.cookie;
        (*event).netns = decision.netns;
        (*event).source_address = *decision.source_address;
        (*event).destination_address = *decision.destination_address;
        (*event).source_port = decision.source_port;
        (*event).destination_port = decision.destination_port;
        (*event).target_port = decision.target_port;
        (*event).protocol = decision.protocol;
        (*event).hook = decision.hook as u8;
        (*event).reason = verdict.reason as u8;
        (*event).flags = flags;
        (*event).proof = decision.proof as u8;
        (*event).omitted = 0;
        (*event).reserved = [0; 4];
        (*event).comm = [0; 16];
        if decision.in_task {
            (*event).pid = (bpf_get_current_pid_tgid() >> 32) as u32;
            helper::bpf_get_current_comm((&raw mut (*event).comm).cast(), 16);
        } else {
            (*event).pid = 0;
        }
        (*event).latency = (context::now() - decision.started) as u32;
    }
    slot.submit(if flags & REFUSED_SOCKET != 0 {
        FORCE_WAKEUP
    } else {
        NO_WAKEUP
    });
}

/// The number of a denial.
#[inline(always)]
fn number(decision: &Decision<'_>, verdict: &Verdict) -> u64 {
    let inbound = decision.flags & INBOUND != 0;
    let remote = if inbound {
        decision.source_address
    } else {
        decision.destination_address
    };
    let way = || {
        way(
            anew(&decision.target_port),
            anew(&decision.protocol),
            anew(&verdict.reason) as u8,
            inbound,
        )
    };
    let (source, destination) = (&decision.source, &decision.destination);
    flood::numbered(&decision.own.workload, source, destination, remote, way)
}

#[inline(always)]
fn count_decision(allowed: bool, enforced: bool) {
    count(match (allowed, enforced) {
        (true, false) => Counter::AllowedObserved,
        (true, true) => Counter::AllowedEnforced,
        (false, false) => Counter::DeniedObserved,
        (false, true) => Counter::DeniedEnforced,
    });
}

/// What the record of a [`Connection`] says beside what that says itself.
#[derive(Clone, Copy)]
pub struct Told {
    pub hook: Hook,
    /// [`REFUSED_SOCKET`], or nothing.
    pub flags: u8,
    /// How the other end proved who it is.
    pub proof: Proof,
}

/// Counts what was decided of a connection, and hands it to the agent.
#[inline(always)]
pub fn told(cookie: u64, started: u64, connection: &Connection, told: Told) {
    let how = told.hook as u32 | u32::from(told.flags) << 8 | (told.proof as u32) << 16;
    zt_told(cookie, started, connection, how);
}

/// [`told`], with hook, flags and proof as the bytes of `how`.
///
/// A *global* function of the object, as `zt_judge` is: the verifier looks at it once, by itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn zt_told(cookie: u64, started: u64, connection: *const Connection, how: u32) -> u32 {
    if connection.is_null() {
        return 0;
    }
    // SAFETY: checked above; the verifier knows the size from the type.
    let connection = unsafe { &*connection };
    let (hook, more, proof) = (how as u8, (how >> 8) as u8, (how >> 16) as u8);
    let allowed = connection.flags & CONNECTION_DENIED == 0;
    let enforced = connection.flags & CONNECTION_ENFORCED != 0;
    let inbound = connection.flags & CONNECTION_INBOUND != 0;
    count_decision(allowed, enforced);
    let way = || {
        way(
            anew(&connection.target_port),
            anew(&connection.protocol),
            anew(&connection.reason),
            inbound,
        )
    };
    let denial = || {
        let ends = (&connection.source, &connection.destination);
        let number = || flood::numbered(&connection.workload, ends.0, ends.1, &connection.remote, way);
        (!allowed).then(number)
    };
    if flood::has_no_room(connection.workload, context::now(), denial) {
        count(Counter::EventsLost);
        return 0;
    }
    let Some(mut slot) = maps::zt_events.reserve(0) else {
        flood::was_not_told();
        count(Counter::EventsLost);
        return 0;
    };
    let mut flags = more;
    if allowed {
        flags |= ALLOWED;
    }
    if enforced {
        flags |= ENFORCED;
    }
    if inbound {
        flags |= INBOUND;
    }
    if connection.flags & CONNECTION_IPV6 != 0 {
        flags |= IPV6;
    }
    let event = slot.as_mut_ptr();
    // SAFETY: reserved memory of the event's size; every field is written before it is submitted.
    unsafe {
        (*event).header = EventHeader {
            version: ABI_VERSION,
            size: size_of::<DecisionEvent>() as u16,
            kind: KIND_DECISION,
            reserved: 0,
        };
        (*event).time = started;
        (*event).source = connection.source;
        (*event).destination = connection.destination;
        (*event).rule = connection.rule;
        (*event).revision = connection.revision;
        (*event).workload = connection.workload;
        (*event).cookie = cookie;
        (*event).netns = connection.netns;
        if inbound {
            (*event).source_address = connection.remote;
            (*event).destination_address = connection.local;
            (*event).source_port = connection.remote_port;
            (*event).destination_port = connection.local_port;
        } else {
            (*event).source_address = connection.local;
            (*event).destination_address = connection.remote;
            (*event).source_port = connection.local_port;
            (*event).destination_port = connection.remote_port;
        }
        (*event).target_port = connection.target_port;
        (*event).protocol = connection.protocol;
        (*event).hook = hook;
        (*event).pid = connection.pid;
        (*event).latency = connection.latency;
        (*event).reason = connection.reason;
        (*event).flags = flags;
        (*event).proof = proof;
        (*event).omitted = u8::from(connection.flags & CONNECTION_OMITTED != 0);
        (*event).reserved = [0; 4];
        (*event).comm = connection.comm;
    }
    slot.submit(if more & REFUSED_SOCKET != 0 {
        FORCE_WAKEUP
    } else {
        NO_WAKEUP
    });
    1
}

/// Tells the agent that something needs it.
#[inline(always)]
pub fn notice(code: u32, pid: u32, workload: u64, netns: u64) {
    // A share of its own: who binds in a loop leaves room for decisions, and what is refused by it for notices. What is not told is
    // looked for.
    if flood::has_no_room(workload | flood::NOTICES, context::now(), || None) {
        count(Counter::NoticesLost);
        return;
    }
    let Some(mut slot) = maps::zt_events.reserve_untyped::<NoticeEvent>(0) else {
        count(Counter::NoticesLost);
        return;
    };
    slot.write(NoticeEvent {
        header: EventHeader {
            version: ABI_VERSION,
            size: size_of::<NoticeEvent>() as u16,
            kind: KIND_NOTICE,
            reserved: 0,
        },
        code,
        pid,
        workload,
        netns,
    });
    slot.submit(FORCE_WAKEUP);
}
