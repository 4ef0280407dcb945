// SPDX-License-Identifier: Apache-2.0
//! What was decided → the record of it. Pure: names and times come from the caller.

use std::net::IpAddr;
use std::sync::Arc;

use uuid::Uuid;
use zt_common::address::Address;
use zt_common::identity;

use super::decode::Decision;
use super::intent::Intent;
use super::names::NameResolver;
use super::record::{
    AuditRecord, Change, Destination, Entry, Hook, Latency, Mode, Observer, Outcome, Proof, Protocol, Reason,
    Source, Timestamp, party,
};

/// What all records of one batch share.
#[derive(Clone, Debug)]
pub struct Context {
    /// The cluster of this node.
    pub cluster: Arc<str>,
    /// This node.
    pub node: Arc<str>,
    /// Nanoseconds from `CLOCK_MONOTONIC` to Unix time.
    pub clock_offset: i64,
}

/// An evaluation asked for over the API, with its answer.
#[derive(Clone, Debug)]
pub struct Evaluation {
    /// SPIFFE ID or entity.
    pub source: Arc<str>,
    /// SPIFFE ID or entity.
    pub destination: Arc<str>,
    /// The port asked about.
    pub port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// The verdict.
    pub allowed: bool,
    /// The rule that decided.
    pub policy_matched: Option<Arc<str>>,
    /// The mode that would have applied.
    pub mode: Mode,
    /// Revision of the policy that answered.
    pub revision: u64,
    /// Why.
    pub reason: Reason,
    /// Time that the answer took, nanoseconds.
    pub latency: u64,
    /// Who asked.
    pub caller: Arc<str>,
    /// Of an operator: whether they gave a second factor.
    pub mfa: Option<bool>,
    /// Of an operator: the incident that they named.
    pub incident: Option<Arc<str>>,
}

/// Another policy is in force.
#[derive(Clone, Debug)]
pub struct PolicyChange {
    /// Who changed it: the caller of the API, or where it came from.
    pub caller: Arc<str>,
    /// Digest of the policy before; `None` where there was none.
    pub from: Option<Arc<str>>,
    /// Digest of the policy now.
    pub to: Arc<str>,
    /// What that newly allows and denies.
    pub diff: serde_json::Value,
    /// Revision in force now.
    pub revision: u64,
    /// Whether the change is in force here. One that was made over the API and was changed again before it came into
    /// force, or that comes into force late, is recorded all the same.
    pub in_force: bool,
    /// What was begun and was not recorded in its time: this change itself, or what may be part of it.
    pub begun: Vec<Intent>,
    /// Which of the changes that were noted this is: the record has its id. `None` where it is none of them.
    pub noted: Option<Uuid>,
}

/// A workload that runs has lost its identity, or has another.
#[derive(Clone, Debug)]
pub struct IdentityChange {
    /// Whose word it was: `spire`, or `sources` where several disagree.
    pub caller: &'static str,
    /// The cgroup of the workload, below the cgroup2 mount.
    pub cgroup: String,
    /// Who it was; `None` where that is for the sources to say.
    pub from: Option<Arc<str>>,
    /// Who it is now; `None`: nobody.
    pub to: Option<Arc<str>>,
    /// Why, in one word.
    pub cause: &'static str,
    /// What each source says, where they disagree.
    pub says: Option<serde_json::Value>,
    /// Revision of the policy in force.
    pub revision: u64,
}

/// The record of a decision of the kernel, or of the sweep through its sockets.
pub fn from_decision(
    decision: &Decision,
    names: &dyn NameResolver,
    context: &Context,
    id: Uuid,
) -> AuditRecord {
    let (source_address, destination_address) = (
        address(decision.source_address),
        address(decision.destination_address),
    );
    let own_pod = if decision.workload == 0 {
        None
    } else {
        names.pod(decision.workload)
    };
    // The end that decided is here by definition; the other one is if its address is that of a workload here.
    let (source_end, destination_end) = if decision.inbound {
        (
            other_end(decision.source, source_address, names, context),
            (own_pod, Some(Arc::clone(&context.node))),
        )
    } else {
        (
            (own_pod, Some(Arc::clone(&context.node))),
            other_end(decision.destination, destination_address, names, context),
        )
    };
    let (source_id, source_entity) = party(name_of(decision.source, names));
    let (destination_id, destination_entity) = party(name_of(decision.destination, names));
    AuditRecord {
        id,
        timestamp: time_of(decision, context),
        decision: outcome(decision.allowed),
        source: Source {
            spiffe_id: source_id,
            entity: source_entity,
            pod: source_end.0,
            node: source_end.1,
            address: source_address,
            port: (decision.source_port != 0).then_some(decision.source_port),
            pid: (decision.pid != 0).then_some(decision.pid),
            comm: comm(&decision.comm),
        },
        destination: Destination {
            spiffe_id: destination_id,
            entity: destination_entity,
            port: decision.target_port,
            address: destination_address,
            pod: destination_end.0,
            node: destination_end.1,
        },
        policy_matched: rule_name(decision.rule, names),
        latency: Latency(u64::from(decision.latency)),
        cluster: Arc::clone(&context.cluster),
        protocol: Protocol(decision.protocol),
        hook: Hook::Kernel(decision.hook),
        observer: if decision.inbound {
            Observer::Destination
        } else {
            Observer::Source
        },
        mode: if decision.enforced {
            Mode::Enforce
        } else {
            Mode::Observe
        },
        enforced: decision.enforced,
        revision: decision.revision,
        reason: Reason::Verdict(decision.reason),
        proof: decision.proof.into(),
        count: 1,
        caller: None,
        mfa: None,
        incident: None,
    }
}

/// When a decision was taken, in Unix time.
pub fn time_of(decision: &Decision, context: &Context) -> Timestamp {
    let monotonic = i64::try_from(decision.time).unwrap_or(i64::MAX);
    Timestamp(monotonic.saturating_add(context.clock_offset))
}

/// The record of an evaluation over the API at `time`.
pub fn from_evaluation(evaluation: Evaluation, context: &Context, time: Timestamp, id: Uuid) -> AuditRecord {
    let (source_id, source_entity) = party(evaluation.source);
    let (destination_id, destination_entity) = party(evaluation.destination);
    AuditRecord {
        id,
        timestamp: time,
        decision: outcome(evaluation.allowed),
        source: Source {
            spiffe_id: source_id,
            entity: source_entity,
            ..Source::default()
        },
        destination: Destination {
            spiffe_id: destination_id,
            entity: destination_entity,
            port: evaluation.port,
            ..Destination::default()
        },
        policy_matched: evaluation.policy_matched,
        latency: Latency(evaluation.latency),
        cluster: Arc::clone(&context.cluster),
        protocol: Protocol(evaluation.protocol),
        hook: Hook::Api,
        observer: Observer::Source,
        mode: evaluation.mode,
        enforced: evaluation.mode == Mode::Enforce,
        revision: evaluation.revision,
        reason: evaluation.reason,
        proof: Proof::None,
        count: 1,
        caller: Some(evaluation.caller),
        mfa: evaluation.mfa,
        incident: evaluation.incident,
    }
}

/// The record of an operator's change of this node's mode.
pub fn from_mode_change(
    observe_all: bool,
    caller: Arc<str>,
    revision: u64,
    context: &Context,
    time: Timestamp,
    id: Uuid,
) -> Entry {
    let mode = if observe_all { "observe" } else { "restore" };
    let what = serde_json::json!({ "mode": mode });
    from_modes_change(caller, what, revision, context, time, id)
}

/// The record of a change of this node's modes, as `what` says.
pub fn from_modes_change(
    caller: Arc<str>,
    what: serde_json::Value,
    revision: u64,
    context: &Context,
    time: Timestamp,
    id: Uuid,
) -> Entry {
    Entry::ModeChange(Change::new(
        (id, time),
        (Arc::clone(&context.cluster), Arc::clone(&context.node)),
        caller,
        revision,
        what,
    ))
}

/// The record of another policy in force. `id` is that of a change that was not noted.
pub fn from_policy_change(change: PolicyChange, context: &Context, time: Timestamp, id: Uuid) -> Entry {
    let mut what = serde_json::json!({ "from": change.from, "to": change.to, "diff": change.diff });
    if let Some(fields) = what.as_object_mut() {
        if !change.in_force {
            fields.insert("in_force".to_owned(), false.into());
        }
        if !change.begun.is_empty() {
            let begun = change.begun.iter().map(|intent| {
                serde_json::json!({
                    "id": intent.id, "at": intent.at, "caller": intent.caller, "policy": intent.policy, "from": intent.from,
                    "to": intent.to,
                })
            });
            fields.insert("begun".to_owned(), begun.collect());
        }
    }
    let id = change.noted.unwrap_or(id);
    Entry::PolicyChange(Change::new(
        (id, time),
        (Arc::clone(&context.cluster), Arc::clone(&context.node)),
        change.caller,
        change.revision,
        what,
    ))
}

/// The record of an identity that a workload has no longer.
pub fn from_identity_change(change: IdentityChange, context: &Context, time: Timestamp, id: Uuid) -> Entry {
    let mut what = serde_json::json!({
        "cgroup": change.cgroup, "from": change.from, "to": change.to, "cause": change.cause,
    });
    if let (Some(says), Some(fields)) = (change.says, what.as_object_mut()) {
        fields.insert("says".to_owned(), says);
    }
    Entry::IdentityChange(Change::new(
        (id, time),
        (Arc::clone(&context.cluster), Arc::clone(&context.node)),
        Arc::from(change.caller),
        change.revision,
        what,
    ))
}

type End = (Option<Arc<str>>, Option<Arc<str>>);

/// Pod and node of the end that did not decide. A workload reached over the loopback address is on this node.
fn other_end(number: u64, address: Option<IpAddr>, names: &dyn NameResolver, context: &Context) -> End {
    let Some(address) = address else {
        return (None, None);
    };
    match names.here(address) {
        Some((here, pod)) if here == number => (pod, Some(Arc::clone(&context.node))),
        _ if identity::is_workload(number) && address.is_loopback() => {
            (None, Some(Arc::clone(&context.node)))
        }
        _ => (None, None),
    }
}

/// A number that nothing names is shown as such: `unknown` would say that the kernel knew nothing.
fn name_of(number: u64, names: &dyn NameResolver) -> Arc<str> {
    names
        .identity(number)
        .unwrap_or_else(|| Arc::from(format!("number:{number:016x}")))
}

fn rule_name(number: u64, names: &dyn NameResolver) -> Option<Arc<str>> {
    (number != 0).then(|| {
        names
            .rule(number)
            .unwrap_or_else(|| Arc::from(format!("number:{number:016x}")))
    })
}

const fn outcome(allowed: bool) -> Outcome {
    if allowed { Outcome::Allow } else { Outcome::Deny }
}

fn address(address: Address) -> Option<IpAddr> {
    (!address.is_unspecified()).then(|| address.into())
}

fn comm(bytes: &[u8; 16]) -> Option<Arc<str>> {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    let text = bytes.get(..end).filter(|text| !text.is_empty())?;
    Some(Arc::from(String::from_utf8_lossy(text)))
}
