// SPDX-License-Identifier: Apache-2.0
//! What later versions will have, and this one refuses by name.

use super::{load, problem};

#[test]
fn what_comes_later_is_refused_by_name() {
    assert_eq!(
        problem("handshake: auto\n"),
        "agent.yaml:1:1: handshake: is not available in this version; remove it"
    );
    let problems = load("", &[("ZT_HANDSHAKE", "auto")], &[]).expect_err("later");
    assert_eq!(
        problems,
        ["environment: ZT_HANDSHAKE: is not available in this version; unset it"]
    );
}
