// SPDX-License-Identifier: Apache-2.0
//! The exposition, as a scraper gets it.

mod deploy;
mod labels;
mod readme;

use super::*;
use crate::audit::sample::{decision, record, record_of};

struct Kernel;

impl KernelCounters for Kernel {
    fn read(&self) -> Option<[u64; Counter::COUNT as usize]> {
        Some(std::array::from_fn(|slot| slot as u64 + 100))
    }
}

fn declared(names: &[&str]) -> HashSet<Arc<str>> {
    names.iter().map(|name| Arc::from(*name)).collect()
}

/// Metrics that every part of an agent reports to.
fn complete() -> Arc<Metrics> {
    let metrics = Metrics::new();
    metrics.read_kernel(Box::new(Kernel));
    let stats = Stats::default();
    stats.sealed(7, crate::audit::record::Timestamp(1));
    metrics.read_pipeline(Arc::new(stats));
    let snapshot = Snapshot {
        revision: 7,
        ..Snapshot::default()
    };
    metrics.read_snapshots(crate::state::channel(snapshot).1);
    metrics.read_spool(Arc::default(), 1 << 30);
    let source = SourceStatus::new("https://engine.example.org:8054", 0);
    metrics.read_source(watch::channel(source).1);
    let health = Health::new();
    health.rotated(&Arc::from("spiffe://hanzo.ai/hanzo-k8s/hanzo/gateway"));
    metrics.read_spire(health);
    let freshness = Arc::new(kubernetes::Freshness::default());
    for collection in ["node-pods", "pods", "services", "endpointslices", "nodes"] {
        freshness.begin(collection);
    }
    metrics.read_kubernetes(kubernetes::Health::new(freshness));
    for source in ["file", "kubernetes", "spire"] {
        metrics.names_come_from(source);
    }
    metrics.read_svid(Arc::default());
    metrics.read_nri(Arc::default());
    metrics.read_peers(Arc::default());
    metrics.read_configuration(watch::channel(Arc::default()).1);
    metrics
}

#[test]
fn the_names_of_the_specification_are_there() {
    let metrics = complete();
    metrics.declare(declared(&[
        "spiffe://hanzo.ai/hanzo-k8s/hanzo/gateway",
        "spiffe://hanzo.ai/hanzo-k8s/hanzo/postgres",
    ]));
    metrics.recorded(&record());
    let mut denied = decision();
    (denied.allowed, denied.destination) = (false, zt_common::identity::WORLD);
    metrics.recorded(&record_of(&denied, 1));
    let text = metrics.encode().expect("encodes");
    for line in [
        r#"zt_decisions_total{decision="allow",source="spiffe://hanzo.ai/hanzo-k8s/hanzo/gateway",dest="spiffe://hanzo.ai/hanzo-k8s/hanzo/postgres"} 1"#,
        r#"zt_decisions_total{decision="deny",source="spiffe://hanzo.ai/hanzo-k8s/hanzo/gateway",dest="world"} 1"#,
        "zt_enforced_denials_total 1",
        "# TYPE zt_evaluation_latency_seconds histogram",
        "zt_evaluation_latency_seconds_count 2",
        r#"zt_evaluation_latency_seconds_bucket{le="+Inf"} 2"#,
        r#"zt_evaluation_duration_seconds{quantile="0.99"} "#,
        r#"zt_events_lost_total{cause="ring_full"} 104"#,
        r#"zt_events_lost_total{cause="store_failed"} 0"#,
        r#"zt_kernel_decisions_total{verdict="denied_enforced"} 103"#,
        r#"zt_kernel_events_total{event="unfenced"} 108"#,
        "zt_audit_lag_seconds 0",
        "zt_policy_revision 7",
        "zt_policy_valid 1",
        "zt_observe_all 0",
        "zt_rollout_stopped 0",
        "zt_rollout_stages 0",
        "zt_workloads_enforced 0",
        r#"zt_svid_rotations_total{service="spiffe://hanzo.ai/hanzo-k8s/hanzo/gateway"} 1"#,
        concat!("zt_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
    ] {
        assert!(text.contains(line), "no `{line}` in\n{text}");
    }
    assert!(text.ends_with("# EOF\n"));
}

#[test]
fn labels_are_bounded_and_made_of_declared_identities() {
    let metrics = Metrics::new();
    metrics.recorded(&record());
    let text = metrics.encode().expect("encodes");
    assert!(
        text.contains(r#"{decision="allow",source="other",dest="other"} 1"#),
        "{text}"
    );

    let names: Vec<String> = (0..2500)
        .map(|number| format!("spiffe://hanzo.ai/{number}"))
        .collect();
    metrics.declare(names.iter().map(|name| Arc::from(name.as_str())).collect());
    for name in &names {
        let mut record = record();
        record.source.spiffe_id = Some(Arc::from(name.as_str()));
        metrics.recorded(&record);
    }
    let text = metrics.encode().expect("encodes");
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("zt_decisions_total"))
        .collect();
    assert!(lines.len() <= MAX_PAIRS + 1, "{}", lines.len());
    let count = |line: &&str| {
        line.rsplit(' ')
            .next()
            .and_then(|count| count.parse::<u64>().ok())
            .expect("count")
    };
    assert_eq!(lines.iter().map(count).sum::<u64>(), 2501);
}
