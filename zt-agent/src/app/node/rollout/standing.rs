// SPDX-License-Identifier: Apache-2.0
//! Where this node stands in a rollout, kept for the next agent.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::unix_now;
use crate::identity::kept;
use crate::policy::{Armed, Guard, Stop};
use crate::state::NodeModes;

/// The file in which it is kept where this node stopped.
const FILE: &str = "rollout.json";
/// Most bytes of that file.
const MAX_BYTES: u64 = 64 * 1024;

/// The rollout on this node.
#[derive(Debug)]
pub(in crate::app::node) struct Rollout {
    pub(super) guard: Guard,
    file: PathBuf,
    /// What the file says.
    kept: Kept,
    /// The stage in force; before an agent has begun, what the one before it left. `None` where that is not known.
    pub(super) in_force: Option<InForce>,
    /// Why it does not say what it should, as was told of last.
    not_kept: Option<String>,
    /// The stop that is on record.
    pub(super) recorded: Option<Stop>,
    /// It goes on by request.
    pub(super) resuming: bool,
}

/// What the next agent is to know.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    /// Where this node stopped.
    stop: Option<Stop>,
    /// Since when the limit of the stage in force holds.
    armed: Option<Armed>,
    /// The stage in force; an older agent does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    in_force: Option<InForce>,
}

/// A stage in force.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct InForce {
    /// Of this rollout, if there is one.
    pub(super) rollout: Option<String>,
    /// Its name; none where the rollout has not begun.
    pub(super) stage: Option<String>,
}

impl InForce {
    /// The one that makes these modes.
    pub(super) fn under(modes: &NodeModes) -> Self {
        let Some((rollout, reached)) = modes.rollout() else {
            return Self::default();
        };
        Self {
            rollout: Some(rollout.head.name.clone()),
            stage: rollout.stage_at(reached).map(|stage| stage.name.to_string()),
        }
    }
}

/// What the file may say.
#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Now(Kept),
    /// Where the node stopped, by an older agent.
    Before(Option<Stop>),
}

impl Rollout {
    /// Goes on where the last agent left off.
    pub(in crate::app::node) fn open(directory: &Path) -> Self {
        let file = directory.join(FILE);
        let read = kept::try_read::<Written>(&file, MAX_BYTES);
        let (guard, kept) = match read {
            Ok(written) => {
                let kept = match written {
                    None => Kept::default(),
                    Some(Written::Now(kept)) => kept,
                    Some(Written::Before(stop)) => Kept {
                        stop,
                        ..Kept::default()
                    },
                };
                (Guard::new(kept.stop.clone(), kept.armed.clone()), kept)
            }
            Err(error) => {
                tracing::error!(
                    file = %file.display(),
                    %error,
                    "where this node stopped in the rollout cannot be read: it does not go beyond the last stage at which it may have; see `zt-agent rollout status`"
                );
                (Guard::unread(unix_now()), Kept::default())
            }
        };
        Self {
            guard,
            file,
            recorded: kept.stop.clone(),
            in_force: kept.in_force.clone(),
            kept,
            not_kept: None,
            resuming: false,
        }
    }

    /// Where this node stopped.
    pub(in crate::app::node) fn stop(&self) -> Option<Arc<Stop>> {
        self.guard.stop().cloned().map(Arc::new)
    }

    /// Has the next agent know where this node stopped, and at which stage it is.
    pub(super) fn keep(&mut self) {
        // A node that never had a rollout needs no file that says so.
        let in_force = self.in_force.clone();
        let now = Kept {
            stop: self.guard.stop().cloned(),
            armed: self.guard.armed().cloned(),
            in_force: in_force.filter(|is| is.rollout.is_some() || self.kept.in_force.is_some()),
        };
        if self.kept == now || !self.guard.is_known() {
            return;
        }
        let written = serde_json::to_vec(&now)
            .map_err(std::io::Error::other)
            .and_then(|text| kept::replace_synced(&self.file, &text));
        match written {
            Ok(()) => (self.kept, self.not_kept) = (now, None),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{DenialAction, StopCause};

    fn stop() -> Stop {
        Stop {
            rollout: "r".to_owned(),
            stage: "a".to_owned(),
            definition: "d".repeat(64),
            action: DenialAction::Hold,
            denials: 2,
            per_minute: 1,
            attempts: 0,
            attempts_per_minute: None,
            at: 7,
            edges: Vec::new(),
            cause: StopCause::Denials,
        }
    }

    #[test]
    fn what_an_older_agent_left_is_read_and_what_cannot_be_read_is_not_nothing() {
        let directory = tempfile::tempdir().expect("a directory");
        let open = |text: Option<&str>| {
            let file = directory.path().join(FILE);
            match text {
                Some(text) => std::fs::write(file, text).expect("written"),
                None => std::fs::remove_file(file).unwrap_or_default(),
            }
            Rollout::open(directory.path()).guard
        };
        assert!(open(None).stop().is_none());
        assert!(open(Some("null")).stop().is_none());
        let before = serde_json::json!({
            "rollout": "r", "stage": "a", "definition": "d".repeat(64), "action": "hold",
            "denials": 2, "per_minute": 1, "at": 7,
        });
        let guard = open(Some(&before.to_string()));
        assert_eq!((guard.stop(), guard.is_known()), (Some(&stop()), true));
        let mut rollout = Rollout::open(directory.path());
        rollout.kept = Kept::default();
        rollout.keep();
        let guard = Rollout::open(directory.path()).guard;
        assert_eq!(guard.stop(), Some(&stop()), "as it is written now");
        let mut rollout = Rollout::open(directory.path());
        assert_eq!(rollout.in_force, None, "an older agent does not say");
        let none = InForce::default();
        rollout.in_force = Some(none.clone());
        rollout.keep();
        assert_eq!(
            Rollout::open(directory.path()).in_force,
            None,
            "there never was one"
        );
        let first = InForce {
            rollout: Some("r".to_owned()),
            stage: Some("a".to_owned()),
        };
        for is in [first, none] {
            rollout.in_force = Some(is.clone());
            rollout.keep();
            assert_eq!(Rollout::open(directory.path()).in_force, Some(is));
        }
        for broken in ["", "{", r#"{"stop": 1}"#, &"x".repeat(MAX_BYTES as usize + 1)] {
            assert!(!open(Some(broken)).is_known(), "{broken:.20}");
        }
        let mut rollout = Rollout::open(directory.path());
        rollout.keep();
        assert!(
            !Rollout::open(directory.path()).guard.is_known(),
            "it is not written over"
        );
    }
}
