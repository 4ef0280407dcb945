// SPDX-License-Identifier: Apache-2.0
//! The one connection to the SPIRE agent, and the trust bundle that comes over it.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use spire_api::pb::spire::api::agent::delegatedidentity::v1::delegated_identity_client::DelegatedIdentityClient;
use spire_api::pb::spire::api::agent::delegatedidentity::v1::{
    SubscribeToX509BundlesRequest, SubscribeToX509BundlesResponse, SubscribeToX509sviDsRequest,
    SubscribeToX509sviDsResponse,
};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};

use super::Settings;
use super::backoff::Backoff;
use super::bundle::{Bundle, BundleError};
use super::health::Health;
use super::rights::SocketError;

/// How often it is asked whether it is still there. (It takes HTTP/2 pings more often than every five minutes amiss.)
const PROBE: Duration = Duration::from_secs(15);
/// The least time between two bundles.
const SETTLE: Duration = Duration::from_millis(100);
/// Pauses between attempts.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Most bytes of one answer.
const MAX_BYTES: usize = 4 << 20;

/// Why there is no connection to the SPIRE agent.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    #[error(
        "the admin socket {path} of the SPIRE agent cannot be reached (`identity.spireAdminSocket`): {source}"
    )]
    Connect { path: PathBuf, source: SocketError },
    #[error("{path} does not speak SPIRE's Delegated Identity API: {message}")]
    Protocol { path: PathBuf, message: String },
    #[error("the SPIRE agent did not answer within {0:?}")]
    Silent(Duration),
    #[error(
        "the SPIRE agent refuses us ({0}): zt-agent needs a registration entry, and its SPIFFE ID must be in \
         `authorized_delegates` of the SPIRE agent"
    )]
    Refused(String),
    #[error("the SPIRE agent says: {0}")]
    Said(String),
    #[error("the SPIRE agent ended the stream of bundles")]
    Ended,
    #[error("{0}")]
    Bundle(#[from] BundleError),
}

/// A connection that works, and whom to believe.
#[derive(Clone, Debug)]
pub(super) struct Link {
    client: DelegatedIdentityClient<Channel>,
    pub(super) bundle: Arc<Bundle>,
    /// Which connection this is: its streams are of no use on another.
    pub(super) number: u64,
}

impl Link {
    /// Subscribes to what SPIRE has to say of somebody, or why that cannot be had.
    pub(super) async fn subscribe(
        &self,
        request: Option<SubscribeToX509sviDsRequest>,
        patience: Duration,
    ) -> Result<Streaming<SubscribeToX509sviDsResponse>, String> {
        let request = request.ok_or_else(|| "its process id is out of range".to_owned())?;
        let mut client = self.client.clone();
        match timeout(patience, client.subscribe_to_x509svi_ds(request)).await {
            Ok(Ok(stream)) => Ok(stream.into_inner()),
            Ok(Err(status)) => Err(words(&status)),
            Err(_) => Err("it did not answer in time".to_owned()),
        }
    }
}

/// Waits until something about the connection is new; for ever where nobody keeps it any more: what is known then stays as it is.
pub(super) async fn news(links: &mut watch::Receiver<Option<Link>>) {
    if links.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Keeps the connection, for ever. `None` is sent while there is none.
pub(super) async fn keep(settings: Arc<Settings>, health: Arc<Health>, link: watch::Sender<Option<Link>>) {
    let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE, u64::from(std::process::id()));
    for number in 0.. {
        let mut keeper = Keeper {
            settings: &settings,
            health: &health,
            link: &link,
            number,
        };
        let error = match keeper.work(&mut backoff).await {
            Ok(never) => match never {},
            Err(error) => error,
        };
        link.send_replace(None);
        if matches!(error, LinkError::Bundle(_)) {
            health.refused("bundle", &error.to_string());
        }
        let message = error.to_string();
        let first = number == 0;
        if health.disconnected(&message) || first {
            tracing::warn!(error = %message, "no connection to SPIRE: identities that are known stay until their SVIDs expire");
        }
        sleep(backoff.pause()).await;
    }
}

enum Never {}

struct Keeper<'a> {
    settings: &'a Settings,
    health: &'a Health,
    link: &'a watch::Sender<Option<Link>>,
    number: u64,
}

impl Keeper<'_> {
    /// Connects, and follows the bundle until that is no longer possible.
    async fn work(&mut self, backoff: &mut Backoff) -> Result<Never, LinkError> {
        let mut client = connect(&self.settings.admin_socket, self.settings.patience).await?;
        let (mut stream, mut answer) = subscribe(&mut client, self.settings.patience).await?;
        loop {
            let bundle = Bundle::of(&answer, &self.settings.trust_domain)?;
            if !self.health.status().connected {
                tracing::info!(socket = %self.settings.admin_socket.display(), "connected to SPIRE");
            }
            self.health.connected();
            backoff.reset();
            self.link.send_replace(Some(Link {
                client: client.clone(),
                bundle: Arc::new(bundle),
                number: self.number,
            }));
            // Each new bundle has every SVID verified again.
            sleep(SETTLE).await;
            let before = answer;
            answer = loop {
                let next = tokio::select! {
                    next = stream.message() => next.map_err(|status| said(&status))?.ok_or(LinkError::Ended)?,
                    () = sleep(PROBE) => {
                        let (again, next) = subscribe(&mut client, self.settings.patience).await?;
                        stream = again;
                        next
                    }
                };
                if next != before {
                    break next;
                }
            };
        }
    }
}

async fn connect(path: &Path, patience: Duration) -> Result<DelegatedIdentityClient<Channel>, LinkError> {
    let path = path.to_path_buf();
    // Tried by itself first: what the system says of a socket is lost on the way through the library.
    match timeout(patience, UnixStream::connect(&path)).await {
        Err(_) => return Err(LinkError::Silent(patience)),
        Ok(Err(error)) => {
            let source = SocketError::of(&path, error);
            return Err(LinkError::Connect { path, source });
        }
        Ok(Ok(_)) => {}
    }
    let protocol = |error: tonic::transport::Error| LinkError::Protocol {
        path: path.clone(),
        message: whole(&error),
    };
    let endpoint = Endpoint::from_shared(format!("unix:{}", path.display())).map_err(protocol)?;
    let channel = timeout(patience, endpoint.connect())
        .await
        .map_err(|_| LinkError::Silent(patience))?
        .map_err(protocol)?;
    Ok(DelegatedIdentityClient::new(channel).max_decoding_message_size(MAX_BYTES))
}

/// Asks the SPIRE agent once for whom to believe, as [`keep`] does again and again: whether this process may ask for identities
/// of others, and whether the answer can be used. `patience`: for each step.
pub async fn ask(admin_socket: &Path, trust_domain: &str, patience: Duration) -> Result<(), String> {
    let asked = async {
        let mut client = connect(admin_socket, patience).await?;
        let (_stream, answer) = subscribe(&mut client, patience).await?;
        Bundle::of(&answer, trust_domain)?;
        Ok::<_, LinkError>(())
    };
    asked.await.map_err(|error| error.to_string())
}

type Bundles = (
    Streaming<SubscribeToX509BundlesResponse>,
    SubscribeToX509BundlesResponse,
);

/// Subscribes to the bundles; the stream and its first answer, which comes at once.
async fn subscribe(
    client: &mut DelegatedIdentityClient<Channel>,
    patience: Duration,
) -> Result<Bundles, LinkError> {
    let answered = async {
        let request = SubscribeToX509BundlesRequest::default();
        let mut stream = client
            .subscribe_to_x509_bundles(request)
            .await
            .map_err(|status| said(&status))?
            .into_inner();
        let first = stream.message().await.map_err(|status| said(&status))?;
        Ok((stream, first.ok_or(LinkError::Ended)?))
    };
    timeout(patience, answered)
        .await
        .map_err(|_| LinkError::Silent(patience))?
}

fn said(status: &Status) -> LinkError {
    match status.code() {
        Code::PermissionDenied | Code::Unauthenticated => LinkError::Refused(status.message().to_owned()),
        _ => LinkError::Said(words(status)),
    }
}

/// What a status says, its cause included.
pub(super) fn words(status: &Status) -> String {
    let cause = status.source().map(|source| format!(": {}", whole(source)));
    format!(
        "{} ({:?}){}",
        status.message(),
        status.code(),
        cause.unwrap_or_default()
    )
}

/// An error with its causes.
fn whole(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text = format!("{text}: {next}");
        cause = next.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn a_connection_that_nobody_keeps_has_no_news() {
        let (keeper, mut links) = watch::channel(None);
        keeper.send_replace(None);
        news(&mut links).await;
        keeper.send_replace(None);
        drop(keeper);
        news(&mut links).await;
        for _ in 0..3 {
            assert!(
                news(&mut links).now_or_never().is_none(),
                "whoever waits for it waits"
            );
        }
    }
}
