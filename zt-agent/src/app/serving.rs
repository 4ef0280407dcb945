// SPDX-License-Identifier: Apache-2.0
//! Where the agent is asked: the API, its Unix socket, and health and metrics.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::{AppError, turn};
use crate::api::{self, ApiState, Endpoint};
use crate::config::Config;
use crate::kernel;
use crate::metrics::Metrics;
use crate::state::Configured;
use crate::tls;

/// Places that are bound and do not answer yet.
pub(super) struct Endpoints {
    api: Endpoint,
    socket: Option<Endpoint>,
    health: Endpoint,
    /// Reads the certificates of the API anew.
    reloader: Option<tls::Reloader>,
}

impl Endpoints {
    /// Takes all addresses; where another agent has just `ended`, its ports may still be taken for a moment.
    pub(super) async fn bind(
        config: &Config,
        ended: bool,
        metrics: &Arc<Metrics>,
        configured: &watch::Receiver<Arc<Configured>>,
    ) -> Result<Self, AppError> {
        metrics.read_configuration(configured.clone());
        let (tls, reloader) = open_tls(config, metrics, configured)?;
        let api = turn::bind(ended, || api::bind_api(config.api.listen, tls.clone()))
            .await?
            .with_owners(kernel::owner_of);
        let socket = match &config.api.socket {
            Some(path) => Some(turn::bind(ended, || api::bind_socket(path)).await?),
            None => None,
        };
        let health = turn::bind(ended, || api::bind_health(config.api.health)).await?;
        Ok(Self {
            api,
            socket,
            health,
            reloader,
        })
    }

    /// The same with room for that many connections of the API at a time.
    pub(super) fn with_room(mut self, connections: usize) -> Self {
        let limits = api::Limits {
            connections,
            ..api::Limits::default()
        };
        self.api = self.api.with_limits(limits);
        self
    }

    /// Answers until `stopping` says so.
    pub(super) fn serve(
        self,
        config: &Config,
        state: &ApiState,
        stopping: &watch::Receiver<bool>,
    ) -> Vec<JoinHandle<()>> {
        tracing::info!(
            api = ?self.api.address(),
            health = ?self.health.address(),
            node = %config.node,
            "zt-agent is running"
        );
        let guard = Arc::new(api::Guard::new(config.api.rate_limit, Arc::clone(&state.metrics)));
        let serve = |endpoint: Endpoint| {
            let router = api::router(state.clone());
            tokio::spawn(endpoint.serve(router, Some(Arc::clone(&guard)), stopping.clone()))
        };
        let health = self
            .health
            .serve(api::health_router(state.clone()), None, stopping.clone());
        let mut serving = vec![serve(self.api), tokio::spawn(health)];
        serving.extend(self.socket.map(serve));
        // Ends with the endpoint that uses the certificates.
        serving.extend(self.reloader.map(|reloader| tokio::spawn(reloader.run())));
        serving
    }
}

/// The certificates of the API, and what reads them anew.
fn open_tls(
    config: &Config,
    metrics: &Arc<Metrics>,
    configured: &watch::Receiver<Arc<Configured>>,
) -> Result<(Option<api::Tls>, Option<tls::Reloader>), AppError> {
    let Some((cert, key, client_ca)) = config.api.tls.all() else {
        return Ok((None, None));
    };
    let files = tls::Files {
        cert: cert.clone(),
        key: key.clone(),
        client_ca: client_ca.clone(),
    };
    let (reloader, certificates) = if config.api.tls.spire {
        tls::Reloader::start_waiting(files)?
    } else {
        tls::Reloader::start(files)?
    };
    let tls = api::Tls {
        config: certificates,
        callers: configured.clone(),
        metrics: Arc::clone(metrics),
    };
    Ok((Some(tls), Some(reloader)))
}
