// SPDX-License-Identifier: Apache-2.0
//! Decisions and records for tests.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use uuid::Uuid;
use zt_common::address::Address;
use zt_common::event::Hook;
use zt_common::verdict::Reason;

use super::convert::{Context, from_decision};
use super::decode::Decision;
use super::names::{NameResolver, entity};
use super::record::AuditRecord;

pub(crate) const GATEWAY: u64 = 1 << 40;
pub(crate) const POSTGRES: u64 = (1 << 40) + 1;
pub(crate) const CHAT: u64 = (1 << 40) + 2;
pub(crate) const RULE: u64 = 1 << 50;

/// Names as a node of the specification's example would have them.
#[derive(Default)]
pub(crate) struct Resolver {
    pub(crate) here: HashMap<IpAddr, (u64, Option<Arc<str>>)>,
}

impl NameResolver for Resolver {
    fn identity(&self, number: u64) -> Option<Arc<str>> {
        let name = match number {
            GATEWAY => "spiffe://hanzo.ai/hanzo-k8s/hanzo/gateway",
            POSTGRES => "spiffe://hanzo.ai/hanzo-k8s/hanzo/postgres",
            CHAT => "spiffe://hanzo.ai/hanzo-k8s/hanzo/chat",
            _ => entity(number)?,
        };
        Some(Arc::from(name))
    }

    fn rule(&self, number: u64) -> Option<Arc<str>> {
        (number == RULE).then(|| Arc::from("hanzo-core-policy/rule-2"))
    }

    fn pod(&self, cgroup: u64) -> Option<Arc<str>> {
        (cgroup == 77).then(|| Arc::from("gateway-7f8b9c6d4-x2k9p"))
    }

    fn here(&self, address: IpAddr) -> Option<(u64, Option<Arc<str>>)> {
        self.here.get(&address).cloned()
    }
}

pub(crate) fn context() -> Context {
    Context {
        cluster: Arc::from("hanzo-k8s"),
        node: Arc::from("worker-3"),
        // 2026-02-23T14:30:00Z at the monotonic time of `decision`.
        clock_offset: 1_771_857_000_000_000_000 - 5_000_000_000,
    }
}

/// The decision of the specification's example record.
pub(crate) fn decision() -> Decision {
    Decision {
        time: 5_000_000_000,
        source: GATEWAY,
        destination: POSTGRES,
        rule: RULE,
        revision: 7,
        workload: 77,
        cookie: 9,
        netns: 1,
        source_address: Address::UNSPECIFIED_V4,
        destination_address: Address::from_v4([10, 99, 0, 3]),
        source_port: 0,
        destination_port: 5432,
        target_port: 5432,
        protocol: 6,
        hook: Hook::Connect,
        pid: 4242,
        latency: 42_000,
        reason: Reason::Rule,
        allowed: true,
        enforced: true,
        inbound: false,
        refused_socket: false,
        ipv6: false,
        proof: zt_common::proof::Proof::None,
        omitted: false,
        comm: *b"gateway\0\0\0\0\0\0\0\0\0",
    }
}

/// The same at another moment, denied.
pub(crate) fn denied(time: u64) -> Decision {
    Decision {
        time,
        rule: 0,
        reason: Reason::NoRule,
        allowed: false,
        ..decision()
    }
}

pub(crate) fn record() -> AuditRecord {
    record_of(&decision(), 0)
}

/// The record of `decision`, its id made of `number`.
pub(crate) fn record_of(decision: &Decision, number: u128) -> AuditRecord {
    let id = Uuid::from_u128(0x019c_8af9_0340_7000_8000_0000_0000_0000 | number);
    from_decision(decision, &Resolver::default(), &context(), id)
}
