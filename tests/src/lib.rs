// SPDX-License-Identifier: Apache-2.0
//! What the kernel tests are made of: cgroups, network namespaces, workloads and agents that clean up after
//! themselves.
//!
//! A [`Sandbox`] owns everything that a test makes. It is named after the process that made it, so that the next one
//! can sweep up after a process that was killed. Everything in it is real: the [`Probe`] is a workload process in a
//! cgroup and a network namespace of its own, and the [`Agent`] is the `zt-agent` binary.

pub mod agent;
pub mod agent_files;
pub mod attack;
pub mod attacker;
pub mod btf;
pub mod cgroup;
pub mod contained;
pub mod containerd;
pub mod crossing;
pub mod datagram;
pub mod deployment;
pub mod engine;
pub mod entries;
mod explained;
pub mod hooks;
pub mod http;
pub mod kube_api;
pub mod kubelet;
pub mod linux;
pub mod metrics;
pub mod moments;
pub mod mounts;
pub mod nat;
pub mod network;
pub mod nodes;
mod obtained;
pub mod other_program;
pub mod pair;
pub mod ports;
pub mod postgres;
pub mod probe;
pub mod programs;
#[path = "../../zt-agent/tests/corpora/random.rs"]
mod random;
pub mod rewriter;
pub mod rules;
pub mod sandbox;
pub mod scene;
pub mod services;
pub mod spire;
pub mod sweep;
pub mod terminal;
pub mod trail;
pub mod wait;
pub mod wire;

pub use agent::{Agent, AgentBuilder};
pub use cgroup::Cgroup;
pub use containerd::Containerd;
pub use engine::Engine;
pub use kube_api::KubeApi;
pub use kubelet::Kubelet;
pub use network::Host;
pub use probe::{Probe, Reply};
pub use rewriter::{Place, Rewriter};
pub use rules::{Policy, TCP, UDP, spiffe};
pub use sandbox::Sandbox;
pub use scene::{Party, Scene};
pub use terminal::Terminal;
pub use wait::{asked, eventually, wait_for};
