// SPDX-License-Identifier: Apache-2.0
//! A load balancer as simple as one can be: it hands each connection to the next engine that answers, byte for byte, and
//! ends it when either side does.

use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Result;

/// How long an engine may take to accept.
const PATIENCE: Duration = Duration::from_secs(2);

/// A running balancer; it stops taking connections when it is dropped.
pub(crate) struct Balancer {
    address: SocketAddr,
    stopping: Arc<AtomicBool>,
    taking: Option<JoinHandle<()>>,
}

impl Balancer {
    pub(crate) fn start(engines: Vec<SocketAddr>) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let stopping = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stopping);
        let taking = thread::spawn(move || {
            let turn = AtomicUsize::new(0);
            for client in listener.incoming().map_while(Result::ok) {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let first = turn.fetch_add(1, Ordering::Relaxed);
                let found = (0..engines.len()).find_map(|step| {
                    let engine = &engines[(first + step) % engines.len()];
                    TcpStream::connect_timeout(engine, PATIENCE).ok()
                });
                // Where none answers, the client's connection ends here.
                if let Some(engine) = found {
                    join(client, engine);
                }
            }
        });
        Ok(Self {
            address,
            stopping,
            taking: Some(taking),
        })
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        // Wakes it up.
        drop(TcpStream::connect(self.address));
        if let Some(taking) = self.taking.take() {
            let _ = taking.join();
        }
    }
}

/// Passes on what either side says, in threads that end with the connection.
fn join(client: TcpStream, engine: TcpStream) {
    let (Ok(from), Ok(to)) = (client.try_clone(), engine.try_clone()) else {
        return;
    };
    thread::spawn(move || pass(from, to));
    thread::spawn(move || pass(engine, client));
}

fn pass(mut from: TcpStream, mut to: TcpStream) {
    let ended = io::copy(&mut from, &mut to);
    // One side that is done may still be listening; one that broke is not.
    let _ = to.shutdown(if ended.is_ok() {
        Shutdown::Write
    } else {
        Shutdown::Both
    });
}
