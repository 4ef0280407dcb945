// SPDX-License-Identifier: Apache-2.0
//! How policies come to be enforced on this node: which stages of a rollout are in force, which modes that makes, and what
//! happens by itself where those newly enforced are refused too much.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde_json::json;
use zt_common::abi::MODE_ENFORCE;

use super::Node;
use crate::audit::pipeline::ApiEvent;
use crate::identity::kept;
use crate::policy::{self, DenialAction, Guard, PolicySet, Stop};
use crate::state::NodeModes;
use crate::state::merge::Places;

/// The file in which it is kept where this node stopped.
const FILE: &str = "rollout.json";
/// Most bytes of that file.
const MAX_BYTES: u64 = 64 * 1024;

/// The rollout on this node.
#[derive(Debug)]
pub(super) struct Rollout {
    guard: Guard,
    file: PathBuf,
    /// What the file says.
    kept: Option<Stop>,
    /// Why it does not say what it should, as was told of last.
    not_kept: Option<String>,
    began: Instant,
    /// The stop that is on record.
    recorded: Option<Stop>,
}

/// What was before a policy was to come in force.
pub(super) struct Governed {
    guard: Guard,
    settings: Arc<policy::Settings>,
    modes: NodeModes,
    places: Places,
}

impl Rollout {
    /// Goes on where the last agent left off.
    pub(super) fn open(directory: &Path) -> Self {
        let file = directory.join(FILE);
        let what = "the stage of a rollout that this node stopped at";
        let kept: Option<Stop> = kept::read::<Option<Stop>>(&file, MAX_BYTES, what).flatten();
        Self {
            guard: Guard::new(kept.clone()),
            file,
            recorded: kept.clone(),
            kept,
            not_kept: None,
            began: Instant::now(),
        }
    }

    /// Where this node stopped.
    pub(super) fn stop(&self) -> Option<Arc<Stop>> {
        self.guard.stop().cloned().map(Arc::new)
    }

    /// Has the next agent know where this node stopped.
    fn keep(&mut self) {
        if self.kept.as_ref() == self.guard.stop() {
            return;
        }
        let stop = self.guard.stop().cloned();
        let written = serde_json::to_vec(&stop)
            .map_err(std::io::Error::other)
            .and_then(|text| kept::replace_synced(&self.file, &text));
        match written {
            Ok(()) => (self.kept, self.not_kept) = (stop, None),
            Err(error) => {
                let text = error.to_string();
                // Said once for each reason, not at each attempt.
                if self.not_kept.as_ref() != Some(&text) {
                    tracing::error!(file = %self.file.display(), %error, "where this node stopped in the rollout is not kept: after a restart it would go on; trying again");
                    self.not_kept = Some(text);
                }
            }
        }
    }
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

    /// Cgroups that the kernel knows in another mode than they are to be in, and whether they are to enforce.
    pub(super) fn changing_modes(&self) -> HashMap<u64, bool> {
        let wanted = self.wanted_workloads(&self.numbers());
        let known = self.parts.kernel.workloads().iter();
        known
            .filter_map(|(id, before)| {
                let now = wanted.get(id)?;
                (now.mode != before.mode).then_some((*id, now.mode == MODE_ENFORCE))
            })
            .collect()
    }

    /// The same when an agent begins: what a rollout changed while there was none comes in one step, too.
    pub(super) fn changing_modes_at_start(&self) -> HashMap<u64, bool> {
        match self.modes.rollout() {
            Some(_) => self.changing_modes(),
            None => HashMap::new(),
        }
    }

    /// An agent begins: where the rollout stands is new only if that changed modes.
    pub(super) fn begin_in_rollout(&mut self, before: &Governed, modes: &HashMap<u64, bool>) {
        if modes.is_empty() {
            self.watch_newly();
        } else {
            self.rollout_moved(before, modes);
        }
    }

    /// Policies have come in force, and with them `modes`: has it recorded where the rollout stands, if that is new.
    pub(super) fn rollout_moved(&mut self, before: &Governed, modes: &HashMap<u64, bool>) {
        let (was, is) = (stage_of(&before.modes), stage_of(&self.modes));
        self.watch_newly();
        if was != is {
            // What was counted is of another stage.
            self.parts.newly.take();
        }
        if was == is && modes.is_empty() {
            return;
        }
        let rollout = self.modes.rollout().or_else(|| before.modes.rollout());
        let Some((rollout, _)) = rollout else { return };
        let to_enforce = modes.values().filter(|enforces| **enforces).count();
        let to_observe = modes.len() - to_enforce;
        let stop = self
            .rollout
            .guard
            .stop()
            .filter(|stop| self.rollout.recorded.as_ref() != Some(*stop));
        let (from, to) = (was.and_then(|(_, stage)| stage), is.and_then(|(_, stage)| stage));
        tracing::warn!(
            rollout = rollout.head.name,
            from = from.as_deref(),
            to = to.as_deref(),
            to_enforce,
            to_observe,
            revision = self.revision,
            "the rollout moved on this node"
        );
        let what = json!({
            "mode": "rollout",
            "rollout": rollout.head.name,
            "from": from,
            "to": to,
            "to_enforce": to_enforce,
            "to_observe": to_observe,
            "cause": if stop.is_some() { "denials" } else { "document" },
            "stopped": stop.map(said),
        });
        self.record_rollout(what);
        self.rollout.recorded = self.rollout.guard.stop().cloned();
        self.rollout.keep();
    }

    /// Counts the denials of those newly enforced, and stops where there are too many.
    pub(super) fn watch_rollout(&mut self) {
        self.rollout.keep();
        let denials = self.parts.newly.take();
        let policies = Arc::clone(&self.loaded.policies);
        let Some(rollout) = policies.rollout() else {
            return;
        };
        let now = self.rollout.began.elapsed().as_secs();
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = (now, unix.as_millis() as u64);
        let Some(stop) = self.rollout.guard.count(rollout, now, denials) else {
            return;
        };
        tracing::error!(
            rollout = stop.rollout,
            stage = stop.stage,
            denials = stop.denials,
            per_minute = stop.per_minute,
            action = stop.action.name(),
            "those that this stage newly enforced are refused too much"
        );
        // Before anything else: it holds, whatever becomes of this agent.
        self.rollout.keep();
        match self.rollout.guard.stop().map(|stop| stop.action) {
            Some(DenialAction::Rollback) => self.try_in_force(policies),
            Some(DenialAction::Hold) => {
                let what = json!({
                    "mode": "rollout",
                    "rollout": rollout.head.name,
                    "cause": "denials",
                    "stopped": self.rollout.guard.stop().map(said),
                });
                self.record_rollout(what);
                self.rollout.recorded = self.rollout.guard.stop().cloned();
                self.publish();
            }
            None => {}
        }
    }

    /// Tells the reader of events whose denials count. Only a stage with a limit needs them.
    pub(super) fn watch_newly(&self) {
        let limited = self.modes.rollout().is_some_and(|(rollout, reached)| {
            rollout
                .stage_at(reached)
                .is_some_and(|stage| stage.on_denials.is_some())
        });
        let workloads: HashSet<u64> = if limited {
            let newly = self.places.newly_enforced();
            newly.filter_map(|placed| self.cgroup_of(placed)).collect()
        } else {
            HashSet::new()
        };
        self.parts.newly.set(workloads);
    }

    fn record_rollout(&self, what: serde_json::Value) {
        self.parts.intake.note(ApiEvent::ModesChanged {
            caller: Arc::from("rollout"),
            what,
            revision: self.revision,
        });
    }
}

/// The rollout and its stage that is in force.
fn stage_of(modes: &NodeModes) -> Option<(String, Option<String>)> {
    let (rollout, reached) = modes.rollout()?;
    let stage = rollout.stage_at(reached).map(|stage| stage.name.to_string());
    Some((rollout.head.name.clone(), stage))
}

/// Why a node stopped, for the trail.
fn said(stop: &Stop) -> serde_json::Value {
    json!({
        "stage": stop.stage,
        "action": stop.action.name(),
        "denials": stop.denials,
        "per_minute": stop.per_minute,
    })
}
