// SPDX-License-Identifier: Apache-2.0
//! `zt`: identity policy, enforced by the Linux kernel.
//!
//! The library behind the `zt-agent` binary. `policy` and `spiffe_id` are pure and need neither root nor a runtime.

pub mod api;
pub mod app;
pub mod audit;
pub mod caller;
pub mod cgroup;
pub mod cli;
pub mod config;
pub mod confine;
pub mod demo;
pub mod doctor;
pub mod identity;
pub mod kernel;
pub mod kubernetes;
pub mod log;
pub mod metrics;
pub mod nri;
pub mod peers;
pub mod policy;
pub mod policy_cluster;
pub mod policy_dir;
pub mod policy_follow;
pub mod problem;
pub mod spiffe_id;
pub mod state;
pub mod sysdump;
pub mod tls;
pub mod traffic;
pub mod watch;
pub mod yaml;
