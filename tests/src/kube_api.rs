// SPDX-License-Identifier: Apache-2.0
//! A Kubernetes API server for a test: lists, watches and changes of any resource over the real protocol, and every way in
//! which one can fail, as the test says.
//!
//! Objects are JSON values below the path of their collection, such as `/api/v1/pods` or
//! `/apis/discovery.k8s.io/v1/endpointslices`. Nothing is validated and nothing is defaulted but `metadata`: what a test puts is
//! what is served.

mod select;
mod serve;
mod store;

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpSocket};
use tokio::runtime::Runtime;
use tokio::sync::{broadcast, watch};
use tokio::task::JoinHandle;

pub use self::store::Counts;
use self::store::Store;
use crate::network::Host;

/// Raw text that may wait for a watch to take it.
const SAYINGS: usize = 65_536;

/// How the server misbehaves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Every request is answered with this status instead.
    pub status: Option<u16>,
    /// Every attempt at a watch is answered with this status instead.
    pub watch_status: Option<u16>,
    /// `Retry-After` of such an answer, in seconds.
    pub retry_after: Option<u32>,
    /// Watches are opened and nothing is said on them, and other requests are never answered.
    pub silent: bool,
    /// Every request waits so long first.
    pub slow: Duration,
    /// Watches send no bookmarks.
    pub no_bookmarks: bool,
    /// Lists answer this instead of what is there.
    pub list_body: Option<String>,
}

/// What is said on watches by the test, beside what happened.
#[derive(Clone, Debug)]
enum Saying {
    /// A piece of text on the watches of a collection.
    Text(String, String),
    /// All watches end; in the middle of a line, if so.
    HangUp(bool),
}

struct Shared {
    store: Mutex<Store>,
    /// The newest version: what is sent when something has changed.
    version: watch::Sender<u64>,
    faults: watch::Sender<Faults>,
    sayings: broadcast::Sender<Saying>,
}

impl Shared {
    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut Store) -> T) -> T {
        let mut store = self.store();
        let done = change(&mut store);
        self.version.send_replace(store.version());
        done
    }
}

/// A running server. It ends with the test.
pub struct KubeApi {
    shared: Arc<Shared>,
    /// In whose namespace it listens, if in another than this process's.
    host: Option<Host>,
    address: SocketAddr,
    runtime: Runtime,
    serving: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for KubeApi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KubeApi")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl KubeApi {
    /// Starts one on a free loopback port, with nothing in it.
    pub fn start() -> Result<Self> {
        Self::start_at(None)
    }

    /// Starts one at the address of a host, for agents in other namespaces.
    pub fn start_in(host: &Host) -> Result<Self> {
        Self::start_at(Some(host.clone()))
    }

    fn start_at(host: Option<Host>) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let shared = Arc::new(Shared {
            store: Mutex::default(),
            version: watch::channel(0).0,
            faults: watch::channel(Faults::default()).0,
            sayings: broadcast::channel(SAYINGS).0,
        });
        let address = host.as_ref().map_or(Ipv4Addr::LOCALHOST, |host| host.ipv4);
        let mut api = Self {
            shared,
            host,
            address: SocketAddr::from((address, 0)),
            runtime,
            serving: None,
        };
        api.listen()?;
        Ok(api)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its address as a URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Writes a kubeconfig that names it into `directory`.
    pub fn kubeconfig(&self, directory: &Path) -> Result<PathBuf> {
        let path = directory.join("kubeconfig");
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "test", "cluster": { "server": self.url() } }],
            "users": [{ "name": "test", "user": { "token": "test" } }],
            "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "test" } }],
            "current-context": "test",
        });
        // YAML is a superset of JSON.
        fs::write(&path, config.to_string()).with_context(|| format!("{}", path.display()))?;
        Ok(path)
    }

    /// Makes an object, or replaces it: `MODIFIED` where its uid stays, `DELETED` and `ADDED` where it is another. What the
    /// object is then, with its `resourceVersion`. A uid is made up where it has none; one that is `null` stays so.
    pub fn put(&self, collection: &str, object: Value) -> Value {
        self.shared.change(|store| store.put(collection, object))
    }

    /// Changes an object in place. Whether it is there.
    pub fn edit(&self, collection: &str, namespace: &str, name: &str, edit: impl FnOnce(&mut Value)) -> bool {
        let Some(mut object) = self.get(collection, namespace, name) else {
            return false;
        };
        edit(&mut object);
        self.put(collection, object);
        true
    }

    /// Deletes an object. Whether it was there. `namespace` is empty for what has none.
    pub fn delete(&self, collection: &str, namespace: &str, name: &str) -> bool {
        self.shared
            .change(|store| store.delete(collection, namespace, name))
            .is_some()
    }

    /// An object as it is now.
    pub fn get(&self, collection: &str, namespace: &str, name: &str) -> Option<Value> {
        self.shared.store().get(collection, namespace, name)
    }

    /// The newest version.
    pub fn version(&self) -> u64 {
        self.shared.store().version()
    }

    /// How it misbehaves from now on. Open watches go on, unless it is silent.
    pub fn fault(&self, faults: Faults) {
        self.shared.faults.send_replace(faults);
    }

    /// Forgets what happened so far: a watch from before gets `410 Gone`. Open watches are told so and end.
    pub fn expire(&self) {
        self.shared.store().compact();
        self.say_all(
            &json!({ "type": "ERROR", "object": store::status(410, "Expired", "too old resource version") }),
        );
        self.hang_up(false);
    }

    /// Forgets what happened so far, and leaves open watches alone.
    pub fn compact(&self) {
        self.shared.store().compact();
    }

    /// Ends all watches now, in the middle of a line if so.
    pub fn hang_up(&self, in_a_line: bool) {
        // Nobody may be listening.
        let _ = self.shared.sayings.send(Saying::HangUp(in_a_line));
    }

    /// Says a line on the open watches of a collection, whatever it is.
    pub fn say(&self, collection: &str, line: &str) {
        let _ = self
            .shared
            .sayings
            .send(Saying::Text(collection.to_owned(), format!("{line}\n")));
    }

    /// Says a piece of a line.
    pub fn say_raw(&self, collection: &str, text: &str) {
        let _ = self
            .shared
            .sayings
            .send(Saying::Text(collection.to_owned(), text.to_owned()));
    }

    fn say_all(&self, event: &Value) {
        let _ = self
            .shared
            .sayings
            .send(Saying::Text(String::new(), format!("{event}\n")));
    }

    /// How often a collection was asked for.
    pub fn counts(&self, collection: &str) -> Counts {
        self.shared.store().counts(collection)
    }

    /// Stops listening and ends every connection: nobody is there.
    pub fn stop(&mut self) {
        if let Some(serving) = self.serving.take() {
            serving.abort();
            // Its connections end with it.
            let _ = self.runtime.block_on(serving);
        }
    }

    /// Listens again, at the same address.
    pub fn listen(&mut self) -> Result<()> {
        let listen = || -> Result<TcpListener> {
            let listener = self.runtime.block_on(async {
                let socket = TcpSocket::new_v4()?;
                socket.set_reuseaddr(true)?;
                socket.bind(self.address)?;
                socket.listen(1024)
            });
            listener.with_context(|| format!("cannot listen at {}", self.address))
        };
        let listener = self
            .host
            .as_ref()
            .map_or_else(listen, |host| host.within(listen))?;
        self.address = listener.local_addr()?;
        self.serving = Some(
            self.runtime
                .spawn(serve::serve(listener, Arc::clone(&self.shared))),
        );
        Ok(())
    }
}

impl Drop for KubeApi {
    fn drop(&mut self) {
        self.stop();
    }
}
