// SPDX-License-Identifier: Apache-2.0
//! The identity sources at work: what tells the node thread who is who.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::input::Input;
use super::node::{Command, DEPTH, Sources};
use super::{descriptors, forward};
use crate::cgroup::{CgroupEvent, Watcher};
use crate::config::{Config, IdentitySource};
use crate::identity::spire::{self, Source, own};
use crate::metrics::Metrics;

/// How long the SPIRE agent may take for an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Descriptors for a process of each cgroup that SPIRE is asked about, and as many for all else.
const DESCRIPTORS: u64 = 32_768;
/// How often it is looked whether the first certificate has come.
const LOOK: Duration = Duration::from_millis(20);

/// The cgroups there are, what is known of them to begin with, and the `spire` source, if identities come from there. Must be
/// called inside a tokio runtime.
pub(super) fn open(
    config: &Config,
    input: &mut Input,
    watcher: &Watcher,
    metrics: &Metrics,
) -> (BTreeMap<PathBuf, u64>, Sources, Option<Source>) {
    let cgroups = watcher.snapshot();
    let settings = spire::Settings {
        admin_socket: config.identity.spire_admin_socket.clone(),
        trust_domain: config.trust_domain.clone(),
        mount: input.mount.clone(),
        roots: input.root_paths.clone(),
        depth: DEPTH as usize,
        on_expiry: config.identity.on_expiry,
        patience: PATIENCE,
        memory: config.state_directory().join(spire::FILE),
    };
    let wanted = config.identity.has(IdentitySource::Spire);
    if wanted {
        descriptors::raise(DESCRIPTORS);
    }
    let source = wanted.then(|| Source::new(settings, cgroups.clone()));
    if let Some(source) = &source {
        metrics.read_spire(source.health());
    }
    let known = source.as_ref().map(|source| source.known().clone());
    let sources = Sources {
        declared: std::mem::take(&mut input.records),
        attested: known.unwrap_or_default(),
    };
    (cgroups, sources, source)
}

/// Keeps the agent's own SVID on disk, if its certificates are SPIRE's. Returns when there is one, or after a while: what
/// needs it waits for it by itself.
pub(super) async fn own(config: &Config) -> Option<JoinHandle<()>> {
    if !config.api.tls.spire {
        return None;
    }
    let kept = tokio::spawn(own::keep(
        config.identity.spire_socket.clone(),
        config.trust_domain.clone(),
        config.svid_directory(),
    ));
    let there = async {
        while config.api.tls.all().is_some_and(|(cert, _, _)| !cert.exists()) {
            sleep(LOOK).await;
        }
    };
    if timeout(PATIENCE, there).await.is_err() {
        tracing::warn!(socket = %config.identity.spire_socket.display(), "SPIRE has given this agent no certificate yet; going on without");
    }
    Some(kept)
}

/// Has the node told of cgroups, and of who SPIRE says they are: of a cgroup always first that it exists.
pub(super) fn follow(
    watcher: Watcher,
    source: Option<Source>,
    commands: &mpsc::Sender<Command>,
) -> Vec<JoinHandle<()>> {
    let (cgroup_sender, mut cgroup_receiver) = mpsc::channel(1024);
    let (to_source, from_watcher) = mpsc::unbounded_channel::<CgroupEvent>();
    let to_node = commands.clone();
    let mut tasks = vec![
        tokio::spawn(async move {
            if let Err(error) = watcher.run(cgroup_sender).await {
                tracing::error!(%error, "the cgroup watcher stopped: new cgroups are known by their ancestors only; restart the agent");
            }
        }),
        tokio::spawn(async move {
            while let Some(event) = cgroup_receiver.recv().await {
                if to_node.send(Command::Cgroup(event.clone())).await.is_err() {
                    return;
                }
                // Nobody listens without the source.
                let _ = to_source.send(event);
            }
        }),
    ];
    if let Some(source) = source {
        let (said_sender, said) = mpsc::channel(1024);
        tasks.push(tokio::spawn(source.run(from_watcher, said_sender)));
        tasks.push(forward(said, commands.clone(), Command::Attested));
    }
    tasks
}
