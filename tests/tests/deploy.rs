// SPDX-License-Identifier: Apache-2.0
//! The files under `deploy/` against the code that reads them.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

use zt_agent::config::{Config, Sources};

#[test]
fn the_sample_configuration_says_what_the_defaults_are() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/agent.yaml");
    let sources = Sources {
        file: Some(file),
        ..Sources::default()
    };
    assert_eq!(Config::load(&sources).unwrap(), Config::default());
}

#[test]
fn the_sample_configuration_of_an_engine_loads() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/engine.yaml");
    let sources = Sources {
        file: Some(file),
        ..Sources::default()
    };
    let config = Config::load(&sources).unwrap();
    assert_eq!(config.policy_path, Path::new("/var/lib/zt-engine/policies"));
    assert_eq!(config.state_directory(), Path::new("/var/lib/zt-engine"));
}
