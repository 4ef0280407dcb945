// SPDX-License-Identifier: Apache-2.0
//! `zt`: identity policy, enforced by the Linux kernel.
//!
//! The library behind the `zt-agent` binary.

pub mod cgroup;
pub mod identity;
pub mod problem;
pub mod spiffe_id;
pub mod watch;
pub mod yaml;
