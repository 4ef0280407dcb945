// SPDX-License-Identifier: Apache-2.0
//! UDP flows: what was decided of one, once a revision, and whether a datagram belongs to one that is admitted.

use aya_ebpf::bindings::BPF_ANY;
use zt_common::abi::{FLOW_IDLE, FlowKey, FlowState};
use zt_common::address::Address;
use zt_common::entry::Flow;
use zt_common::verdict::Verdict;

use crate::call::UDP;
use crate::{context, judge, maps};

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
    /// The one that it was decided under.
    pub revision: u64,
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
    let place = match maps::zt_flows.get_ptr_mut(key) {
        Some(place) => Some(place),
        None => maps::zt_denied_flows.get_ptr_mut(key),
    };
    if let Some(place) = place {
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
    file(key, &state);
}

/// A function of its own in the object: its callers need their stack.
#[inline(never)]
fn file(key: &FlowKey, state: &FlowState) {
    // Where the flow stood otherwise before, both maps would answer for it.
    if state.allowed == 1 {
        let _ = maps::zt_denied_flows.remove(key);
        let _ = maps::zt_flows.insert(key, state, u64::from(BPF_ANY));
    } else {
        let _ = maps::zt_flows.remove(key);
        let _ = maps::zt_denied_flows.insert(key, state, u64::from(BPF_ANY));
    }
}

/// The flow that a socket of this end answers on by connecting to where it came from: admitted, in force, and begun by
/// the remote party. `destination` 0 where there is none.
#[inline(always)]
pub fn answered(key: &FlowKey, directory: u64) -> Flow {
    let mut flow = Flow {
        source: 0,
        destination: 0,
        port: 0,
        protocol: UDP,
    };
    if key.local_port != 0 {
        let prior = known(key, directory, context::now());
        if prior.in_force() == Some(true) && prior.began_remotely() {
            flow.source = prior.source;
            flow.destination = prior.destination;
            flow.port = prior.target_port;
        }
    }
    flow
}
