// SPDX-License-Identifier: Apache-2.0
//! What is fuzzed: the functions that the tests of the agent give the corpora to.

#[path = "../../zt-agent/tests/corpora/targets.rs"]
mod targets;

/// Gives bytes to the target of this name, which is one.
pub fn give(name: &str, bytes: &[u8]) {
    let found = targets::TARGETS.iter().find(|(of, _)| *of == name);
    let (_, target) = found.expect("the programs are named after the targets");
    target(bytes);
}
