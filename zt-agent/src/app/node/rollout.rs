// SPDX-License-Identifier: Apache-2.0
//! How policies come to be enforced on this node: which stages of a rollout are in force, which modes that makes, and what
//! happens by itself where those newly enforced are refused too much.

mod standing;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::json;

use super::Node;
use super::modes::{ModeChange, apart, counts};
use super::sweep::monotonic;
use crate::audit::pipeline::ApiEvent;
use crate::policy::{
    self, AllowTable, DenialAction, DeniedEdge, Edge, Guard, GuardOutcome, Party, PolicySet, Protocol,
    Refusals, Stop, StopCause,
};
use crate::state::NodeModes;
use crate::state::merge::Places;

use self::standing::InForce;
pub(super) use self::standing::Rollout;

/// What was before a policy was to come in force.
pub(super) struct Governed {
    guard: Guard,
    settings: Arc<policy::Settings>,
    modes: NodeModes,
    places: Places,
}

impl Node {
    /// Takes up how many stages are in force under these policies, and the modes that makes. What was before.
    pub(super) fn govern_by(&mut self, policies: &PolicySet) -> Governed {
        let before = Governed {
            guard: self.rollout.guard.clone(),
            settings: Arc::clone(&self.settings),
            modes: self.modes.clone(),
            places: self.places.clone(),
        };
        let rollout = policies.rollout().map(Arc::as_ref);
        if rollout.is_some() {
            self.unnamed.find_itself(&self.parts.mount, &self.cgroups);
        }
        let said = rollout.map_or(0, policy::EnforcementRollout::reached);
        let reached = self.rollout.guard.reached(rollout);
        let most_stages = (reached < said).then_some(reached);
        if self.settings.most_stages != most_stages {
            self.settings = Arc::new(policy::Settings {
                most_stages,
                ..(*self.settings).clone()
            });
        }
        let config = &self.parts.config;
        self.modes = NodeModes::new(config.modes(), policies, &self.settings, &config.node);
        self.apply_modes();
        before
    }

    /// The policies did not come in force. `written`: the kernel may have been told of modes to come.
    pub(super) fn govern_as_before(&mut self, before: Governed, written: bool) {
        self.rollout.guard = before.guard;
        self.settings = before.settings;
        self.modes = before.modes;
        self.places = before.places;
        self.unnamed.set(&self.waiting, &self.modes);
        if written {
            self.pending.merge |= self.direct().is_err();
        }
    }

    fn apply_modes(&mut self) {
        self.places.set_modes(&self.modes);
        self.unnamed.set(&self.waiting, &self.modes);
    }

    /// An agent begins: where the rollout stands is new if the agent before it left another stage in force. Modes that changed at the
    /// same one are no move of it.
    pub(super) fn begin_in_rollout(&mut self, modes: &[ModeChange]) {
        let (was, is) = (self.rollout.in_force.take(), InForce::under(&self.modes));
        let stays = was.as_ref().map_or(modes.is_empty(), |was| *was == is);
        if !stays {
            return self.note_move(was, modes);
        }
        self.rollout.guard.begin(unix_now(), self.revision);
        self.rollout.in_force = Some(is);
        self.rollout.keep();
        self.watch_newly();
        self.note_modes(modes);
    }

    /// Policies have come in force, and with them `modes`: has it recorded where the rollout stands, if that is new; where there is
    /// none, only these. Those that were `left` to be changed before are not the rollout's doing, and are recorded by themselves.
    pub(super) fn rollout_moved(&mut self, before: &Governed, modes: &[ModeChange], left: &[ModeChange]) {
        let (others, own) = apart(&self.carried_out(modes), left);
        self.note_modes(&others);
        self.note_move(Some(InForce::under(&before.modes)), &own);
    }

    /// `was`: the stage in force before, if that is known.
    fn note_move(&mut self, was: Option<InForce>, modes: &[ModeChange]) {
        let is = InForce::under(&self.modes);
        self.rollout.guard.begin(unix_now(), self.revision);
        self.rollout.in_force = Some(is.clone());
        self.watch_newly();
        let moves = was.as_ref() != Some(&is);
        if moves {
            // What was counted is of another stage.
            self.parts.newly.take();
        }
        let ended = self.rollout.recorded.is_some() && self.rollout.guard.stop().is_none();
        if !moves && modes.is_empty() && !ended {
            return;
        }
        let before = was.as_ref().and_then(|was| was.rollout.as_deref());
        let Some(rollout) = is.rollout.as_deref().or(before) else {
            return self.note_modes(modes);
        };
        let (to_enforce, to_observe) = counts(modes);
        let stop = self
            .rollout
            .guard
            .stop()
            .filter(|stop| self.rollout.recorded.as_ref() != Some(*stop));
        let cause = match stop.map(|stop| stop.cause) {
            Some(StopCause::Denials) => "denials",
            Some(StopCause::Unreadable) => "unreadable",
            None if self.rollout.resuming => "resumed",
            None if !self.is_at_work => "restart",
            None => "document",
        };
        tracing::warn!(
            rollout,
            from = was.as_ref().and_then(|was| was.stage.as_deref()),
            to = is.stage.as_deref(),
            to_enforce,
            to_observe,
            revision = self.revision,
            "the rollout moved on this node"
        );
        let mut what = json!({
            "mode": "rollout",
            "rollout": rollout,
            "to": is.stage,
            "to_enforce": to_enforce,
            "to_observe": to_observe,
            "workloads": self.listed_modes(modes),
            "cause": cause,
            "stopped": stop.map(said),
        });
        // Not where nobody knows it.
        if let Some(was) = was {
            what["from"] = json!(was.stage);
        }
        self.record_rollout(what);
        self.rollout.recorded = self.rollout.guard.stop().cloned();
        self.rollout.keep();
    }

    /// Counts what those newly enforced are refused, and stops where that is too much.
    pub(super) fn watch_rollout(&mut self) {
        self.rollout.keep();
        let gathered = self.parts.newly.take();
        let policies = Arc::clone(&self.loaded.policies);
        let Some(rollout) = policies.rollout() else {
            return;
        };
        let Some(table) = self.parts.kernel.table().map(Arc::clone) else {
            return;
        };
        let refused = gathered
            .into_iter()
            .filter(|((edge, _), gathered)| !gathered.only_connected || !is_probe(&table, edge))
            .map(|((edge, _), gathered)| (edge, gathered.refusals));
        let now = (monotonic() / 1_000_000_000, unix_now());
        let tell = |edge: &Edge, refusals: &Refusals| told(&table, edge, refusals);
        match self.rollout.guard.count(rollout, now, refused, tell) {
            GuardOutcome::Goes => return,
            GuardOutcome::Over => return self.soaked(rollout),
            GuardOutcome::Stopped(stop) => {
                tracing::error!(
                    rollout = stop.rollout,
                    stage = stop.stage,
                    denials = stop.denials,
                    per_minute = stop.per_minute,
                    attempts = stop.attempts,
                    attempts_per_minute = stop.attempts_per_minute,
                    action = stop.action.name(),
                    edges = %serde_json::json!(stop.edges),
                    "those that this stage newly enforced are refused too much"
                );
            }
        }
        // Before anything else: it holds, whatever becomes of this agent.
        self.rollout.keep();
        match self.rollout.guard.stop().map(|stop| stop.action) {
            Some(DenialAction::Rollback) => {
                let error = self.loaded.error.clone();
                self.try_in_force(policies, error);
            }
            Some(DenialAction::Hold) => {
                let what = json!({
                    "mode": "rollout",
                    "rollout": rollout.head.name,
                    "cause": "denials",
                    "stopped": self.rollout.guard.stop().map(said),
                });
                self.record_rollout(what);
                self.rollout.recorded = self.rollout.guard.stop().cloned();
                self.watch_newly();
                self.publish();
            }
            None => {}
        }
    }

    /// The time in which the limit of this stage holds is over.
    fn soaked(&mut self, rollout: &policy::EnforcementRollout) {
        let stage = self
            .modes
            .rollout()
            .and_then(|(_, reached)| rollout.stage_at(reached));
        let stage = stage.map(|stage| stage.name.to_string());
        tracing::info!(
            rollout = rollout.head.name,
            stage,
            "the time of this stage's limit is over: the node does not stop at it by itself any more"
        );
        let what = json!({
            "mode": "rollout",
            "rollout": rollout.head.name,
            "to": stage,
            "cause": "soaked",
        });
        self.record_rollout(what);
        self.rollout.keep();
        self.watch_newly();
    }

    /// Tells the reader of events whose denials count. Only a stage with a limit that holds needs them, on a node that has not stopped.
    pub(super) fn watch_newly(&self) {
        let limited = self.modes.rollout().is_some_and(|(rollout, reached)| {
            rollout
                .stage_at(reached)
                .is_some_and(|stage| stage.on_denials.is_some())
        });
        let guard = &self.rollout.guard;
        let counts = limited && guard.stop().is_none();
        let Some(armed) = guard.armed().filter(|armed| counts && !armed.over) else {
            return self.parts.newly.set(HashSet::new(), 0, false);
        };
        let newly = self.places.newly_enforced();
        let named = newly.filter_map(|placed| self.cgroup_of(placed));
        // Whoever has lost his name since is refused for the stage all the same.
        let lost = self.enforced_as.newly_enforced(&self.modes);
        // After a start of the machine revisions count anew.
        let since = armed.revision.min(self.revision);
        self.parts.newly.set(named.chain(lost).collect(), since, true);
    }

    /// Has this node go on as the document says, and its limits hold anew. Where it had stopped.
    pub(super) fn resume_rollout(&mut self, caller: &Arc<str>) -> Option<Stop> {
        let stop = self.rollout.guard.resume();
        tracing::warn!(
            caller = %caller,
            stopped = stop.as_ref().map(|stop| stop.stage.as_str()),
            "the rollout goes on here by request"
        );
        self.rollout.recorded = None;
        self.rollout.keep();
        let (policies, error) = (Arc::clone(&self.loaded.policies), self.loaded.error.clone());
        self.rollout.resuming = true;
        self.try_in_force(policies, error);
        self.rollout.resuming = false;
        stop
    }

    fn record_rollout(&self, what: serde_json::Value) {
        self.parts.intake.note(ApiEvent::ModesChanged {
            caller: Arc::from("rollout"),
            what,
            revision: self.revision,
        });
    }
}

/// Why a node stopped, for the trail.
fn said(stop: &Stop) -> serde_json::Value {
    json!({
        "stage": stop.stage,
        "action": stop.action.name(),
        "denials": stop.denials,
        "per_minute": stop.per_minute,
        "attempts": stop.attempts,
        "attempts_per_minute": stop.attempts_per_minute,
        "cause": stop.cause,
        "edges": stop.edges,
    })
}

/// Whether it is most likely a resolver that only wants to know from which address it would be sent: the stream that is meant is
/// allowed.
fn is_probe(table: &AllowTable, edge: &Edge) -> bool {
    let (source, destination) = (Party::Number(edge.source), Party::Number(edge.destination));
    table
        .evaluate(source, destination, edge.port, Protocol::Tcp)
        .allowed
}

/// A connection that was refused, by names.
fn told(table: &AllowTable, edge: &Edge, refusals: &Refusals) -> DeniedEdge {
    let name = |number: u64| {
        let mut names = table.party_texts();
        let name = names.find(|(of, _)| *of == number);
        name.map_or_else(|| number.to_string(), |(_, name)| name.to_string())
    };
    let udp = refusals.protocol == Protocol::Udp.number();
    DeniedEdge {
        source: name(edge.source),
        destination: name(edge.destination),
        port: edge.port,
        protocol: if udp { Protocol::Udp } else { Protocol::Tcp }.name().to_owned(),
        times: refusals.times,
    }
}

/// Unix time, milliseconds.
fn unix_now() -> u64 {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    unix.as_millis() as u64
}
