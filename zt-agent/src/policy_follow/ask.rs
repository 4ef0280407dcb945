// SPDX-License-Identifier: Apache-2.0
//! An engine that is asked once, as a follower asks it, by somebody who does not follow it.

use std::time::Duration;

use tokio::time::timeout;

use super::Settings;
use super::copy::Copy;
use super::fetch::{Engine, FollowError};

/// What came of asking.
#[derive(Debug)]
pub struct Asked {
    /// What the engine has in force, or why it could not come into force here.
    pub engine: Result<Answered, FollowError>,
    /// The digest of the last good policy on disk, which a start without the engine takes; or why there is none.
    pub copy: Result<String, String>,
}

/// What an engine has in force. It could come into force here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    /// The engine's own count.
    pub revision: u64,
    /// How many policies.
    pub policies: usize,
    /// Their digest, which is that of their documents.
    pub digest: String,
}

/// Asks an engine for its policies, once, for as long as `patience`. Nothing is kept, and nothing comes into force.
pub async fn ask(settings: &Settings, patience: Duration) -> Asked {
    let engine = match timeout(patience, Engine::new(settings).fetch()).await {
        Ok(fetched) => fetched.map(|fetched| Answered {
            revision: fetched.revision,
            policies: fetched.policies.policies().len(),
            digest: fetched.policies.digest().to_owned(),
        }),
        Err(_) => Err(FollowError::Slow {
            url: settings.url.clone(),
        }),
    };
    let copy = Copy::new(&settings.directory).load(&settings.policy);
    Asked {
        engine,
        copy: copy
            .map(|policies| policies.digest().to_owned())
            .map_err(|error| error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy;

    #[tokio::test]
    async fn who_is_not_there_is_named_and_so_is_what_there_is_instead() {
        let directory = tempfile::tempdir().expect("tempdir");
        let settings = Settings {
            url: "http://127.0.0.1:1".to_owned(),
            node: "n".to_owned(),
            policy: policy::Settings::default(),
            directory: directory.path().to_path_buf(),
            tls: None,
        };
        let asked = ask(&settings, Duration::from_secs(60)).await;
        let error = asked.engine.expect_err("nobody listens there");
        assert!(matches!(error, FollowError::Unreachable { .. }), "{error:?}");
        assert!(error.to_string().contains("http://127.0.0.1:1"), "{error}");
        let copy = asked.copy.expect_err("there is none");
        assert!(copy.contains("policy.json"), "{copy}");
    }
}
