// SPDX-License-Identifier: Apache-2.0
//! The commands by which a policy is found, tried and compared, as a user runs them. No agent runs.

mod rollout {
    pub(crate) mod behind;
    pub(crate) mod check;
    pub(crate) mod classes;
    pub(crate) mod diff;
    pub(crate) mod expectations;
    pub(crate) mod explain;
    pub(crate) mod network_policy;
    pub(crate) mod program;
    pub(crate) mod recommend;
    pub(crate) mod traffic;
}
