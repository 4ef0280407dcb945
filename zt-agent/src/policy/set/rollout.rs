// SPDX-License-Identifier: Apache-2.0
//! The rollout among the documents, of which there is at most one.

use std::sync::Arc;

use super::{PolicySet, reparse};
use crate::policy::any::AnyPolicy;
use crate::policy::endpoint::Endpoint;
use crate::policy::problem::Problem;
use crate::policy::rollout::{EnforcementRollout, ROLLOUT_KIND};
use crate::policy::{Document, Settings};
use crate::spiffe_id::Pattern;

impl PolicySet {
    /// How they come to be enforced, where there is a rollout.
    pub fn rollout(&self) -> Option<&Arc<EnforcementRollout>> {
        self.rollout.as_ref()
    }

    /// The patterns by which rules name workloads: neither one alone nor everybody.
    pub fn patterns(&self) -> impl Iterator<Item = &Pattern> {
        let rules = self.policies().iter().flat_map(|policy| policy.rules.iter());
        let ends = rules.flat_map(|rule| {
            std::iter::once(&rule.from).chain(rule.to.iter().map(|target| &target.endpoint))
        });
        ends.filter_map(|end| match end {
            Endpoint::Spiffe(pattern @ Pattern::Segments(_)) => Some(pattern),
            _ => None,
        })
    }

    /// What that is called.
    pub(super) fn rollout_name(&self) -> Option<&str> {
        self.rollout().map(|rollout| rollout.head.name.as_str())
    }

    /// What comes of documents that were read: the policies that they are, or what is wrong with them; and where that is so, these
    /// policies with their rollout back, if the documents say that ([`Self::gone_back`]).
    pub fn succeeded_by(
        &self,
        documents: Result<Vec<Document>, Vec<Problem>>,
        settings: &Settings,
    ) -> Result<Self, (Vec<Problem>, Option<Box<Self>>)> {
        let documents = documents.map_err(|problems| (problems, None))?;
        reparse(&documents, settings, self)
            .map_err(|problems| (problems, self.gone_back(&documents, settings).map(Box::new)))
    }

    /// How many stages of the rollout are in force with these settings; none without one.
    pub fn stages_in_force(&self, settings: &Settings) -> usize {
        let said = self.rollout().map_or(0, |rollout| rollout.reached());
        settings.most_stages.map_or(said, |most| said.min(most))
    }

    /// The same policies, as they are when so many stages of the rollout are reached: to ask what they say then. They go by the
    /// digest of these.
    #[must_use]
    pub fn at_stage(&self, reached: usize) -> Self {
        let rollout = self.rollout().map(|rollout| Arc::new(rollout.at(reached)));
        Self {
            rollout,
            ..self.clone()
        }
    }

    /// Whether whom no policy names is refused, whatever policies say to everybody.
    pub fn requires_policy(&self, settings: &Settings) -> bool {
        self.rollout()
            .is_some_and(|rollout| rollout.requires_policy(self.stages_in_force(settings)))
    }

    /// These policies with their rollout back at an earlier stage, where that is what `documents` say of it, whatever is wrong with
    /// others of them. All else stays as it is: what these say of it is not valid together.
    pub fn gone_back(&self, documents: &[Document], settings: &Settings) -> Option<Self> {
        let rollout = self.rollout()?;
        let mut said = documents
            .iter()
            .filter(|document| document.text.contains(ROLLOUT_KIND))
            .filter_map(|document| reparse(std::slice::from_ref(document), settings, self).ok())
            .filter_map(|set| set.rollout.filter(|other| other.head.name == rollout.head.name));
        let (said, other) = (said.next()?, said.next());
        let at = rollout.earlier_by(&said).filter(|_| other.is_none())?;
        let back = Arc::new(rollout.at(at));
        let mut files = self.files.clone();
        for file in &mut files {
            for policy in &mut file.policies {
                if matches!(policy, AnyPolicy::Rollout(_)) {
                    *policy = AnyPolicy::Rollout(Arc::clone(&back));
                    // It is not what that text says any more.
                    file.content = String::new();
                }
            }
        }
        Self::new(files, &self.trust_domain, None).ok()
    }
}

/// The one rollout, and what is wrong with the others: each would say in which mode a workload is. The one called `known` is not the
/// one too many.
pub(super) fn only(
    rollouts: &[&Arc<EnforcementRollout>],
    known: Option<&str>,
) -> (Option<Arc<EnforcementRollout>>, Vec<Problem>) {
    let is_known = |rollout: &&&Arc<EnforcementRollout>| known == Some(rollout.head.name.as_str());
    let Some(first) = rollouts.iter().find(is_known).or_else(|| rollouts.first()) else {
        return (None, Vec::new());
    };
    let others = rollouts.iter().filter(|other| !Arc::ptr_eq(other, first));
    let problem = |other: &&Arc<EnforcementRollout>| Problem {
        file: other.head.file.clone(),
        line: other.head.line,
        column: other.head.column,
        field: "metadata.name".to_owned(),
        message: format!(
            "`{}` conflicts with the {ROLLOUT_KIND} `{}` in {}:{}: there is one at a time, put their stages into it",
            other.head.name, first.head.name, first.head.file, first.head.line
        ),
    };
    (Some(Arc::clone(first)), others.map(problem).collect())
}
