// SPDX-License-Identifier: Apache-2.0
//! What the status of each resource says: whether it is accepted, whether it is in force, and why not. Policy engines
//! write it; nodes do not.
//!
//! Several engines write the same, as it follows from the resources alone, so that whoever is first has written for all.
//! One writes only when it has dealt with all that it knows, only what differs from what is there, and only over the
//! version that it has seen. What an engine knows by itself, the nodes that follow it, is under its own name, and looked
//! at twice a minute.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep};

use super::known::Known;
use super::stopped;
use crate::audit::clock;
use crate::audit::record::Timestamp;
use crate::kubernetes::policies::{ReadPolicy, replace_status};
use crate::kubernetes::{Client, ClientError};
use crate::policy::{self, PolicySet, Problem, ROLLOUT_KIND};
use crate::state::{Followers, Snapshot};

/// How often the nodes are counted.
const COUNT: Duration = Duration::from_secs(30);
/// How long more changes are waited for; each engine waits another time.
const GATHER: Duration = Duration::from_millis(100);
const SPREAD: u64 = 400;
/// Problems that a message spells out, and its longest text.
const SHOWN: usize = 5;
const LONGEST: usize = 4096;
/// What an engine says of its nodes is renewed after an hour, and believed for two.
const RENEW: i64 = 3_600_000_000_000;
const BELIEVED: i64 = 2 * RENEW;
/// By what it says of a rollout it is decided whether that goes on: after five minutes, and for fifteen.
pub(super) const RENEW_ROLLOUT: i64 = 300_000_000_000;
const BELIEVED_ROLLOUT: i64 = 3 * RENEW_ROLLOUT;

/// Counts the nodes that follow this engine.
pub type CountNodes = dyn Fn() -> Followers + Send + Sync;
/// When a node was heard last by this engine, in Unix nanoseconds.
pub type Hears = dyn Fn(&str) -> Option<i64> + Send + Sync;

/// Writes the status of resources.
pub struct Reporter {
    /// The API.
    pub client: Client,
    /// This engine, under whose name its nodes are counted.
    pub engine: String,
    /// What documents are validated with.
    pub policy: policy::Settings,
    /// What the cluster has.
    pub known: watch::Receiver<Arc<Known>>,
    /// What is in force here.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// Counts the nodes.
    pub nodes: Box<CountNodes>,
    /// Whether it hears a node that another engine misses.
    pub hears: Box<Hears>,
}

impl std::fmt::Debug for Reporter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reporter")
            .field("engine", &self.engine)
            .finish_non_exhaustive()
    }
}

/// What there is to say of one resource.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Finding {
    /// Its digest, or what is wrong with it.
    accepted: Result<String, String>,
    /// Whether it is in force, and in one word and a sentence why not.
    in_force: Result<(), (&'static str, String)>,
}

/// What an engine says of its nodes.
struct Nodes<'e> {
    engine: &'e str,
    seen: &'e Followers,
    hears: &'e Hears,
}

impl Nodes<'_> {
    /// What there is to say of them beside a policy: of a rollout its stage has to be in force there, too, and it is said who stopped, who
    /// is not heard (who is known from what was written alone comes first, for the end is cut off), and who is of those that `engines` do not hear.
    fn said(&self, is_rollout: bool, engines: &Value, now: i64) -> Value {
        let seen = self.seen;
        let left = stopped::still_missed(engines, self.engine, self.hears, &seen.missed, now);
        let silent = seen.silent + left.iter().filter(|missed| missed.is_silent(now)).count();
        let missed = [left.as_slice(), seen.missed.as_slice()].concat();
        let in_force = if is_rollout { seen.at_stage } else { seen.in_sync };
        let mut said = json!({ "name": self.engine, "nodes": seen.all, "nodesInForce": in_force });
        if is_rollout && !seen.stopped.is_empty() {
            said["nodesStopped"] = seen.stopped.len().into();
            said["stopped"] = stopped::written(&seen.stopped);
        }
        if is_rollout && silent > 0 {
            said["nodesSilent"] = silent.into();
        }
        if is_rollout && !missed.is_empty() {
            said["silent"] = stopped::missed_written(&missed);
        }
        let heard = stopped::heard_written(engines, self.engine, self.hears);
        if is_rollout && !heard.is_empty() {
            said["heard"] = heard.into();
        }
        said
    }
}

impl Reporter {
    /// Works until nobody tells of changes any more.
    pub async fn run(mut self) {
        // One that has just started has heard of nobody yet, and would take back what it said before.
        let mut count = interval_at(Instant::now() + COUNT, COUNT);
        count.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut set, mut said) = (PolicySet::default(), None);
        let mut seed = clock::now().unsigned_abs();
        // Nodes are to be counted: until that is written.
        let mut counted = false;
        loop {
            counted |= tokio::select! {
                changed = self.known.changed() => match changed { Ok(()) => false, Err(_) => return },
                changed = self.snapshots.changed() => match changed { Ok(()) => false, Err(_) => return },
                _ = count.tick() => true,
            };
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            sleep(GATHER + Duration::from_millis((seed >> 33) % SPREAD)).await;
            let known = Arc::clone(&self.known.borrow_and_update());
            let snapshot = Arc::clone(&self.snapshots.borrow_and_update());
            if !known.is_whole() {
                continue;
            }
            let Some(findings) = findings(&known, &snapshot, &self.policy, &mut set) else {
                continue;
            };
            match self.write(&known, &findings, counted).await {
                Ok(is_written) => {
                    counted &= !is_written;
                    said = None;
                }
                Err(error) => {
                    let text = error.to_string();
                    // Said once for each reason, not at each attempt.
                    if said.as_ref() != Some(&text) {
                        tracing::warn!("the status of policies in the cluster is not up to date: {text}");
                        said = Some(text);
                    }
                }
            }
        }
    }

    /// Whether all of it is written: not where somebody else was first.
    async fn write(
        &self,
        known: &Known,
        findings: &BTreeMap<String, Finding>,
        counted: bool,
    ) -> Result<bool, ClientError> {
        let mut is_written = true;
        let nodes = Nodes {
            engine: &self.engine,
            seen: &(self.nodes)(),
            hears: &*self.hears,
        };
        for (collection, file, policy) in known.iter() {
            let Some(finding) = findings.get(&file) else {
                continue;
            };
            let nodes = counted.then_some(&nodes);
            let Some(resource) = updated(policy, finding, nodes, clock::now()) else {
                continue;
            };
            match replace_status(&self.client, collection, &resource).await {
                // Gone: nobody wants its status.
                Ok(_) | Err(ClientError::Failed { code: 404, .. }) => {}
                // Another version: there will be word of it.
                Err(ClientError::Failed { code: 409, .. }) => is_written = false,
                Err(error) => return Err(error),
            }
        }
        Ok(is_written)
    }
}

/// What there is to say of each resource, by its file; `None` as long as this engine has not dealt with all of them.
fn findings(
    known: &Known,
    snapshot: &Snapshot,
    settings: &policy::Settings,
    set: &mut PolicySet,
) -> Option<BTreeMap<String, Finding>> {
    let parsed = known
        .contents()
        .0
        .and_then(|documents| policy::reparse(&documents, settings, set));
    let (digests, problems) = match parsed {
        Ok(parsed) => {
            let settled = parsed.digest() == snapshot.policies.digest() || snapshot.policy_error.is_some();
            if !settled {
                return None;
            }
            *set = parsed;
            (digests(set), Vec::new())
        }
        Err(problems) => {
            snapshot.policy_error.as_ref()?;
            let alone = known.iter().filter_map(|(_, file, policy)| {
                let document = super::known::document(&policy.resource, file.clone());
                let set = policy::parse(&[document], settings).ok()?;
                Some((file, set.all().first()?.digest().to_owned()))
            });
            (alone.collect(), problems)
        }
    };
    let bad: Vec<&str> = problems.iter().map(|problem| problem.file.as_str()).collect();
    let finding = |file: &str, policy: &ReadPolicy| -> Finding {
        let own: Vec<&Problem> = problems.iter().filter(|problem| problem.file == file).collect();
        let accepted = match digests.get(file) {
            Some(digest) if own.is_empty() => Ok(digest.clone()),
            _ if own.is_empty() => Err("it cannot be read".to_owned()),
            _ => Err(text_of(&own)),
        };
        let in_force_here = snapshot.policies.get(&policy.name).map(policy::AnyPolicy::digest);
        let in_force = match &accepted {
            Err(_) => Err((
                "Invalid",
                "the version before it stays in force, if there was one".to_owned(),
            )),
            Ok(digest) if in_force_here == Some(digest) => Ok(()),
            Ok(_) if !bad.is_empty() => Err((
                "OthersInvalid",
                format!("not before these are mended: {}", names(&bad)),
            )),
            Ok(_) => {
                let errors = snapshot.policy_error.iter().flat_map(|errors| errors.iter());
                Err(("Refused", text_of(&errors.collect::<Vec<_>>())))
            }
        };
        Finding { accepted, in_force }
    };
    let all = known
        .iter()
        .map(|(_, file, policy)| (file.clone(), finding(&file, policy)));
    Some(all.collect())
}

fn digests(set: &PolicySet) -> BTreeMap<String, String> {
    let all = set.all().iter();
    all.map(|policy| (policy.file().to_owned(), policy.digest().to_owned()))
        .collect()
}

fn names(files: &[&str]) -> String {
    let mut files = files.to_vec();
    files.sort_unstable();
    files.dedup();
    let mut text = files.iter().take(SHOWN).copied().collect::<Vec<_>>().join(", ");
    if files.len() > SHOWN {
        // Writing to a String cannot fail.
        let _ = write!(text, " and {} more", files.len() - SHOWN);
    }
    text
}

/// Problems as a text. Files are left out: the resource is the file.
fn text_of(problems: &[&Problem]) -> String {
    let shown = problems.iter().take(SHOWN).map(|problem| {
        if problem.field.is_empty() {
            problem.message.clone()
        } else {
            format!("{}: {}", problem.field, problem.message)
        }
    });
    let mut text = shown.collect::<Vec<_>>().join("; ");
    if problems.len() > SHOWN {
        // Writing to a String cannot fail.
        let _ = write!(text, "; and {} more", problems.len() - SHOWN);
    }
    text.chars().take(LONGEST).collect()
}

/// The resource with its status as it is to be; `None` where that is what is there. `now` is in Unix nanoseconds.
fn updated(policy: &ReadPolicy, finding: &Finding, nodes: Option<&Nodes<'_>>, now: i64) -> Option<Value> {
    let before = &policy.resource["status"];
    let mut status = if before.is_object() {
        before.clone()
    } else {
        json!({})
    };
    let (accepted, in_force) = (&finding.accepted, &finding.in_force);
    let conditions = [
        match accepted {
            Ok(_) => ("Accepted", true, "Valid", String::new()),
            Err(message) => ("Accepted", false, "Invalid", message.clone()),
        },
        match in_force {
            Ok(()) => ("InForce", true, "InForce", String::new()),
            Err((reason, message)) => ("InForce", false, *reason, message.clone()),
        },
    ];
    let time = json!(Timestamp(now - now.rem_euclid(1_000_000_000)));
    let mut all: Vec<Value> = status["conditions"].as_array().cloned().unwrap_or_default();
    for (kind, holds, reason, message) in conditions {
        let holds = if holds { "True" } else { "False" };
        let known = all.iter_mut().find(|condition| condition["type"] == kind);
        let since = known
            .as_ref()
            .filter(|condition| condition["status"] == holds)
            .map_or_else(
                || time.clone(),
                |condition| condition["lastTransitionTime"].clone(),
            );
        let condition = json!({
            "type": kind,
            "status": holds,
            "reason": reason,
            "message": message,
            "observedGeneration": policy.generation,
            "lastTransitionTime": since,
        });
        match known {
            Some(known) => *known = condition,
            None => all.push(condition),
        }
    }
    status["conditions"] = all.into();
    match accepted {
        Ok(digest) => status["digest"] = digest.as_str().into(),
        Err(_) => {
            status.as_object_mut()?.remove("digest");
        }
    }
    if let Some(nodes) = nodes {
        let is_rollout = policy.resource["kind"] == ROLLOUT_KIND;
        count(&mut status, nodes, is_rollout, (now, &time));
    }
    if status == *before {
        return None;
    }
    let metadata = &policy.resource["metadata"];
    Some(json!({
        "apiVersion": policy.resource["apiVersion"],
        "kind": policy.resource["kind"],
        "metadata": {
            "name": policy.name, "uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"],
        },
        "status": status,
    }))
}

/// How long ago an engine said something, in nanoseconds.
pub(super) fn age(engine: &Value, now: i64) -> i64 {
    let at: Option<Timestamp> = serde_json::from_value(engine["reported"].clone()).ok();
    at.map_or(i64::MAX, |Timestamp(at)| now.saturating_sub(at))
}

/// Whether what an engine says of its nodes is no older than such words may be.
pub(super) fn is_believed(engine: &Value, is_rollout: bool, now: i64) -> bool {
    age(engine, now) < if is_rollout { BELIEVED_ROLLOUT } else { BELIEVED }
}

/// Says how many nodes follow this engine, and forgets engines that have not said anything for long.
fn count(status: &mut Value, nodes: &Nodes<'_>, is_rollout: bool, (now, time): (i64, &Value)) {
    let renew = if is_rollout { RENEW_ROLLOUT } else { RENEW };
    let said = nodes.said(is_rollout, &status["engines"], now);
    let engines = status["engines"].as_array().cloned().unwrap_or_default();
    let (own, mut others): (Vec<Value>, Vec<Value>) = engines
        .into_iter()
        .partition(|engine| engine["name"] == nodes.engine);
    others.retain(|engine| is_believed(engine, is_rollout, now));
    if nodes.seen.all > 0 || said.get("silent").is_some() {
        let mut entry = said;
        let before = own.first().filter(|own| age(own, now) < renew);
        entry["reported"] = before.map_or(Value::Null, |own| own["reported"].clone());
        if before != Some(&entry) {
            entry["reported"] = time.clone();
        }
        others.push(entry);
    }
    others.sort_by_key(|engine| engine["name"].as_str().map(str::to_owned));
    if others.is_empty() {
        if let Some(fields) = status.as_object_mut() {
            fields.remove("engines");
        }
    } else {
        status["engines"] = others.into();
    }
}

#[cfg(test)]
mod tests;
