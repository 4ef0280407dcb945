// SPDX-License-Identifier: Apache-2.0
//! Where other agents come in: TLS handshakes of those who dial.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsStream};

use super::crowd::Crowd;
use super::pair::Shared;
use crate::identity::peers::Roster;

/// The pause after connections could not be taken, as when there are no descriptors.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// Takes connections for ever.
pub(super) async fn accept(
    listener: TcpListener,
    shared: Arc<Shared>,
    roster: watch::Receiver<Option<Arc<Roster>>>,
    come: mpsc::Sender<TlsStream<TcpStream>>,
) {
    let mut crowd = Crowd::default();
    let mut tasks = JoinSet::new();
    let mut known = HashSet::new();
    let mut known_by: Option<Arc<Roster>> = None;
    loop {
        while tasks.try_join_next().is_some() {}
        let accepted = listener.accept().await;
        let now = roster.borrow().clone();
        if now.as_ref().map(Arc::as_ptr) != known_by.as_ref().map(Arc::as_ptr) {
            known = now.as_deref().map(addresses).unwrap_or_default();
            known_by = now;
        }
        match accepted {
            Ok((stream, from)) => {
                let through = Arc::new(AtomicBool::new(false));
                let greeting = greet(stream, Arc::clone(&shared), come.clone(), Arc::clone(&through));
                let task = tasks.spawn(greeting);
                for _ in 0..crowd.add(from.ip(), &known, through, task) {
                    shared
                        .health
                        .refused(None, "crowded", "it took longer than others");
                }
            }
            Err(error) => {
                tracing::warn!(%error, "a connection of another agent could not be taken");
                tokio::time::sleep(ACCEPT_AGAIN).await;
            }
        }
    }
}

/// Where agents of nodes may come from.
fn addresses(roster: &Roster) -> HashSet<IpAddr> {
    let speakers = roster.iter().map(|(_, speaker)| speaker);
    speakers
        .flat_map(|speaker| {
            let listens = speaker.neighbour.address.parse::<SocketAddr>().ok();
            let listens = listens.map(|address| address.ip().to_canonical());
            speaker.own_addresses().chain(listens)
        })
        .collect()
}

async fn greet(
    stream: TcpStream,
    shared: Arc<Shared>,
    come: mpsc::Sender<TlsStream<TcpStream>>,
    through: Arc<AtomicBool>,
) {
    let server = {
        let certificates = shared.certificates.borrow();
        certificates
            .as_ref()
            .as_ref()
            .map(|mutual| Arc::clone(&mutual.server))
    };
    let Some(server) = server else { return };
    let _ = stream.set_nodelay(true);
    let accepted = TlsAcceptor::from(server).accept(stream);
    let why = match timeout(shared.settings.timing.handshake, accepted).await {
        Ok(Ok(stream)) => {
            through.store(true, Ordering::Relaxed);
            // The service ends where nobody listens.
            let _ = come.send(TlsStream::from(stream)).await;
            return;
        }
        Ok(Err(error)) => error.to_string(),
        Err(_) => "it did not finish its handshake in time".to_owned(),
    };
    tracing::debug!(why, "refused who dialled");
    shared.health.refused(None, "tls", &why);
}
