// SPDX-License-Identifier: Apache-2.0
//! A policy-engine replica: the API over a policy directory, without a kernel side. It keeps nothing but its audit
//! trail, so that several may share one directory.

mod no_kernel;
mod reporting;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::block_in_place;

use self::no_kernel::NoKernel;
use self::reporting::report;
use super::callers::Callers;
use super::feed::PolicyFeed;
use super::serving::Endpoints;
use super::signals::Signals;
use super::trail::Trail;
use super::{AppError, Loaded, descriptors, identities, input, node, notify};
use crate::api::{self, ApiState, Readiness, Service};
use crate::config::{Config, PolicySource, Sources};
use crate::identity::{WorkloadRecord, file as identity_file};
use crate::metrics::Metrics;
use crate::policy::{self, PolicySet, compile};
use crate::policy_dir::Contents;
use crate::problem::Problem;
use crate::spiffe_id::SpiffeId;
use crate::state::merge::Places;
use crate::state::{self, NodeModes, Publisher, Snapshot};

/// Connections of the API at a time: each node that follows keeps one open, and asks over others now and then.
const MOST_CONNECTIONS: u64 = 16_384;
/// Descriptors that are left to files, the database and the other listeners.
const OTHER_DESCRIPTORS: u64 = 256;

/// Runs a policy engine until a signal asks it to stop. `sources` are read again for what may change meanwhile.
pub async fn run_engine(mut config: Config, sources: Sources) -> Result<(), AppError> {
    let as_read = config.clone();
    let started = crate::audit::clock::now();
    let (stop_sender, stopping) = watch::channel(false);
    // No kernel decides here: evaluations are what the trail is for.
    config.audit.api_share.get_or_insert(100);
    let bad = |problems| AppError::Input { problems };
    refuse_a_chain(&config).map_err(bad)?;
    let kubernetes = input::kubernetes(&config).await?;
    let (feed, policies) = PolicyFeed::open(&config, kubernetes.as_ref()).await?;
    let (workload_follower, contents) = identity_file::follow(config.identity.file.clone());
    let roots = config.managed_cgroup.roots();
    let records = workloads(&contents, &config, &roots).map_err(bad)?;
    let mut signals = Signals::listen()?;
    let (callers, configured) = Callers::follow(&as_read, sources)?;

    let metrics = Metrics::new();
    let (publisher, snapshots) = state::channel(Snapshot::default());
    let policies_in_force = publisher.policies();
    let mut engine = Engine {
        settings: Arc::new(config.policy_settings()),
        config: config.clone(),
        roots,
        loaded: Loaded::default(),
        records,
        revision: 0,
        metrics: Arc::clone(&metrics),
        snapshots: publisher,
    };
    engine.put_in_force(policies, None)?;

    let source = feed.status(&metrics);
    let (kept, editor) = feed.editor(&config, kubernetes.as_ref());
    let own = identities::own(&config).await.map(|own| own.shown(&metrics));
    let endpoints = Endpoints::bind(&config, false, &metrics, &configured)
        .await?
        .with_room(room());
    let trail = Trail::open(&config, &metrics).await?;
    metrics.read_snapshots(snapshots.clone());
    let (ready_sender, readiness) = watch::channel(Readiness::default());
    let state = ApiState::new(api::Parts {
        cluster: config.cluster.as_str().into(),
        node: config.node.as_str().into(),
        snapshots: snapshots.clone(),
        policies_in_force,
        editor,
        kept,
        told_policies: crate::policy_follow::Copies::beside(trail.store.local()),
        store: Arc::clone(&trail.store),
        intake: trail.intake.clone(),
        metrics,
        control: Arc::new(NoKernel),
        readiness,
        stopping: stopping.clone(),
        started,
        service: Service::Engine,
        source,
        spire: None,
        configuration: configured,
        kubernetes: None,
        peers: None,
        stopped_elsewhere: feed.stopped_elsewhere(Some(&config.node)),
    });
    let serving = endpoints.serve(&config, &state, &stopping);
    let recording = tokio::spawn(api::record_changes(state.clone()));
    let reporting = report(&feed, kubernetes, &config, snapshots.clone(), state);

    let (policy_sender, policy_changes) = mpsc::channel(1);
    let (workload_sender, workload_changes) = mpsc::channel(1);
    let following = [
        tokio::spawn(feed.run(policy_sender, snapshots)),
        tokio::spawn(workload_follower.run(workload_sender)),
        callers.start(),
    ];
    // No hook belongs anywhere, so none is missing.
    ready_sender.send_modify(|ready| {
        ready.policy = true;
        ready.hooks = true;
    });
    let mut working = tokio::spawn(engine.run(policy_changes, workload_changes));
    notify(sd_notify::NotifyState::Ready);

    let outcome = tokio::select! {
        _ = signals.terminate.recv() => Ok(config.api.drain),
        // Somebody sits there and waits.
        _ = signals.interrupt.recv() => Ok(Duration::ZERO),
        _ = &mut working => Err(AppError::Ended { part: "the engine's own work" }),
    };

    notify(sd_notify::NotifyState::Stopping);
    ready_sender.send_modify(|ready| ready.leaving = true);
    if let Ok(time) = outcome {
        drain(time, &mut signals).await;
    }
    tracing::info!("stopping: requests under way end, records are flushed");
    stop_sender.send_replace(true);
    for task in serving {
        // A server that panicked has said so already.
        let _ = task.await;
    }
    for task in following.into_iter().chain(own).chain(reporting) {
        task.abort();
    }
    working.abort();
    // It ends with the last sender of snapshots, which the work above held.
    let _ = recording.await;
    trail.close().await?;
    outcome.map(drop)
}

/// Goes on answering that long, until whoever sends requests here has heard that it ends. A second signal cuts it short.
async fn drain(time: Duration, signals: &mut Signals) {
    if time.is_zero() {
        return;
    }
    tracing::info!(
        ?time,
        "about to end: /readyz says so, requests are still answered"
    );
    tokio::select! {
        () = tokio::time::sleep(time) => {}
        _ = signals.terminate.recv() => {}
        _ = signals.interrupt.recv() => {}
    }
}

/// An engine does not follow an engine.
fn refuse_a_chain(config: &Config) -> Result<(), Vec<Problem>> {
    if config.policy_source != PolicySource::Engine {
        return Ok(());
    }
    Err(vec![problem(
        "configuration",
        "policySource",
        "is `engine`: an engine has its policy from a directory or from a cluster; only nodes follow an engine",
    )])
}

/// How many connections there is room for. The limit of descriptors is raised as far as it may be.
fn room() -> usize {
    let limit = descriptors::raise(MOST_CONNECTIONS + OTHER_DESCRIPTORS);
    let most = limit.saturating_sub(OTHER_DESCRIPTORS).min(MOST_CONNECTIONS);
    if most < MOST_CONNECTIONS {
        tracing::warn!(
            connections = most,
            "few files may be open (LimitNOFILE): nodes beyond that number push one another out"
        );
    }
    usize::try_from(most).unwrap_or(usize::MAX).max(64)
}

fn problem(file: &str, field: &str, message: &str) -> Problem {
    Problem {
        file: file.to_owned(),
        line: 0,
        column: 0,
        field: field.to_owned(),
        message: message.to_owned(),
    }
}

/// The workloads file where there is one: an engine needs none, policies name identities too.
fn workloads(
    contents: &identity_file::Contents,
    config: &Config,
    roots: &[PathBuf],
) -> Result<Vec<WorkloadRecord>, Vec<Problem>> {
    if contents.0.is_err() && !config.identity.file.exists() {
        return Ok(Vec::new());
    }
    node::read_workloads(contents, config, roots)
}

/// The single writer of what is in force at an engine.
struct Engine {
    config: Config,
    settings: Arc<policy::Settings>,
    roots: Vec<PathBuf>,
    loaded: Loaded,
    records: Vec<WorkloadRecord>,
    revision: u64,
    metrics: Arc<Metrics>,
    snapshots: Publisher,
}

impl Engine {
    async fn run(
        mut self,
        mut policies: mpsc::Receiver<Contents>,
        mut workloads: mpsc::Receiver<identity_file::Contents>,
    ) {
        loop {
            // Parsing and compiling take a while with many rules: requests are answered meanwhile.
            tokio::select! {
                Some(contents) = policies.recv() => block_in_place(|| self.policies_changed(contents)),
                Some(contents) = workloads.recv() => block_in_place(|| self.workloads_changed(&contents)),
                else => return,
            }
        }
    }

    fn policies_changed(&mut self, contents: Contents) {
        let problems = match self.loaded.policies.succeeded_by(contents.0, &self.settings) {
            Ok(policies) if policies.digest() == self.loaded.policies.digest() => {
                self.loaded = Loaded {
                    policies: Arc::new(policies),
                    error: None,
                };
                return self.publish_anew();
            }
            Ok(policies) => match self.put_in_force(policies, None) {
                Ok(()) => return,
                Err(error) => {
                    let path = self.config.policy_path.display().to_string();
                    Arc::new(vec![problem(&path, "", &error.to_string())])
                }
            },
            Err((problems, back)) => {
                let problems = Arc::new(problems);
                // The way back is open, whatever is wrong with others.
                if let Some(back) = back {
                    tracing::warn!(
                        "the rollout goes back, with the other documents that were in force before"
                    );
                    if let Err(error) = self.put_in_force(*back, Some(Arc::clone(&problems))) {
                        tracing::error!(%error, "the rollout does not go back");
                    }
                }
                problems
            }
        };
        self.not_in_force(problems);
    }

    fn not_in_force(&mut self, problems: Arc<Vec<Problem>>) {
        for problem in problems.iter() {
            tracing::error!(
                revision = self.revision,
                "policy not loaded, the last good one stays in force: {problem}"
            );
        }
        self.loaded.error = Some(problems);
        self.publish_anew();
    }

    fn workloads_changed(&mut self, contents: &identity_file::Contents) {
        match workloads(contents, &self.config, &self.roots) {
            Ok(records) => {
                tracing::info!(workloads = records.len(), "workloads loaded");
                self.records = records;
                self.publish_anew();
            }
            Err(problems) => {
                for problem in problems {
                    tracing::error!("workloads not loaded, those known stay: {problem}");
                }
            }
        }
    }

    fn put_in_force(
        &mut self,
        policies: PolicySet,
        problems: Option<Arc<Vec<Problem>>>,
    ) -> Result<(), AppError> {
        let table = compile(&policies, &self.identities(), &self.settings, self.revision + 1)?;
        self.revision += 1;
        self.loaded = Loaded {
            policies: Arc::new(policies),
            error: problems,
        };
        tracing::info!(
            revision = self.revision,
            entries = table.len(),
            digest = self.loaded.policies.digest(),
            "policy in force"
        );
        if let Err(error) = self.loaded.policies.prepare(&self.settings) {
            tracing::error!(%error, "there are no answers about identities that no policy names and that are not declared");
        }
        self.publish(table);
        Ok(())
    }

    fn identities(&self) -> BTreeSet<SpiffeId> {
        self.records.iter().map(|record| record.spiffe.clone()).collect()
    }

    /// Publishes the policies in force, for the workloads known now.
    fn publish_anew(&mut self) {
        match compile(
            &self.loaded.policies,
            &self.identities(),
            &self.settings,
            self.revision,
        ) {
            Ok(table) => self.publish(table),
            Err(error) => tracing::error!(%error, "new workloads are not taken up, those known stay"),
        }
    }

    fn publish(&self, table: policy::AllowTable) {
        let told = Arc::clone(&self.snapshots.newest().table);
        for (id, other) in table.alike() {
            if !told.alike().contains_key(id) {
                tracing::error!(
                    "two names have the same kernel number: `{id}` is nobody, as it could not be told from `{other}`; rename it"
                );
            }
        }
        let declared: HashSet<Arc<str>> = table.identities().iter().map(SpiffeId::text).collect();
        self.metrics.declare(declared);
        let records = self.records.iter().cloned().map(Arc::new).collect();
        let modes = NodeModes::new(
            self.config.modes(),
            &self.loaded.policies,
            &self.settings,
            &self.config.node,
        );
        let places = Places::new(records, &BTreeMap::new(), &modes);
        self.snapshots.publish(Snapshot {
            revision: self.revision,
            policies: Arc::clone(&self.loaded.policies),
            table: Arc::new(table),
            workloads: Arc::clone(places.placed()),
            behind: false,
            left_alone: Arc::default(),
            nameless: Arc::default(),
            fronts: Arc::default(),
            policy_error: self.loaded.error.clone(),
            observe_all: false,
            modes,
            stopped: None,
            enforced_nameless: 0,
            settings: Arc::clone(&self.settings),
        });
    }
}
