// SPDX-License-Identifier: Apache-2.0
//! The canonical JSON form of a rollout, see [`Canonical`]. The fields of each structure are in alphabetical order.

use serde::Serialize;

use super::canary::CanaryBy;
use super::{EnforcementRollout, ROLLOUT_KIND, StageMode, soak};
use crate::policy::envelope::Canonical;
use crate::spiffe_id::Pattern;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Spec<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    default_mode: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stage: Option<&'a str>,
    stages: Vec<Stage<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Stage<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    canary: Option<Canary>,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    identities: Vec<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mode: Option<&'static str>,
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    on_denials: Option<OnDenials>,
    #[serde(skip_serializing_if = "Option::is_none")]
    require_policy: Option<bool>,
}

#[derive(Serialize)]
struct Canary {
    #[serde(skip_serializing_if = "Option::is_none")]
    by: Option<&'static str>,
    percent: u8,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct OnDenials {
    action: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    attempts_per_minute: Option<u64>,
    #[serde(rename = "for", skip_serializing_if = "Option::is_none")]
    soak: Option<String>,
    per_minute: u64,
}

impl Stage<'_> {
    /// What it says to nodes.
    pub(super) const fn without_description(mut self) -> Self {
        self.description = None;
        self
    }
}

impl EnforcementRollout {
    pub(super) fn canonical(&self) -> Canonical<'_, Spec<'_>> {
        let spec = Spec {
            default_mode: self.default_mode.map(StageMode::name),
            description: self.spec_description.as_deref(),
            stage: self.stage_at(self.reached).map(|stage| &*stage.name),
            stages: self.stages.iter().map(Stage::from).collect(),
        };
        Canonical::new(ROLLOUT_KIND, &self.head, spec)
    }
}

impl<'a> From<&'a super::Stage> for Stage<'a> {
    fn from(stage: &'a super::Stage) -> Self {
        Self {
            canary: stage.canary.map(|canary| Canary {
                by: (canary.by != CanaryBy::default()).then(|| canary.by.name()),
                percent: canary.percent,
            }),
            description: stage.description.as_deref(),
            identities: stage.identities.iter().map(Pattern::as_str).collect(),
            mode: (stage.mode != StageMode::default()).then(|| stage.mode.name()),
            name: &stage.name,
            on_denials: stage.on_denials.map(|limit| OnDenials {
                action: limit.action.name(),
                attempts_per_minute: limit.attempts_per_minute,
                soak: (limit.soak != soak::DEFAULT).then(|| soak::text(limit.soak)),
                per_minute: limit.per_minute,
            }),
            require_policy: stage.require_policy.then_some(true),
        }
    }
}
