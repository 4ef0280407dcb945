// SPDX-License-Identifier: Apache-2.0
//! Stages that select nobody whom the stages before them have not selected: most likely they were meant to say something else.

use super::{Stage, StageMode};
use crate::spiffe_id::Pattern;

/// What makes somebody already what a stage would make of him.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum By<'a> {
    /// `defaultMode`.
    Default,
    /// A stage before, by its name.
    Stage(&'a str),
}

/// The stages of a rollout that is being read.
pub(super) struct Stages<'a> {
    pub(super) default_mode: Option<StageMode>,
    pub(super) stages: &'a [Stage],
}

impl<'a> Stages<'a> {
    /// What the stage at `index` repeats, if that is all that it does.
    pub(super) fn repeated_by(&self, index: usize) -> Option<By<'a>> {
        let (before, rest) = self.stages.split_at_checked(index)?;
        let stage = rest.first()?;
        let mut repeated = stage
            .identities
            .iter()
            .map(|pattern| self.repeats(stage, pattern, before));
        let first = repeated.next()??;
        repeated.all(|again| again.is_some()).then_some(first)
    }

    /// What makes those whom `pattern` of `stage` selects what that would make of them, before it does.
    fn repeats(&self, stage: &Stage, pattern: &Pattern, before: &'a [Stage]) -> Option<By<'a>> {
        let meets = |earlier: &&Stage| earlier.identities.iter().any(|other| meet(other, pattern));
        let Some(earlier) = before.iter().rev().find(meets) else {
            // At a stage that requires policy everybody enforces: who is to be spared then has to be named.
            let changes = self.stages.iter().any(|stage| stage.require_policy);
            let stays =
                self.default_mode == Some(stage.mode) && (!changes || stage.mode == StageMode::Enforce);
            return stays.then_some(By::Default);
        };
        let all = match (&earlier.canary, &stage.canary) {
            (None, _) => true,
            (Some(earlier), Some(own)) => earlier.covers(*own),
            (Some(earlier), None) => earlier.percent >= 100,
        };
        let covered = earlier.identities.iter().any(|other| covers(other, pattern));
        (earlier.mode == stage.mode && all && covered).then_some(By::Stage(&earlier.name))
    }
}

/// Whether `wide` matches whatever `narrow` does.
pub(super) fn covers(wide: &Pattern, narrow: &Pattern) -> bool {
    match (wide, narrow) {
        (Pattern::Any, _) => true,
        (_, Pattern::Any) => false,
        _ => segments(wide, narrow, |wide, narrow| wide == "*" || wide == narrow),
    }
}

/// Whether there may be an identity that both match.
pub(super) fn meet(one: &Pattern, other: &Pattern) -> bool {
    match (one, other) {
        (Pattern::Any, _) | (_, Pattern::Any) => true,
        _ => segments(one, other, |one, other| {
            one == "*" || other == "*" || one == other
        }),
    }
}

fn segments(one: &Pattern, other: &Pattern, agree: impl Fn(&str, &str) -> bool) -> bool {
    let (mut one, mut other) = (one.as_str().split('/'), other.as_str().split('/'));
    loop {
        match (one.next(), other.next()) {
            (None, None) => return true,
            (Some(one), Some(other)) if agree(one, other) => {}
            _ => return false,
        }
    }
}
