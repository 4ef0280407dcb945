// SPDX-License-Identifier: Apache-2.0
//! Where policy comes from an engine.

use super::*;

#[test]
fn an_engine_is_named_where_one_is_followed() {
    let message = load("policySource: engine\n", &[], &[]).expect_err("no URL");
    assert!(
        message[0].contains("engineUrl: `policySource: engine` needs it"),
        "{message:?}"
    );
    let message = load("engineUrl: http://127.0.0.1:9/\n", &[], &[]).expect_err("not used");
    assert!(
        message[0].contains("with `policySource: engine` only"),
        "{message:?}"
    );
    let config = load(
        "policySource: engine\n",
        &[("ZT_ENGINE_URL", "http://127.0.0.1:9/")],
        &[],
    );
    assert_eq!(
        config.expect("valid").engine_url.as_deref(),
        Some("http://127.0.0.1:9")
    );
    assert_eq!(load("engineUrl: null\n", &[], &[]), Ok(Config::default()));
}
