// SPDX-License-Identifier: Apache-2.0
//! What `/metrics` shows. Counting happens as records are made; all else is read from where it lives at each scrape.

mod decisions;
mod exposition;
mod fingerprint;
mod latency;
mod node;
mod nri;
mod options;
mod peers;
mod pods;
mod spire;
mod spool;
mod trail;
mod waits;

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use prometheus_client::registry::Registry;
use tokio::sync::watch;
use zt_common::counter::Counter;

use self::decisions::Decisions;
use self::latency::Latencies;
pub use self::node::NodeEvent;
use self::node::NodeEvents;
pub use self::options::OptionLoss;
use self::options::OptionLosses;
use self::waits::Waits;
use crate::audit::AuditRecord;
use crate::audit::pipeline::{Stats, Tally};
use crate::audit::record::Latency;
use crate::audit::spool::Account;
use crate::identity::spire::{Health, own};
use crate::kubernetes;
use crate::nri::Health as NriHealth;
use crate::peers::Health as PeersHealth;
use crate::state::{Configured, Snapshot, SourceStatus};

/// Pairs of source and destination that have labels of their own; the rest are `other`.
pub const MAX_PAIRS: usize = 2000;

/// Why callers from elsewhere are refused: each has a sample from the start, so that the first refusal is an increase.
pub const API_REFUSALS: [&str; 20] = [
    "no_certificate",
    "expired",
    "untrusted",
    "no_spiffe_id",
    "not_a_caller",
    "timeout",
    "handshake",
    "too_many_connections",
    "gone",
    "unread_answer",
    "not_yet_valid",
    "slow_head",
    "slow_body",
    "too_many_requests",
    "busy",
    "host_refused",
    "origin_refused",
    "certificate_expired",
    "caller_unknown",
    "role_insufficient",
];

/// The media type of [`Metrics::encode`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Reads the kernel's counters, summed over all CPUs.
pub trait KernelCounters: Send + Sync + 'static {
    /// All counters by slot; `None` while the maps cannot be read.
    fn read(&self) -> Option<[u64; Counter::COUNT as usize]>;
}

/// The metrics of this agent.
#[derive(Default)]
pub struct Metrics {
    decisions: Decisions,
    latencies: Latencies,
    waits: Waits,
    enforced_denials: AtomicU64,
    restored: AtomicU64,
    api_refusals: Mutex<BTreeMap<&'static str, u64>>,
    node: NodeEvents,
    options: OptionLosses,
    stats: OnceLock<Arc<Stats>>,
    spool: OnceLock<(Arc<Account>, u64)>,
    kernel: OnceLock<Box<dyn KernelCounters>>,
    snapshots: OnceLock<watch::Receiver<Arc<Snapshot>>>,
    source: OnceLock<watch::Receiver<SourceStatus>>,
    spire: OnceLock<Arc<Health>>,
    svid: OnceLock<Arc<own::Health>>,
    configuration: OnceLock<watch::Receiver<Arc<Configured>>>,
    kubernetes: OnceLock<Arc<kubernetes::Health>>,
    nri: OnceLock<Arc<NriHealth>>,
    peers: OnceLock<Arc<PeersHealth>>,
}

impl Metrics {
    /// Metrics with nothing to read from yet.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Where the pipeline's account is. The first one stays.
    pub fn read_pipeline(&self, stats: Arc<Stats>) {
        self.stats.get_or_init(|| stats);
    }

    /// Where the spool's account is, and how many bytes the spool may take. The first one stays.
    pub fn read_spool(&self, account: Arc<Account>, limit: u64) {
        self.spool.get_or_init(|| (account, limit));
    }

    /// Where the kernel's counters are. The first one stays.
    pub fn read_kernel(&self, counters: Box<dyn KernelCounters>) {
        self.kernel.get_or_init(|| counters);
    }

    /// Where the state in force is. The first one stays.
    pub fn read_snapshots(&self, snapshots: watch::Receiver<Arc<Snapshot>>) {
        self.snapshots.get_or_init(|| snapshots);
    }

    /// Hooks, links or pins of ours were missing and are back.
    pub fn restored(&self, count: usize) {
        self.restored.fetch_add(count as u64, Ordering::Relaxed);
    }

    /// How many have been missing and are back.
    pub fn restored_total(&self) -> u64 {
        self.restored.load(Ordering::Relaxed)
    }

    /// Where what is known of the engine that is followed is. The first one stays.
    pub fn read_source(&self, source: watch::Receiver<SourceStatus>) {
        self.source.get_or_init(|| source);
    }

    /// Where it is said how readings of the configuration went. The first one stays.
    pub fn read_configuration(&self, reloaded: watch::Receiver<Arc<Configured>>) {
        self.configuration.get_or_init(|| reloaded);
    }

    /// Where what is known of SPIRE is. The first one stays.
    pub fn read_spire(&self, health: Arc<Health>) {
        self.spire.get_or_init(|| health);
    }

    /// Where what is known of this agent's own certificate is. The first one stays.
    pub fn read_svid(&self, health: Arc<own::Health>) {
        self.svid.get_or_init(|| health);
    }

    /// How it stands with this agent's own certificate, where that comes from SPIRE.
    pub fn svid(&self) -> Option<own::Status> {
        self.svid.get().map(|health| health.status())
    }

    /// Where what is known of Kubernetes is. The first one stays.
    pub fn read_kubernetes(&self, health: Arc<kubernetes::Health>) {
        self.kubernetes.get_or_init(|| health);
    }

    /// Where what is known of the container runtime is. The first one stays.
    pub fn read_nri(&self, health: Arc<NriHealth>) {
        self.nri.get_or_init(|| health);
    }

    /// Where what is known of the agents of other nodes is. The first one stays.
    pub fn read_peers(&self, health: Arc<PeersHealth>) {
        self.peers.get_or_init(|| health);
    }

    /// The SPIFFE IDs that may be labels: those declared by policy and identity sources. Others count as `other`, so
    /// that who asks the API cannot make up label values.
    pub fn declare(&self, identities: HashSet<Arc<str>>) {
        self.decisions.declare(identities);
    }

    /// Somebody was refused by the API, for one of [`API_REFUSALS`].
    pub fn api_refused(&self, cause: &'static str) {
        debug_assert!(API_REFUSALS.contains(&cause), "{cause} is in no list");
        let mut refusals = self.api_refusals.lock().unwrap_or_else(PoisonError::into_inner);
        *refusals.entry(cause).or_default() += 1;
    }

    fn api_refusals(&self) -> BTreeMap<&'static str, u64> {
        let counted = self.api_refusals.lock().unwrap_or_else(PoisonError::into_inner);
        with_zeros(&API_REFUSALS, &counted)
    }

    /// Counts what happened to the node thread.
    pub fn node_event(&self, event: NodeEvent, count: u64) {
        self.node.add(event, count);
    }

    /// An identity option did not arrive.
    pub fn option_lost(&self, loss: OptionLoss) {
        self.options.add(loss);
    }

    /// Identities come from this source.
    pub fn names_come_from(&self, source: &'static str) {
        self.waits.expect(source);
    }

    /// A new cgroup was nobody for so many seconds, until this source said who is in it.
    pub fn named(&self, source: &'static str, seconds: f64) {
        self.waits.observe(source, seconds);
    }

    /// So many decisions as a record says, the last of which took this long.
    fn counted(&self, record: &AuditRecord, times: u64, latency: Latency) {
        self.decisions.count(record, times);
        self.latencies.observe(latency.0);
        if record.is_enforced_denial() {
            self.enforced_denials.fetch_add(times, Ordering::Relaxed);
        }
    }

    /// Everything, as [`CONTENT_TYPE`].
    pub fn encode(self: &Arc<Self>) -> Result<String, fmt::Error> {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(exposition::Exposition(Arc::clone(self))));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry)?;
        Ok(text)
    }
}

/// What was counted, and 0 for causes that nothing was counted for: a counter that appears with its first count shows no
/// increase.
fn with_zeros(causes: &[&'static str], counted: &BTreeMap<&'static str, u64>) -> BTreeMap<&'static str, u64> {
    let mut all: BTreeMap<_, _> = causes.iter().map(|cause| (*cause, 0)).collect();
    all.extend(counted.iter().map(|(cause, count)| (*cause, *count)));
    all
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Tally for Metrics {
    fn recorded(&self, record: &AuditRecord) {
        self.counted(record, record.count, record.latency);
    }

    fn joined(&self, record: &AuditRecord, latency: Latency) {
        self.counted(record, 1, latency);
    }
}

#[cfg(test)]
mod tests;
